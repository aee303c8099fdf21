"""Removing a container that ends in the same moment: the daemon's answers as it gave them, which no test can time."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

docker = pytest.importorskip("docker", reason="the docker extra is not installed")

from docker.errors import APIError, NotFound  # noqa: E402

from agentgym_sandboxes._removal import remove_container  # noqa: E402

NAME = "8490e9fabcfe"
ENDED_MEANWHILE = (
    500,
    f"Could not kill running container {NAME}, cannot remove - Container {NAME} is not running",
)
PODMANS = (500, f"given PID did not die within timeout: container {NAME}: container state improper")
BEING_REMOVED = (409, f"removal of container {NAME} is already in progress")
NONE = (404, f"No such container: {NAME}")
IN_USE = (409, "driver failed to remove root filesystem: device or resource busy")
REMOVED = (204, "")


class _Daemon(ThreadingHTTPServer):
    """Gives the answers that it was given, one after another, and the last one from then on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.answers: list[tuple[int, str]] = []
        self.asked: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    server: _Daemon

    def do_DELETE(self) -> None:
        self.server.asked.append(self.path)
        status, message = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        body = json.dumps({"message": message}).encode() if message else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass  # the tests' output is not the place


@pytest.fixture
def daemon() -> Iterator[_Daemon]:
    with _Daemon() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _remove(daemon: _Daemon, *answers: tuple[int, str], patience_s: float = 10) -> None:
    daemon.answers[:] = answers
    with closing(docker.APIClient(f"tcp://127.0.0.1:{daemon.server_port}", version="1.41")) as api:
        remove_container(api, NAME, patience_s)


@pytest.mark.parametrize("said", [ENDED_MEANWHILE, PODMANS], ids=["docker", "podman"])
def test_a_container_that_ends_as_it_is_killed_is_removed_all_the_same(daemon: _Daemon, said: tuple[int, str]) -> None:
    _remove(daemon, said, said, REMOVED)
    assert daemon.asked == [f"/v1.41/containers/{NAME}?v=True&link=False&force=True"] * 3


def test_what_somebody_else_removes_is_left_to_them(daemon: _Daemon) -> None:
    _remove(daemon, BEING_REMOVED)
    assert len(daemon.asked) == 1


def test_a_container_that_is_gone_is_said_to_be(daemon: _Daemon) -> None:
    with pytest.raises(NotFound):
        _remove(daemon, ENDED_MEANWHILE, NONE)
    assert len(daemon.asked) == 2


def test_other_refusals_come_at_once(daemon: _Daemon) -> None:
    with pytest.raises(APIError, match="resource busy"):
        _remove(daemon, IN_USE, REMOVED)
    assert len(daemon.asked) == 1


def test_a_daemon_that_never_sees_the_end_is_believed_after_a_while(daemon: _Daemon) -> None:
    with pytest.raises(APIError, match="is not running"):
        _remove(daemon, ENDED_MEANWHILE, patience_s=2.0)
    assert len(daemon.asked) > 1
