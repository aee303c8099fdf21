"""One contract suite for all backends: a new backend is one more line in BACKENDS."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from command_lines import command_lines_with
from ray_nodes import PLUGIN, Connect, Nodes, nodes

from agentgym.errors import SandboxError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec

_AGENTGYM = "from agentgym.cli import main; main()"


@dataclass(frozen=True, slots=True)
class Server:
    """A sandbox server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    token: str

    @classmethod
    def start(cls, *arguments: str) -> Server:
        """Start `agentgym sandbox serve` on a free port, and wait until it says where it is."""
        token = secrets.token_hex(16)
        process = subprocess.Popen(
            [sys.executable, "-c", _AGENTGYM, "sandbox", "serve", "--port", "0", *arguments],
            env={**os.environ, "AGENTGYM_SANDBOX_TOKEN": token},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("serving"):
                return cls(process, line.split()[-1], token)
        process.stdout.close()
        raise RuntimeError(f"the sandbox server ended with code {process.wait(60)}: see its standard error")

    def stop(self) -> None:
        """Let it end in good order, unless it has ended before."""
        assert self.process.stdout is not None
        with self.process.stdout:
            if self.process.poll() is None:
                self.process.terminate()
                assert self.process.wait(60) == 0


def _process(_: pytest.FixtureRequest) -> SandboxBackend:
    from agentgym_sandboxes.process import ProcessBackend

    return ProcessBackend()


def _docker(_: pytest.FixtureRequest) -> SandboxBackend:
    from agentgym_sandboxes.docker import DockerBackend

    return DockerBackend()


def _remote_process(request: pytest.FixtureRequest) -> SandboxBackend:
    return _remote("process", _process(request), request)


def _remote_docker(request: pytest.FixtureRequest) -> SandboxBackend:
    return _remote("docker", _docker(request), request)


def _remote(name: str, lent: SandboxBackend, request: pytest.FixtureRequest) -> SandboxBackend:
    from agentgym_sandboxes.remote import RemoteBackend

    lent.check()  # only what is lent may be missing on this machine, not the server
    lent.close()
    server = Server.start("--backend", name, "--limit", "grace_s=0.3")
    request.addfinalizer(server.stop)
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("AGENTGYM_SANDBOX_URL", server.url)  # other backends of these tests find it there
    patch.setenv("AGENTGYM_SANDBOX_TOKEN", server.token)
    return RemoteBackend()


def _ray(request: pytest.FixtureRequest) -> SandboxBackend:
    _process(request).check()  # what the nodes lend may be missing on this machine
    request.getfixturevalue("ray_nodes")
    from ray_shelf import RayProcess

    made: SandboxBackend = RayProcess()
    return made


BACKENDS = [
    pytest.param(_process, id="process"),
    pytest.param(_docker, id="docker", marks=pytest.mark.docker),
    pytest.param(_remote_process, id="remote"),
    pytest.param(_remote_docker, id="remote-docker", marks=pytest.mark.docker),
    pytest.param(_ray, id="ray"),
]


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Nodes]:
    """Two nodes that lend sandboxes, in a cluster of their own that this process has joined."""
    pytest.importorskip("ray", reason="the ray extra is not installed")
    with nodes("one", "two") as started, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PLUGIN)
        yield started


@pytest.fixture
def connect(ray_nodes: Nodes) -> Iterator[Connect]:
    """Return backends on the cluster's nodes that are closed with the test."""
    from agentgym_sandboxes.process import ProcessBackend
    from agentgym_sandboxes.ray import RayBackend

    try:
        ProcessBackend().check()
    except SandboxError as error:
        pytest.skip(str(error))
    with ExitStack() as open_backends:

        def one(backend: str = "process", **options: Any) -> RayBackend:
            made = RayBackend(backend, **{"wait_s": 60.0, **options})
            open_backends.callback(made.close)
            made.check()
            return made

        yield one


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    try:
        made: SandboxBackend = request.param(request)
        made.check()
    except SandboxError as error:
        if request.param in (_docker, _remote_docker) and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture
def box(backend: SandboxBackend) -> Iterator[Sandbox]:
    with backend.start(SandboxSpec()) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of process sandboxes for tests that do not end or fill it."""
    started = Server.start("--backend", "process")
    yield started
    started.stop()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start sandbox servers with these arguments, which end with the test."""
    servers: list[Server] = []

    def start(*arguments: str) -> Server:
        servers.append(Server.start(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def marker() -> str:
    """A duration for `sleep` that no other process on this machine has."""
    return f"3600.{secrets.randbelow(10**9):09d}"


@pytest.fixture
def survivors() -> Callable[[str], list[str]]:
    """Return the command lines on this machine that hold a word, after giving them time to end.

    A process that is killed still takes its turn on a busy machine before it is gone; a bomb that was not multiplies.
    """

    def find(word: str) -> list[str]:
        deadline = time.monotonic() + 20
        while (found := command_lines_with(word)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    return find
