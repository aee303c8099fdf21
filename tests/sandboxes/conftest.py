"""One contract suite for all backends: a new backend is one more line in BACKENDS."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec


def _process() -> SandboxBackend:
    from agentgym_sandboxes.process import ProcessBackend

    return ProcessBackend()


def _docker() -> SandboxBackend:
    from agentgym_sandboxes.docker import DockerBackend

    return DockerBackend()


BACKENDS = [
    pytest.param(_process, id="process"),
    pytest.param(_docker, id="docker", marks=pytest.mark.docker),
]


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    made: SandboxBackend = request.param()
    try:
        made.check()
    except SandboxError as error:
        if made.name == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture
def box(backend: SandboxBackend) -> Iterator[Sandbox]:
    with backend.start(SandboxSpec()) as sandbox:
        yield sandbox


@pytest.fixture
def marker() -> str:
    """A duration for `sleep` that no other process on this machine has."""
    return f"3600.{secrets.randbelow(10**9):09d}"


@pytest.fixture
def survivors() -> Callable[[str], list[str]]:
    """Return the command lines on this machine that hold a word, after giving them two seconds to end."""

    def find(word: str) -> list[str]:
        deadline = time.monotonic() + 2
        while (found := _command_lines_with(word)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    return find


def _command_lines_with(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found
