"""The program that runs first in every sandbox: where it is, or how it is made."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from agentgym.errors import SandboxError

SOURCES = Path(__file__).parent / "supervisor"
BUILT = SOURCES / "bin"
"""Where a wheel brings programs that were built with it."""
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_KNOWN = ("x86_64", "aarch64")
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Os", "-s", "-static", "-Wall", "-Wextra")
_BUILD_S = 300


def program(machine: str | None = None) -> Path:
    """Return the supervisor for a machine type, by default this one's; builds it once if it did not come built.

    Raises:
        SandboxError: it did not come with the package, and there is no compiler.
    """
    found = _MACHINES.get((machine or platform.machine()).lower())
    if found is None:
        raise SandboxError(f"the sandboxes' supervisor can be built for {' and '.join(_KNOWN)}, not for {machine!r}")
    return _program(found)


def digest() -> str:
    """Return a short hash of the source, which names what was built from it."""
    whole = hashlib.sha256("\0".join(_FLAGS).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:16]


def build(machine: str, target: Path, *, portable: bool = False) -> None:
    """Compile the supervisor for a machine; `portable` insists on the compiler that makes the small one.

    Raises:
        SandboxError: there is no compiler, or it failed.
    """
    compiler = _compiler(machine, portable=portable)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, "supervisor")
        argv = [*compiler, *_FLAGS, "-o", str(made), *map(str, sorted(SOURCES.glob("*.c")))]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_BUILD_S, check=False)
        if done.returncode != 0:
            raise SandboxError(f"{compiler[0]} cannot build the sandboxes' supervisor: {done.stderr.strip()[-500:]}")
        made.chmod(0o755)
        made.replace(target)


@lru_cache
def _program(machine: str) -> Path:
    name = f"supervisor-{machine}-{digest()}"
    if (BUILT / name).is_file():
        return BUILT / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentgym"
    if not (cache / name).is_file():
        build(machine, cache / name)
    return cache / name


def _compiler(machine: str, *, portable: bool) -> list[str]:
    native = machine == _MACHINES.get(platform.machine().lower()) and sys.platform == "linux"
    for name in ("musl-gcc", "cc", "gcc", "clang") if native and not portable else ():
        if found := shutil.which(name):
            return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    raise SandboxError(
        f"the sandboxes' supervisor for {machine} is not built yet, and there is no C compiler to build it: run "
        "`apt-get install gcc libc6-dev`, or `pip install ziglang`"
    )
