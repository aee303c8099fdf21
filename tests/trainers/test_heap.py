"""Threads of a training process share one heap, and it gives back what is free."""

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


FREE = """
import ctypes, sys
from pathlib import Path
if sys.argv[1] == "update":
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from agentgym.tokens import TokenBuffer
    from agentgym_trainers.learner import Learner
    from agentgym_trainers.settings import ComputeSettings, OptimSettings
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1, num_key_value_heads=1))
    learner, said = Learner(model, ComputeSettings()), TokenBuffer()
    learner.begin(OptimSettings(), 1)
    said.append_text([1, 2], 0)
    said.append_sampled([3, 4], [-1.0] * 2, 0)
    def give_back():
        learner.sft_step([said])
else:
    from agentgym_trainers.heap import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
blocks = [libc.malloc(1 << 16) for _ in range(1 << 12)]
for one in blocks:
    ctypes.memset(one, 1, 1 << 16)
for place, one in enumerate(blocks):
    if place % 16:
        libc.free(one)
before = resident()
give_back()
kept = [ctypes.string_at(one, 1 << 16) for one in blocks[::16]]
print(before - resident(), set(kept) == {bytes([1]) * (1 << 16)})
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
@pytest.mark.parametrize("how", ["asked", "update"])
def test_what_is_free_between_blocks_is_given_back(how: str) -> None:
    said = subprocess.run([sys.executable, "-c", FREE, how], check=True, capture_output=True, text=True).stdout
    given, kept = said.split()
    assert int(given) > 200  # MiB, of 240 that are free
    assert kept == "True"
