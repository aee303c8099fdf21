"""Programs of this machine that tests bring into a sandbox whose image lacks them, with the libraries they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def carried(program: str) -> dict[str, bytes]:
    """Return files for `Sandbox.upload`: below `carried/`, `run-PROGRAM` starts it. Skips if this machine lacks it."""
    found, ldd = shutil.which(program), shutil.which("ldd")
    if found is None or ldd is None:
        pytest.skip(f"{program} or ldd is not installed on this machine")
    listed = subprocess.run([ldd, found], capture_output=True, text=True, check=False, timeout=30).stdout
    libraries = [Path(one) for one in re.findall(r"(/\S+) \(0x", listed)]  # none if it is static
    files = {f"carried/lib/{one.name}": one.read_bytes() for one in libraries}
    files[f"carried/{program}"] = Path(found).read_bytes()
    loader = next((f'"$here/lib/{one.name}" --library-path "$here/lib" ' for one in libraries if "ld-" in one.name), "")
    start = f'chmod +x "$here"/lib/* "$here/{program}" 2>/dev/null\nexec {loader}"$here/{program}" "$@"\n'
    files[f"carried/run-{program}"] = f'#!/bin/sh\nhere=$(dirname "$(readlink -f "$0")")\n{start}'.encode()
    return files
