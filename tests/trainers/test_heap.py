"""Threads of a training process share one heap."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, sys, threading
from agentgym_trainers.heap import share_heap
libc = ctypes.CDLL(None)
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
libc.fopen.restype = ctypes.c_void_p
if sys.argv[2] == "shared":
    share_heap()
together = threading.Barrier(6)
def take():
    together.wait()
    libc.malloc(5000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(6)]
for one in threads: one.start()
for one in threads: one.join()
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_have_arenas_until_they_share_a_heap(tmp_path: Path) -> None:
    heaps = {}
    for how in ("apart", "shared"):
        told = tmp_path / how
        subprocess.run([sys.executable, "-c", PROGRAM, str(told), how], check=True)
        heaps[how] = len(re.findall("<heap nr=", told.read_text()))
    assert heaps["shared"] == 1 < heaps["apart"]
