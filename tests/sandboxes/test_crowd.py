"""Many sandboxes at once: nothing is lost, doubled or given to somebody else."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec

pytest.importorskip("docker", reason="the docker extra is not installed")

from agentgym_sandboxes.docker import DockerBackend

SANDBOXES, COMMANDS = 64, 20


@pytest.fixture
def backend() -> Iterator[DockerBackend]:
    made = DockerBackend(run="crowd")
    try:
        made.check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.mark.docker
def test_sixty_four_sandboxes_with_twenty_commands_each(backend: DockerBackend) -> None:
    def work(number: int) -> list[bytes]:
        said = []
        with backend.start(SandboxSpec(memory_mb=32, pids=8)) as box:
            for step in range(COMMANDS):
                script = f"echo {number}.{step} >> log; cat; echo err-{number}.{step} >&2; wc -l < log"
                result = box.exec(script, stdin=f"{number}/{step} ".encode())
                assert result.stderr == f"err-{number}.{step}\n".encode()
                said.append(result.stdout)
            assert box.read("log").decode().split() == [f"{number}.{step}" for step in range(COMMANDS)]
        return said

    with ThreadPoolExecutor(SANDBOXES) as threads:
        found = list(threads.map(work, range(SANDBOXES)))
    assert found == [[f"{n}/{s} {s + 1}\n".encode() for s in range(COMMANDS)] for n in range(SANDBOXES)]
