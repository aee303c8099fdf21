"""Compile the supervisor. Standard library only, for the packaging and the proxy use it where nothing is installed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent / "supervisor"
BUILT = SOURCES / "bin"
"""Where a wheel brings programs that were built with it."""
MACHINES = ("x86_64", "aarch64")
_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Os", "-s", "-static", "-Wall", "-Wextra")
_BUILD_S = 300


class BuildError(Exception):
    """Why there is no program, and what to do, as a sentence."""


def machine_of(name: str | None = None) -> str:
    """Return one of `MACHINES` for what kernels and daemons call it; None is this machine.

    Raises:
        BuildError: it is another.
    """
    found = _NAMES.get((name or platform.machine()).lower())
    if found is None:
        raise BuildError(f"the sandboxes' supervisor can be built for {' and '.join(MACHINES)}, not for {name!r}")
    return found


def digest() -> str:
    """Return a short hash of the source, which names what was built from it."""
    whole = hashlib.sha256("\0".join(_FLAGS).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:16]


def file_name(machine: str) -> str:
    """Return what the program for one of `MACHINES` is called, wherever it is."""
    return f"supervisor-{machine}-{digest()}"


def find(machine: str) -> Path | None:
    """Return the program for one of `MACHINES` if it is there already."""
    places = (BUILT / file_name(machine), _cache() / file_name(machine))
    return next((path for path in places if path.is_file()), None)


def program(machine: str) -> Path:
    """Return the program for one of `MACHINES`, built now if it has not been yet.

    Raises:
        BuildError: there is no compiler, it failed, or what it made cannot be kept.
    """
    found = find(machine)
    if found is None:
        found = _cache() / file_name(machine)
        build(machine, found)
    return found


def build(machine: str, target: Path, *, portable: bool = False) -> None:
    """Compile for one of `MACHINES`; `portable` insists on the compiler that makes the same for everybody.

    Raises:
        BuildError: there is no compiler, it failed, or what it made cannot be kept.
    """
    argv = [*compiler(machine, portable=portable), *_FLAGS]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, "supervisor")
            argv += ["-o", str(made), *map(str, sorted(SOURCES.glob("*.c")))]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_BUILD_S, check=False)
            if done.returncode != 0:
                raise BuildError(f"{argv[0]} cannot build the sandboxes' supervisor: {done.stderr.strip()[-500:]}")
            made.chmod(0o755)
            made.replace(target)
    except OSError as error:
        raise BuildError(f"the sandboxes' supervisor cannot be kept in {target.parent}: {error.strerror}") from error


def compiler(machine: str, *, portable: bool = False) -> list[str]:
    """Return the first words of a command that compiles for one of `MACHINES`.

    Raises:
        BuildError: there is none.
    """
    native = machine == _NAMES.get(platform.machine().lower()) and sys.platform == "linux"
    for name in ("musl-gcc", "cc", "gcc", "clang") if native and not portable else ():
        if found := shutil.which(name):
            return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    raise BuildError(
        f"the sandboxes' supervisor for {machine} is not built yet, and there is no C compiler to build it: run "
        "`apt-get install gcc libc6-dev`, or `pip install ziglang`"
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentgym"


if __name__ == "__main__":  # for an image: what is built beside the source is found before any cache
    here = machine_of()
    build(here, BUILT / file_name(here))
