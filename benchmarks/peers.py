"""The peers' own virtual environments, and the image that holds what a peer needs inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.systems import SystemInfo

_SERVER = "server"
_BESIDE = {"swe-rex": ["aiohttp"], "llm-sandbox": ["docker"]}
"""What a peer's client needs and does not ask for."""
_DOCKERFILE = """\
ARG BASE
FROM $BASE
USER 0
COPY server /opt/swe-rex
COPY swerex-remote /usr/local/bin/
RUN chmod 755 /usr/local/bin/swerex-remote && python3 -m compileall -q /opt/swe-rex
USER 1000:1000
"""
_START = '#!/bin/sh\nPYTHONPATH=/opt/swe-rex exec python3 -m swerex.server "$@"\n'


class PeerError(Exception):
    """A peer cannot be installed, in one sentence."""


def folder_of(system: SystemInfo) -> Path:
    """Return where a peer's virtual environment is or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "agentgym" / "benchmarks" / f"{(system.peer or '').replace('==', '-')}-py{version}"


def python_of(system: SystemInfo) -> Path | None:
    """Return a peer's interpreter; None if it is not installed."""
    folder = folder_of(system)
    return folder / "bin" / "python" if (folder / "ready").exists() else None


def install(system: SystemInfo, image: str) -> None:
    """Make a peer's virtual environment, once.

    Raises:
        PeerError: pip could not install it.
    """
    folder = folder_of(system)
    if python_of(system) is not None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "pip"), "install", "--quiet", str(system.peer), *_BESIDE.get(system.key, [])])
    if system.key == "swe-rex":
        wanted = ["--target", str(folder / _SERVER), "--python-version", python_in(image), "--only-binary=:all:"]
        _run([str(folder / "bin" / "pip"), "install", "--quiet", str(system.peer), *wanted])
    (folder / "ready").touch()


def python_in(image: str) -> str:
    """Return the version of an image's interpreter, such as 3.11.2."""
    asked = ["docker", "run", "--rm", "--network=none", image, "python3", "-c"]
    return _run([*asked, "import platform; print(platform.python_version())"]).strip()


def image_for(system: SystemInfo, image: str, labels: Iterable[tuple[str, str]]) -> str:
    """Return the image that a peer's sandboxes start from: the same one, with SWE-ReX's server for SWE-ReX."""
    if system.key != "swe-rex":
        return image
    folder = folder_of(system)
    (folder / "Dockerfile").write_text(_DOCKERFILE)
    (folder / "swerex-remote").write_text(_START)
    (folder / ".dockerignore").write_text(f"*\n!{_SERVER}\n!swerex-remote\n")
    marked = [word for pair in labels for word in ("--label", "=".join(pair))]
    built = ["docker", "build", "--quiet", "--network=none", *marked, "--build-arg", f"BASE={image}", str(folder)]
    return _run(built, {"DOCKER_BUILDKIT": "0"}).split()[-1]


def _run(argv: list[str], variables: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **(variables or {})}, check=False)
    if done.returncode:
        raise PeerError(f"`{' '.join(argv)}` failed: {done.stderr.strip()[-400:]}")
    return done.stdout
