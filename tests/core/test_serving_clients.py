"""Clients that are slow, silent, deaf or killed: each loses its own session at most, and others play on meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from env_server import TOKEN, ask, running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from agentgym.env import tool
from agentgym.serving.client import RemoteEnv
from agentgym.testing import ToyEnv, toy_task

HEAD = f"POST /sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"


class Wordy(ToyEnv):
    """A toy with much to say."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_turns=10_000, observation_limit=1 << 20, **options)

    @tool
    def speech(self) -> str:
        """Say much."""
        return "word " * 40_000


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def hung_up(line: socket.socket) -> bytes:
    """Read until the server hangs up; a reset is such an end."""
    found = b""
    try:
        while part := line.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def drips(line: socket.socket) -> bool:
    """Send one byte, if somebody still listens."""
    try:
        line.sendall(b" ")
    except OSError:
        return False
    return True


def play(url: str) -> float:
    """Play a whole episode and return its reward."""
    with closing(RemoteEnv(url, token=TOKEN, timeout_s=20)) as env:
        env.reset(options={"task": "toy-0"})
        reward = 0.0
        for line in ToyEnv().oracle(toy_task(0)):
            reward = env.step(line)[1]
        return reward


def sessions(client: httpx.Client) -> float:
    found = re.search(r"^agentgym_sessions (\S+)", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def becomes(wanted: float, client: httpx.Client, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while sessions(client) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return sessions(client) == wanted


def talk(url: str, **options: Any) -> ClientConnection:
    address = url.replace("http", "ws") + "/ws"
    found: ClientConnection = connect(address, additional_headers={"Authorization": f"Bearer {TOKEN}"}, **options)
    return found


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param("", b"", id="says nothing"),
        pytest.param("POST /sess", b"", id="stops within the head"),
        pytest.param(HEAD + "Content-Length: 20\r\n\r\n{", b"408", id="stops within the body"),
        pytest.param(HEAD + "Transfer-Encoding: chunked\r\n\r\n", b"408", id="never ends the body"),
        pytest.param(f"GET /health HTTP/1.1\r\nHost: x\r\n\r\n{HEAD[:30]}", b"200", id="stops within a second head"),
    ],
)
def test_a_client_that_stops_in_the_middle_is_hung_up_on(sent: str, told: bytes) -> None:
    with running(patience_s=0.5) as url, dial(url) as line:
        line.sendall(sent.encode())
        began = time.monotonic()
        assert play(url) == 1.0
        found = hung_up(line)
        assert found[9:12] == told
        assert time.monotonic() - began < 15


def test_a_body_that_comes_byte_by_byte_holds_nobody_up() -> None:
    with running(patience_s=1.5) as url, dial(url) as line, ask(url) as client:
        line.sendall((HEAD + "Content-Length: 2000\r\n\r\n{").encode())
        played, deadline = 0, time.monotonic() + 20
        while drips(line) and time.monotonic() < deadline:
            assert play(url) == 1.0
            played += 1
        assert not drips(line)  # it is hung up on while it still sends
        assert played >= 1
        assert sessions(client) == 0.0


def test_a_connection_outlives_the_time_after_which_clients_forget_it() -> None:
    with running() as url, closing(HTTPConnection(url.removeprefix("http://"), timeout=30)) as line:
        line.connect()
        first = line.sock
        for wait_s in (6.0, 0.0):
            line.request("GET", "/health")
            with line.getresponse() as found:
                assert (found.status, found.read()) == (200, b'{"status":"healthy"}')
            time.sleep(wait_s)
        assert line.sock is first


def test_hundreds_of_connections_that_say_nothing_keep_nobody_out() -> None:
    with running(patience_s=2.0) as url, ExitStack() as lines:
        silent = [lines.enter_context(dial(url)) for _ in range(300)]
        assert play(url) == 1.0
        assert all(hung_up(one) == b"" for one in silent)
        assert play(url) == 1.0


def test_a_socket_that_never_reads_loses_its_session_only() -> None:
    step = json.dumps({"type": "step", "data": {"tool_calls": [{"name": "speech"}]}})
    with running(Wordy, patience_s=0.5) as url, ask(url) as client, closing(RemoteEnv(url, token=TOKEN)) as mine:
        mine.reset(options={"task": "toy-0"})
        line = dial(url)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with talk(url, sock=line, max_queue=1, compression=None, close_timeout=0.1) as deaf:
            deaf.send(json.dumps({"type": "reset", "data": {"task": "toy-0"}}))
            assert becomes(2.0, client)
            for _ in range(100):
                deaf.send(step)
            assert becomes(1.0, client)
        assert mine.step("x")[2] is False
        assert play(url) == 1.0


def test_a_client_that_never_reads_an_answer_is_hung_up_on_and_its_session_can_go_on() -> None:
    with running(Wordy, patience_s=0.5) as url, ask(url) as client:
        session = client.post("/sessions", json={"task": "toy-0"}).json()["session_id"]
        body = json.dumps({"tool_calls": [{"name": "speech"}] * 100})
        head = HEAD.replace("/sessions", f"/sessions/{session}/step")
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = url.removeprefix("http://").split(":")
            line.connect((host, int(port)))
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            deadline = time.monotonic() + 20
            while client.get(f"/sessions/{session}").json()["step_count"] == 0 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(2.0)
            line.settimeout(20)
            assert len(hung_up(line)) < 100 * 200_000
        assert client.post(f"/sessions/{session}/step", json={"content": "x"}).status_code == 200


def test_a_silent_socket_is_closed_when_its_session_ends() -> None:
    with running(session_ttl_s=0.5) as url, ask(url) as client, talk(url, ping_interval=None) as silent:
        assert becomes(1.0, client)
        with pytest.raises(ConnectionClosed):
            silent.recv(20)
        assert becomes(0.0, client)


KILLED = {
    "socket": """
import json, sys
from websockets.sync.client import connect
s = connect(sys.argv[1].replace("http", "ws") + "/ws", additional_headers={"Authorization": "Bearer " + sys.argv[2]})
s.send(json.dumps({"type": "reset", "data": {"task": "toy-0"}})); s.recv()
print("ready", flush=True); input()
""",
    "http": """
import sys
from agentgym.serving.client import RemoteEnv
env = RemoteEnv(sys.argv[1], token=sys.argv[2]); env.reset(options={"task": "toy-0"})
print("ready", flush=True); input()
""",
}


@contextmanager
def killed(kind: str, url: str) -> Iterator[Callable[[], None]]:
    """Begin an episode in a process of its own, and yield what kills that."""
    command = [sys.executable, "-c", KILLED[kind], url, TOKEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield lambda: process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_client_loses_its_session_and_nobody_elses(kind: str) -> None:
    with running(session_ttl_s=3.0) as url, ask(url) as client, closing(RemoteEnv(url, token=TOKEN)) as mine:
        with killed(kind, url) as kill:
            mine.reset(options={"task": "toy-0"})
            assert sessions(client) == 2.0
            kill()
        gone_by = time.monotonic() + 20
        while sessions(client) != 1.0 and time.monotonic() < gone_by:
            assert mine.step("x")[2] is False  # a session that is used stays
            mine.reset(options={"task": "toy-0"})
            time.sleep(0.1)
        assert sessions(client) == 1.0
        assert mine.step("x")[2] is False


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that sandboxes can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="agentgym-test-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.usefixtures("needs_sandbox")
@pytest.mark.parametrize("busy", [False, True], ids=["between turns", "in the middle of a turn"])
def test_a_server_that_is_stopped_ends_every_session_and_sandbox(folder: Path, busy: bool) -> None:
    pause = f"61.{os.getpid()}"  # no other test's
    env = folder / "shell.py"
    env.write_text(SHELL)
    words = ["serve", str(env), "--port", "0", "--sandbox", "process"]
    command = [sys.executable, "-c", "from agentgym.cli import main; main()", *words]
    environment = {**os.environ, "AGENTGYM_ENV_TOKEN": TOKEN, "COLUMNS": "200", "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process, ExitStack() as stack:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert found, said
        client = stack.enter_context(ask(found[0]))
        ids = [client.post("/sessions", json={}).json()["session_id"] for _ in range(3)]
        line = stack.enter_context(talk(found[0]))
        line.send(json.dumps({"type": "reset", "data": {}}))
        line.recv(20)
        if busy:
            head = HEAD.replace("/sessions", f"/sessions/{ids[0]}/step")
            body = json.dumps({"tool_calls": [{"name": "shell", "arguments": {"command": f"sleep {pause}"}}]})
            hanging = stack.enter_context(dial(found[0]))
            hanging.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            assert until(lambda: f"sleep\0{pause}" in command_lines())
        assert len([*folder.glob("agentgym-*/*")]) >= 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert f"sleep\0{pause}" not in command_lines()
    assert [*folder.glob("agentgym-*/*")] == []


SHELL = '''
from agentgym.env import AgentEnv, tool
from agentgym.task import Public, Task, TaskSet


class ShellEnv(AgentEnv):
    """A shell."""

    sandboxed = True
    tasks = TaskSet("one", lambda: [Task(id="one", split="train", public=Public(prompt="Wait."))])

    @tool
    def shell(self, command: str) -> str:
        """Run a command."""
        return self.sandbox.exec(command, timeout=90).stdout.decode()

    def grade(self, task, submission):
        return 0.0
'''


def until(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def command_lines() -> str:
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(one.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(found)
