"""Sandboxes that are kept ready: fresh, well, used once, and gone in the end."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.pool import WarmPool

docker = pytest.importorskip("docker", reason="the docker extra is not installed")

from agentgym_sandboxes.docker import DockerBackend  # noqa: E402

RUN = f"pool-test-{os.getpid()}"
"""Another worker's containers are another's."""

SPEC = SandboxSpec(memory_mb=32, pids=8)


@pytest.fixture
def backend() -> Iterator[DockerBackend]:
    made = DockerBackend(run=RUN, warm=3)
    try:
        made.check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


def _containers(run: str) -> list[str]:
    with closing(docker.from_env()) as client:
        return [one["Id"][:12] for one in client.api.containers(all=True, filters={"label": f"agentgym.run={run}"})]


@pytest.mark.docker
def test_a_ready_sandbox_is_fresh_and_used_once(backend: DockerBackend) -> None:
    assert backend.prepare(SPEC, 3) == 3
    seen = []
    for _ in range(6):
        with backend.start(SPEC) as box:
            seen.append(box.id)
            assert box.exec("ls -A; cat /tmp/* 2>/dev/null").stdout == b""
            box.exec("echo used > file; echo used > /tmp/file; sleep 60 &")
    assert len(set(seen)) == 6
    assert backend.pool_stats.hits >= 3


@pytest.mark.docker
def test_a_sandbox_is_only_for_its_own_spec_and_the_total_is_bounded(backend: DockerBackend) -> None:
    other = SPEC.model_copy(update={"env": {"A": "b"}})
    assert backend.prepare(SPEC, 3) == 3
    with backend.start(other) as box:
        assert box.exec("echo $A").stdout == b"b\n"
    backend.prepare(other, 3)
    deadline = time.monotonic() + 20
    while len(_containers(RUN)) > 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(_containers(RUN)) == 3


@pytest.mark.docker
def test_a_ready_sandbox_that_died_is_never_handed_out(backend: DockerBackend) -> None:
    assert backend.prepare(SPEC, 3) == 3
    with closing(docker.from_env()) as client:
        for name in _containers(RUN):
            client.api.kill(name)
    with backend.start(SPEC) as box:
        assert box.exec("echo alive").stdout == b"alive\n"
    assert backend.pool_stats.discarded == 3


@pytest.mark.docker
def test_the_time_to_live_counts_from_the_first_use(backend: DockerBackend) -> None:
    short = SPEC.model_copy(update={"ttl_s": 2.0})
    assert backend.prepare(short, 1) == 1
    time.sleep(2.5)
    with backend.start(short) as box:
        assert backend.pool_stats.hits == 1
        assert box.exec("sleep 0.5; echo alive").stdout == b"alive\n"
        time.sleep(2)
        with pytest.raises(SandboxError, match="ttl_s is over"):
            box.exec("true")


@pytest.mark.docker
def test_closing_the_backend_removes_the_used_and_the_unused(backend: DockerBackend) -> None:
    backend.prepare(SPEC, 3)
    box = backend.start(SPEC)
    backend.close()
    assert _containers(RUN) == []
    with pytest.raises(SandboxError, match="closed"):
        box.exec("true")


@pytest.mark.docker
def test_many_at_once_each_get_their_own(backend: DockerBackend) -> None:
    def work(number: int) -> str:
        with backend.start(SPEC) as box:
            box.write("mine", str(number).encode())
            assert box.exec("cat mine; ls").stdout == f"{number}mine\n".encode()
            return box.id

    with ThreadPoolExecutor(6) as threads:
        names = list(threads.map(work, range(18)))
    assert len(set(names)) == 18


def test_a_backend_without_a_pool_says_so() -> None:
    with pytest.raises(ValueError, match="warm=N"):
        DockerBackend().prepare(SPEC, 1)


class _Fake:
    def __init__(self, name: int, closed: list[int]) -> None:
        self.id = str(name)
        self._name, self._closed = name, closed

    def is_well(self) -> bool:
        return True

    def close(self) -> None:
        self._closed.append(self._name)


def _pool(create: Callable[[SandboxSpec], _Fake]) -> WarmPool[_Fake]:
    return WarmPool(create, size=2, workers=2, longest_wait_s=60)


def test_what_cannot_be_started_is_not_tried_for_ever() -> None:
    tries = []

    def create(spec: SandboxSpec) -> _Fake:
        tries.append(spec)
        raise SandboxError("no")

    pool = _pool(create)
    assert pool.prepare(SPEC, 2) == 0
    assert pool.take(SPEC) is None
    pool.close()
    assert 1 <= len(tries) <= 2


def test_what_is_started_while_the_pool_closes_is_closed_too() -> None:
    may_go, closed = threading.Event(), list[int]()

    def create(spec: SandboxSpec) -> _Fake:
        may_go.wait(10)
        return _Fake(7, closed)

    pool = _pool(create)
    assert pool.take(SPEC) is None
    pool.started()
    threading.Timer(0.2, may_go.set).start()
    pool.close()
    assert closed
    assert set(closed) == {7}
