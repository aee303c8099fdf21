"""What happens to sandboxes when the daemon under them is restarted, killed or frozen; in an image without Python."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec

pytest.importorskip("docker", reason="the docker extra is not installed")

from private_daemon import IMAGE, PrivateDaemon, require

from agentgym_sandboxes.docker import DockerBackend

SPEC = SandboxSpec(memory_mb=32, pids=16)
FREEZE_S = 30

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def running() -> Iterator[PrivateDaemon]:
    require()
    daemon = PrivateDaemon()
    try:
        daemon.start()
        daemon.load()
        yield daemon
    finally:
        daemon.remove()


@pytest.fixture
def daemon(running: PrivateDaemon, monkeypatch: pytest.MonkeyPatch) -> PrivateDaemon:
    monkeypatch.setenv("DOCKER_HOST", running.url)
    return running


@pytest.fixture
def backend(daemon: PrivateDaemon) -> Iterator[DockerBackend]:
    made = DockerBackend(image=IMAGE)
    yield made
    made.close()


def _containers(daemon: PrivateDaemon) -> list[str]:
    with closing(daemon.client()) as client:
        return [one["Id"] for one in client.containers(all=True)]


def test_any_image_with_a_shell_will_do(backend: DockerBackend) -> None:
    with backend.start(SPEC) as box:
        assert box.exec(["python3"]).exit_code == 127
        result = box.exec("cat; echo $0; exit 3", stdin=b"in ")
        assert (result.stdout, result.exit_code) == (b"in /bin/sh\n", 3)
        box.upload({f"d/{i}": b"x" * i for i in range(100)})
        assert len(box.download("d")) == 100
        with box.shell() as shell:
            shell.run("cd d; X=1")
            assert shell.run("pwd; echo $X").stdout == b"/workspace/d\n1\n"
            assert shell.run("exit 4").exit_code == 4
            assert shell.run("pwd").stdout == b"/workspace/d\n"
        with box.terminal() as terminal:
            terminal.send("stty size\r")
            assert b"24 80" in terminal.read(until=b"24 80").data
        with backend.fork(box.snapshot()) as fork:
            assert fork.read("d/99") == b"x" * 99
        assert box.exec("echo before; (setsid sleep 3600 &); sleep 3600", timeout=0.5).timed_out
        assert b"sleep" not in box.exec("ps").stdout


def test_with_a_writable_root_commands_run_where_the_image_says(backend: DockerBackend) -> None:
    spec = SPEC.model_copy(update={"writable_root": True})
    with backend.start(spec) as box:
        assert (box.workdir, box.exec("pwd").stdout) == ("/", b"/\n")
        assert box.exec("echo x > /tmp/file && cat tmp/file").stdout == b"x\n"


def test_a_restart_in_mid_episode_is_the_infrastructures_fault_and_the_next_start_works(
    daemon: PrivateDaemon,
    backend: DockerBackend,
) -> None:
    box = backend.start(SPEC)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            box.exec("sleep 60", timeout=60)
        except SandboxError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    daemon.stop()
    thread.join(30)
    assert len(failures) == 1, failures
    with pytest.raises(
        SandboxError, match=r"no Docker daemon|does not answer|cannot look up|refused to start|cannot hand"
    ):
        backend.start(SPEC)
    with pytest.raises(SandboxError):
        box.exec("true")
    daemon.start()
    with backend.start(SPEC) as later:
        assert later.exec("echo alive").stdout == b"alive\n"
    box.close()
    backend.close()
    assert _containers(daemon) == []


def test_what_a_killed_daemon_leaves_is_swept(daemon: PrivateDaemon, backend: DockerBackend) -> None:
    box = backend.start(SPEC)
    daemon.stop(signal.SIGKILL)
    with pytest.raises(SandboxError):
        box.exec("true", timeout=5)
    daemon.start()
    with DockerBackend(image=IMAGE).start(SPEC) as other:
        assert other.exec("echo alive").stdout == b"alive\n"
        box.close()
        assert [one[:12] for one in _containers(daemon)] == [other.id]


def test_a_frozen_daemon_costs_nothing_but_time(daemon: PrivateDaemon, backend: DockerBackend) -> None:
    with backend.start(SPEC) as box:
        daemon.freeze()
        thaw = threading.Timer(FREEZE_S, daemon.send, (signal.SIGCONT,))
        thaw.start()
        try:
            began = time.monotonic()
            result = box.exec("echo through; echo err >&2", timeout=5)
            assert (result.stdout, result.stderr, result.timed_out) == (b"through\n", b"err\n", False)
            assert time.monotonic() - began > FREEZE_S - 5
        finally:
            thaw.join()
        box.write("file", b"data")
        assert box.exec("cat file").stdout == b"data"


def test_a_disk_that_is_full_is_the_agents_own_and_the_sandbox_stays_usable(backend: DockerBackend) -> None:
    with backend.start(SPEC.model_copy(update={"disk_mb": 4})) as box:
        assert box.exec("cat /dev/zero > fill").exit_code != 0
        with pytest.raises(ValueError, match="No space left"):
            box.write("kept", b"x" * 100_000)
        assert box.exec("ls kept").exit_code != 0
        assert box.exec("rm fill && echo alive").stdout == b"alive\n"
        box.write("kept", b"x" * 100_000)
        assert len(box.read("kept")) == 100_000


def test_an_empty_volume_that_docker_made_in_place_of_a_pruned_one_is_filled_once(
    daemon: PrivateDaemon, backend: DockerBackend
) -> None:
    with backend.start(SPEC) as box, closing(daemon.client()) as client:
        (mount,) = client.inspect_container(box.id)["HostConfig"]["Mounts"]
        box.close()
        client.remove_volume(mount["Source"])
        client.create_volume(mount["Source"])  # as Docker does, of which nobody knows whose it is
        events: Any = client.events  # typed as if it took no fractions of seconds
        made = []
        for _ in range(2):
            began = time.time()
            with backend.start(SPEC) as fresh:
                assert fresh.exec(["true"]).ok
            heard = events(since=began, until=time.time() + 1, filters={"event": "create"}, decode=True)
            made.append(sum(one["Type"] == "container" for one in heard))
    assert made == [2, 1]
