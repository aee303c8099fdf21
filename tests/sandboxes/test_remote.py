"""Sandboxes over HTTP, beyond the contract that they share: what may break between client and server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command_lines import command_lines_with

from agentgym.errors import AgentFault, CapabilityError, InfrastructureError, SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes import remote_lease
from agentgym_sandboxes.remote import RemoteBackend
from agentgym_sandboxes.remote_sandbox import RemoteSandbox
from agentgym_sandboxes.remote_wire import describe, pack, raised, unpack

Serve = Callable[..., Any]
Connect = Callable[..., RemoteBackend]
Survivors = Callable[[str], list[str]]
SPEC = SandboxSpec()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return backends that are closed with the test, as far as their server still lives."""
    made: list[RemoteBackend] = []

    def one(server: Any, **options: Any) -> RemoteBackend:
        made.append(RemoteBackend(**{"url": server.url, "token": server.token, "patience_s": 3.0, **options}))
        return made[-1]

    yield one
    for backend in made:
        with suppress(SandboxError):
            backend.close()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


def started(marker: str) -> bool:
    """Wait until a command line that holds the marker runs."""
    return eventually(lambda: bool(command_lines_with(marker)))


class Cable:
    """A TCP connection's middle, which can be cut after a request went through and before its answer did."""

    def __init__(self, url: str) -> None:
        self._target = (url.split("/")[2].split(":")[0], int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.token = ""
        self.cuts = 0
        """How many of the next answers are lost."""
        self.word = b""
        """Only those to requests that hold this word."""
        self._is_severed = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def sever(self) -> None:
        """Let nothing through."""
        self._is_severed = True
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let everything through again."""
        self._is_severed = False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(self._target) as far:
            self._open += [near, far]
            if self._is_severed:
                return
            doomed = threading.Event()
            threading.Thread(target=self._back, args=(near, far, doomed), daemon=True).start()
            while data := near.recv(1 << 16):
                if self.cuts and self.word in data:
                    self.cuts -= 1
                    doomed.set()
                far.sendall(data)

    def _back(self, near: socket.socket, far: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while (data := far.recv(1 << 16)) and not doomed.is_set():
                near.sendall(data)
        for one in (near, far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cable(serve: Serve) -> Iterator[Cable]:
    server = serve("--backend", "process", "--limit", "sandboxes=1")
    between = Cable(server.url)
    between.token = server.token
    yield between
    between.close()


def test_a_command_whose_answer_was_lost_runs_once_and_is_answered(cable: Cable, connect: Connect) -> None:
    with connect(cable).start(SPEC) as box:
        cable.word, cable.cuts = b"/v1/calls", 3
        assert box.exec("echo run >> log; sleep 0.3; echo done").stdout == b"done\n"
        assert cable.cuts == 0
        assert box.read("log") == b"run\n"


def test_a_start_whose_answer_was_lost_does_not_leak(cable: Cable, connect: Connect) -> None:
    backend = connect(cable)
    backend.check()
    cable.word, cable.cuts = b"/v1/calls", 2
    with backend.start(SPEC) as box:
        assert cable.cuts == 0
        assert box.exec("echo alive").ok
        with pytest.raises(SandboxError, match="has 1 sandboxes, as many as the sandbox server allows"):
            backend.start(SPEC)
    with backend.start(SPEC) as box:
        assert box.exec("echo alive").ok


def test_a_start_that_was_given_up_is_undone(cable: Cable, connect: Connect) -> None:
    backend = connect(cable, patience_s=0.5)
    backend.check()
    cable.word, cable.cuts = b"/v1/calls", 1000
    with pytest.raises(SandboxError, match="cannot be reached"):
        backend.start(SPEC)
    assert cable.cuts < 1000
    cable.cuts = 0

    def starts_again() -> bool:
        with suppress(SandboxError), backend.start(SPEC) as box:
            return box.exec("true").ok
        return False

    assert eventually(starts_again)


def test_a_long_command_is_waited_for_in_many_short_requests(
    server: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lease, "_WAIT_S", 0.1)
    with connect(server).start(SPEC) as box:
        assert box.exec("echo run >> log; sleep 1; cat log").stdout == b"run\n"


def test_one_client_cannot_reach_or_end_what_another_has(server: Any, connect: Connect) -> None:
    one, two = connect(server), connect(server)
    with one.start(SPEC) as mine, two.start(SPEC) as theirs:
        mine.write("secret", b"x")
        stolen = RemoteSandbox(theirs._lease, mine.id, mine.workdir)
        for use in (lambda: stolen.exec("cat secret"), lambda: stolen.read("secret"), lambda: stolen.download(".")):
            with pytest.raises(SandboxError, match="not one of this client's"):
                use()
        stolen.close()
        assert mine.read("secret") == b"x"
        two.close()
        with pytest.raises(SandboxError, match="its backend was closed"):
            theirs.exec("true")
        assert mine.exec("cat secret").stdout == b"x"


CLIENT = """
import sys
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.remote import RemoteBackend
RemoteBackend(sys.argv[1], token=sys.argv[2]).start(SandboxSpec()).exec(f"sleep {sys.argv[3]}", timeout=600)
"""


def client(server: Any, marker: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CLIENT, server.url, server.token, marker])


def test_a_killed_client_loses_its_sandboxes_and_nobody_else_does(
    serve: Serve, connect: Connect, marker: str, survivors: Survivors
) -> None:
    server = serve("--backend", "process", "--limit", "grace_s=0.5")
    with connect(server).start(SPEC) as mine, ThreadPoolExecutor(1) as pool:
        running = pool.submit(mine.exec, "sleep 12; echo mine", timeout=60)
        killed = client(server, marker)
        assert started(f"sleep {marker}")
        killed.kill()
        killed.wait()
        assert eventually(lambda: survivors(marker) == [], 10.0)
        assert not running.done()
        assert running.result(60).stdout == b"mine\n"
        assert mine.exec("echo alive").stdout == b"alive\n"


def test_a_client_that_stands_still_loses_its_sandboxes_with_its_lease(
    serve: Serve, marker: str, survivors: Survivors
) -> None:
    frozen = client(serve("--backend", "process", "--limit", "lease_s=4", "--limit", "grace_s=4"), marker)
    try:
        assert started(f"sleep {marker}")
        time.sleep(6)
        assert command_lines_with(f"sleep {marker}"), "a client that moves keeps its lease"
        frozen.send_signal(signal.SIGSTOP)
        assert eventually(lambda: survivors(f"sleep {marker}") == [])
    finally:
        frozen.kill()
        frozen.wait()


def test_a_client_cut_off_for_too_long_is_told_so_and_goes_on_with_new_sandboxes(
    serve: Serve, connect: Connect
) -> None:
    server = serve("--backend", "process", "--limit", "lease_s=2", "--limit", "grace_s=2")
    cable = Cable(server.url)
    backend = connect(cable, token=server.token)
    box = backend.start(SPEC)
    cable.sever()
    time.sleep(5)
    cable.mend()
    with pytest.raises(SandboxError, match=f"sandbox {box.id} is gone: the sandbox server does not know this client"):
        box.exec("true")
    box.close()
    with backend.start(SPEC) as fresh:
        assert fresh.exec("echo alive").stdout == b"alive\n"
    cable.close()


def test_a_client_cut_off_for_a_moment_notices_nothing(serve: Serve, connect: Connect) -> None:
    server = serve("--backend", "process")
    cable = Cable(server.url)
    backend = connect(cable, token=server.token, patience_s=10.0)
    with backend.start(SPEC) as box, ThreadPoolExecutor(1) as pool:
        running = pool.submit(box.exec, "echo run >> log; sleep 3; cat log", timeout=60)
        time.sleep(0.5)
        cable.sever()
        time.sleep(1.5)
        cable.mend()
        assert running.result(60).stdout == b"run\n"
    cable.close()


def running_command(box: Any, pool: ThreadPoolExecutor, marker: str) -> Future[Any]:
    running = pool.submit(box.exec, f"sleep {marker}", timeout=600)
    assert started(marker)
    return running


def test_a_server_killed_in_mid_command_is_one_clear_sentence_and_leaves_no_process(
    serve: Serve, connect: Connect, marker: str, survivors: Survivors
) -> None:
    server = serve("--backend", "process")
    backend = connect(server)
    box = backend.start(SPEC)
    with ThreadPoolExecutor(1) as pool:
        running = running_command(box, pool, marker)
        server.process.kill()
        began = time.monotonic()
        with pytest.raises(SandboxError, match="is `agentgym sandbox serve` running there"):
            running.result(60)
        assert time.monotonic() - began < 20
    assert eventually(lambda: survivors(marker) == [])
    began = time.monotonic()
    with pytest.raises(SandboxError, match="cannot be reached"):
        box.close()
    assert time.monotonic() - began < 2, "a server that is known to be gone is not waited for again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_server_that_is_told_to_end_tells_its_clients_and_removes_everything(
    serve: Serve, connect: Connect, marker: str, survivors: Survivors, number: signal.Signals
) -> None:
    server = serve("--backend", "process")
    box = connect(server).start(SPEC)
    with ThreadPoolExecutor(1) as pool:
        running = running_command(box, pool, marker)
        server.process.send_signal(number)
        with pytest.raises(SandboxError, match=r"shutting down|cannot be reached"):
            running.result(60)
    assert server.process.wait(30) == 0
    assert survivors(marker) == []
    assert survivors(box.id) == []


def test_a_server_in_anothers_place_gives_new_sandboxes(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-both-servers")
    file.chmod(0o600)
    first = serve("--backend", "process", "--token-file", str(file))
    backend = connect(first, token=None, token_file=file)
    old, idle = backend.start(SPEC), backend.start(SPEC)
    first.process.kill()
    first.process.wait()
    serve("--backend", "process", "--token-file", str(file), "--port", first.url.rpartition(":")[2])
    with pytest.raises(SandboxError, match=f"sandbox {old.id} is gone: the sandbox server does not know this client"):
        old.exec("true")
    idle.close()
    with backend.start(SPEC) as new:
        assert new.exec("echo alive").stdout == b"alive\n"


def test_a_backend_is_not_used_by_a_forked_child(server: Any, connect: Connect) -> None:
    backend = connect(server)
    with backend.start(SPEC) as box:
        child = os.fork()
        if child == 0:
            try:
                box.exec("true")
            except SandboxError as error:
                os._exit(17 if "after a fork" in str(error) else 18)
            finally:
                os._exit(19)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert box.exec("echo alive").stdout == b"alive\n"


def test_errors_cross_as_themselves(server: Any, connect: Connect) -> None:
    backend = connect(server)
    with backend.start(SPEC) as box:
        with pytest.raises(FileNotFoundError) as missing:
            box.read("no/file")
        assert (missing.value.errno, missing.value.filename) == (2, "no/file")
        with pytest.raises(ValueError, match="holds a NUL"):
            box.exec(["a\0b"])
        with pytest.raises(ValueError, match=r"exec.*stdin: Input should be a valid bytes"):
            box.exec("cat", stdin="text")  # type: ignore[arg-type]
        with pytest.raises(CapabilityError, match="session"):
            box.shell()
        with pytest.raises(CapabilityError, match="snapshot"):
            backend.fork("snapshot-1")


@pytest.mark.parametrize(
    "error",
    [
        AgentFault("its own fault"),
        InfrastructureError("ours"),
        SandboxError("gone"),
        CapabilityError("cannot"),
        KeyError("no snapshot 'x'"),
        TimeoutError("took no input"),
        ValueError("bad"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_on_the_other_side(error: Exception) -> None:
    other = raised(unpack(pack(describe(error))))
    assert type(other) is type(error)
    assert (str(other), other.args) == (str(error), error.args)


@pytest.fixture
def docker(serve: Serve, connect: Connect) -> RemoteBackend:
    from agentgym_sandboxes.docker import DockerBackend

    try:
        DockerBackend().check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    return connect(serve("--backend", "docker"))


@pytest.mark.docker
def test_shells_and_terminals_work_from_afar(docker: RemoteBackend) -> None:
    with docker.start(SPEC) as box:
        with box.shell() as one, box.shell() as two:
            one.run("cd /tmp; export A=1; f() { echo f; }")
            assert one.run("pwd; echo $A; f; printf '\\377' >&2").stdout == b"/tmp\n1\nf\n"
            assert two.run("pwd; exit 3").exit_code == 3
            assert one.run("sleep 60", timeout=0.3).timed_out
            assert one.run("echo $A").stdout == b"1\n"
        with pytest.raises(SandboxError, match="closed"):
            one.run("true")
        with box.terminal(rows=30, columns=100) as terminal:
            terminal.send("stty size; printf 'a\\377b'; echo end-$((6 * 7))\r")
            seen = terminal.read(until=b"end-42").data
            assert b"30 100" in seen
            assert b"a\xffb" in seen
            terminal.resize(40, 120)
            terminal.send(b"stty size; exit 5\r")
            deadline, seen, code = time.monotonic() + 20, b"", None
            while code is None and time.monotonic() < deadline:
                look = terminal.read()
                seen, code = seen + look.data, look.exit_code
            assert b"40 120" in seen
            assert code == 5
        with box.terminal("stty raw -echo; echo go; sleep 60") as deaf:  # or the terminal would throw it away
            deaf.read(until=b"go")
            with pytest.raises(TimeoutError, match="taken no input"):
                deaf.send(b"x" * (2 << 20), timeout=0.3)


@pytest.mark.docker
def test_a_client_cannot_use_anothers_sessions_and_snapshots(docker: RemoteBackend, connect: Connect) -> None:
    other = RemoteBackend(docker._url, token=docker._token)
    try:
        with docker.start(SPEC) as mine, other.start(SPEC) as theirs:
            shell = mine.shell()
            name = mine.snapshot()
            shell._lease = theirs._lease
            with pytest.raises(SandboxError, match="closed"):
                shell.run("true")
            for use in (other.fork, other.drop):
                with pytest.raises(KeyError, match="not this client's"):
                    use(name)
            with docker.fork(name) as branch:
                assert branch.exec("true").ok
            docker.drop(name)
            with pytest.raises(KeyError, match="dropped"):
                docker.fork(name)
    finally:
        other.close()
