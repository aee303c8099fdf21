"""Who may use a sandbox server, and how much of it."""

from __future__ import annotations

import asyncio
import http.server
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from agentgym.cli import app
from agentgym.errors import CapabilityError, InfrastructureError, SandboxError
from agentgym.listening import find_token
from agentgym.sandbox import SandboxSpec
from agentgym.testing import CountingBackend
from agentgym_sandboxes.process import ProcessBackend
from agentgym_sandboxes.remote import RemoteBackend
from agentgym_sandboxes.remote_wire import LEASE_HEADER, PROTOCOL_HEADER, pack, raised, unpack
from agentgym_sandboxes.serving.app import create_app
from agentgym_sandboxes.serving.desk import Desk
from agentgym_sandboxes.serving.limits import Limits
from agentgym_sandboxes.serving.server import TOKEN_VARIABLE
from agentgym_sandboxes.serving.server import serve as serve_backend
from agentgym_sandboxes.serving.tenant import Tenant

Serve = Callable[..., Any]
SPEC = SandboxSpec()


@pytest.fixture
def connect() -> Iterator[Callable[..., RemoteBackend]]:
    made: list[RemoteBackend] = []

    def one(server: Any, **options: Any) -> RemoteBackend:
        made.append(RemoteBackend(**{"url": server.url, "token": server.token, "patience_s": 3.0, **options}))
        return made[-1]

    yield one
    for backend in made:
        with suppress(SandboxError):
            backend.close()


def speak(server: Any, **headers: str) -> httpx.Client:
    known = {"Authorization": f"Bearer {server.token}", PROTOCOL_HEADER: "1", LEASE_HEADER: secrets.token_hex(32)}
    return httpx.Client(base_url=server.url, headers={**known, **headers}, trust_env=False, timeout=30)


def begin(server: Any, known: httpx.Client, length: str) -> bytes:
    """Return the answer to a call of which only the head is sent."""
    host, port = server.url.removeprefix("http://").split(":")
    head = "".join(f"{key}: {value}\r\n" for key, value in known.headers.items() if key != "host")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(f"POST /v1/calls/0 HTTP/1.1\r\nHost: x\r\n{head}{length}\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    return answer


def sentence(response: httpx.Response) -> str:
    return str(response.json()["error"]["arguments"][0])


def test_a_wrong_or_missing_token_is_one_clear_sentence(
    server: Any, connect: Callable[..., RemoteBackend], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = connect(server, token=server.token[:-1] + "!")
    for use in (wrong.check, lambda: wrong.start(SPEC), lambda: wrong.capabilities):
        with pytest.raises(SandboxError, match="refuses the token"):
            use()
    monkeypatch.delenv("AGENTGYM_SANDBOX_TOKEN", raising=False)
    with pytest.raises(SandboxError, match="give token_file, or set AGENTGYM_SANDBOX_TOKEN"):
        connect(server, token=None).check()
    with pytest.raises(SandboxError, match="cannot be read"):
        connect(server, token=None, token_file=tmp_path / "none").check()
    with pytest.raises(ValueError, match="exclude one another"):
        connect(server, token="x", token_file="y")
    (tmp_path / "token").write_text(f"{server.token}\n")
    connect(server, token=None, token_file=tmp_path / "token").check()


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic x", "Bearer \xff"])
def test_without_the_token_nothing_but_health_answers(server: Any, authorization: str) -> None:
    paths = (("GET", "/v1/backend"), ("PUT", "/v1/lease"), ("POST", "/v1/lease"), ("DELETE", "/v1/lease"),
             ("POST", "/v1/calls/0"), ("GET", "/v1/calls/0"))  # fmt: skip
    with httpx.Client(base_url=server.url, trust_env=False) as stranger:
        for method, path in paths:
            headers = {b"Authorization": authorization.encode("latin-1")}
            assert stranger.request(method, path, headers=headers).status_code == 401, path
        for path in ("/docs", "/redoc", "/openapi.json", "/"):
            assert stranger.get(path).status_code == 404
        assert stranger.get("/health").json() == {"status": "ok"}


def test_another_release_is_told_so(server: Any) -> None:
    with speak(server, **{PROTOCOL_HEADER: "99"}) as other:
        answer = other.get("/v1/backend")
    assert answer.status_code == 426
    assert "speaks protocol 1 and its client 99: install the same release" in sentence(answer)


def test_no_server_and_something_else_than_a_server_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(SandboxError, match=r"cannot be reached \(.*refused\); is `agentgym sandbox serve` running"):
        RemoteBackend(f"http://127.0.0.1:{free}", token="x" * 20).check()
    assert time.monotonic() - began < 5
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        backend = RemoteBackend(f"http://127.0.0.1:{other.server_port}", token="x" * 20)
        with pytest.raises(SandboxError, match="HTTP status 501, as no sandbox server of ours does"):
            backend.check()
        backend.close()
        other.shutdown()


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "ftp://host", "http://", "http://user:word@host", "http://[::1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SandboxError, match="wanted the URL of a sandbox server"):
        RemoteBackend(url, token="x" * 20).check()


def test_a_settled_call_never_runs_again(server: Any) -> None:
    with speak(server) as client:
        client.put("/v1/lease")
        start = pack({"call": "start", "spec": {}})
        first = unpack(client.post("/v1/calls/0", params={"wait": 20}, content=start).content)
        again = unpack(client.post("/v1/calls/0", params={"wait": 20}, content=start).content)
        assert first == again
        assert "id" in first["value"]
        client.post("/v1/lease", headers={"Agentgym-Done": "0"})
        late = client.post("/v1/calls/0", params={"wait": 20}, content=start)
        assert late.status_code == 429
        assert "will not run again" in sentence(late)
        client.post("/v1/lease", headers={"Agentgym-Abandoned": "5"})
        assert client.post("/v1/calls/5", content=start).status_code == 429
        assert client.post("/v1/calls/4", content=start).status_code in (200, 202)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", "not one MessagePack value"),
        (b"\xc1", "not one MessagePack value"),
        (b"\x91" * 100_000, "not one MessagePack value"),
        (pack([1, 2]), "Input should be a valid dictionary"),
        (pack({"call": "reboot"}), "does not match any of the expected tags"),
        (pack({"call": "read", "sandbox": "x", "path": 1, "limit": 1}), "path: Input should be a valid string"),
        (pack({"call": "start", "spec": {"memory": 1}}), "spec.memory: Extra inputs"),
    ],
    ids=["empty", "never-used", "deep", "list", "unknown", "wrong-type", "unknown-field"],
)
def test_a_malformed_call_is_one_clear_sentence(server: Any, body: bytes, wanted: str) -> None:
    with speak(server) as client:
        client.put("/v1/lease")
        answer = client.post("/v1/calls/0", content=body)
        assert answer.status_code == 422
        assert wanted in sentence(answer)


def test_what_is_too_large_is_refused_on_both_sides_and_both_ways(
    serve: Serve, connect: Callable[..., RemoteBackend]
) -> None:
    server = serve("--backend", "process", "--limit", "body_mb=1", "--limit", "pending_mb=2")
    with connect(server).start(SPEC) as box:
        with pytest.raises(ValueError, match=r"upload would send .* more than the 1048576"):
            box.write("big", b"x" * (1 << 20))
        for use in (
            lambda: box.exec("true", output_limit=(1 << 20) + 1),
            lambda: box.read("x", limit=(1 << 20) + 1),
            lambda: box.download("."),
        ):
            with pytest.raises(ValueError, match="more than the 1048576 bytes that this sandbox server sends at once"):
                use()
        half = bytes(range(256)) * 2048
        box.write("half", half)
        assert box.exec("cat half; cat >&2", stdin=half, output_limit=1 << 19).stdout == half
        with speak(server) as raw:
            raw.put("/v1/lease")
            answer = begin(server, raw, f"Content-Length: {(1 << 20) + 1}")
            assert b" 413 " in answer
            assert b"more than the 1048576 that this sandbox server takes" in answer
            assert b" 411 " in begin(server, raw, "Transfer-Encoding: chunked")
        assert box.exec("echo alive").stdout == b"alive\n"


def test_a_slow_client_delays_nobody_and_is_cut_off(serve: Serve, connect: Callable[..., RemoteBackend]) -> None:
    server = serve("--backend", "process", "--limit", "stall_s=5")
    host, port = server.url.removeprefix("http://").split(":")
    key = secrets.token_hex(32)
    with speak(server, **{LEASE_HEADER: key}) as known, connect(server).start(SPEC) as box:
        known.put("/v1/lease")
        slow = [socket.create_connection((host, int(port))) for _ in range(20)]
        for number, one in enumerate(slow):
            one.sendall(
                f"POST /v1/calls/{number} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
                f"{PROTOCOL_HEADER}: 1\r\n{LEASE_HEADER}: {key}\r\nContent-Length: 1000\r\n\r\nx".encode()
            )
        began = time.monotonic()
        assert box.exec("echo quick").stdout == b"quick\n"
        assert time.monotonic() - began < 4
        for one in slow:
            with one:
                one.settimeout(20)
                assert b" 408 " in one.recv(1 << 16).partition(b"\r\n")[0]


def test_more_than_fits_at_once_waits_outside(serve: Serve, connect: Callable[..., RemoteBackend]) -> None:
    server = serve("--backend", "process", "--limit", "body_mb=4", "--limit", "pending_mb=4")
    with connect(server).start(SPEC) as box, ThreadPoolExecutor(8) as pool:
        data = bytes(3 << 20)

        def send(number: int) -> None:
            box.write(f"f{number}", data)
            box.exec("sleep 0.1", stdin=data)

        list(pool.map(send, range(16)))
        assert box.exec("cat f* | wc -c").stdout.strip() == str(16 * len(data)).encode()


def test_a_client_that_reads_nothing_delays_nobody(server: Any, connect: Callable[..., RemoteBackend]) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with speak(server) as known, connect(server).start(SPEC) as box:
        known.put("/v1/lease")
        started = known.post("/v1/calls/0", params={"wait": 20}, content=pack({"call": "start", "spec": {}}))
        name = unpack(started.content)["value"]["id"]
        options = {"stdin": b"", "user": None, "cwd": None, "env": None, "output_limit": 50_000_000, "timeout": 30.0}
        asked = {"call": "exec", "sandbox": name, "command": "head -c 50000000 /dev/zero", **options}
        body = pack(asked)
        with socket.create_connection((host, int(port))) as deaf:
            head = "".join(f"{key}: {value}\r\n" for key, value in known.headers.items() if key != "host")
            request = f"POST /v1/calls/1?wait=20 HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n"
            deaf.sendall(request.encode() + body)
            time.sleep(1)
            began = time.monotonic()
            for _ in range(5):
                assert box.exec("echo quick").stdout == b"quick\n"
            assert time.monotonic() - began < 5


def test_limits_are_refused_by_name(serve: Serve, connect: Callable[..., RemoteBackend]) -> None:
    server = serve("--backend", "process", "--limit", "clients=2", "--limit", "sandboxes=2")
    one, two, three = connect(server), connect(server), connect(server)
    boxes = [one.start(SPEC), one.start(SPEC)]
    with pytest.raises(SandboxError, match="has 2 sandboxes, as many as the sandbox server allows"):
        one.start(SPEC)
    with two.start(SPEC) as other:
        assert other.exec("true").ok
    with pytest.raises(SandboxError, match="has 2 clients, as many as it allows"):
        three.start(SPEC)
    boxes.pop().close()
    one.start(SPEC)
    two.close()
    three.start(SPEC)


def test_commands_wait_for_their_turn_and_what_ends_them_does_not(
    serve: Serve, connect: Callable[..., RemoteBackend]
) -> None:
    server = serve("--backend", "process", "--limit", "calls_per_client=2")
    one, two = connect(server), connect(server)
    with one.start(SPEC) as box, two.start(SPEC) as other, ThreadPoolExecutor(6) as pool:
        began = time.monotonic()
        assert all(pool.map(lambda _: box.exec("sleep 1", timeout=2.5).ok, range(6)))
        assert time.monotonic() - began > 2.9
        stuck = [pool.submit(box.exec, "sleep 60", timeout=60) for _ in range(5)]
        time.sleep(0.5)
        assert other.exec("echo free").stdout == b"free\n"
        began = time.monotonic()
        box.close()
        for one_of in stuck:
            with pytest.raises(SandboxError, match="closed"):
                one_of.result(20)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is not a loopback address: whoever reaches it and has the token"),
        (["--host", "::"], "is not a loopback address"),
        (["--host", "no such host"], "cannot listen on"),
        (["--limit", "sandboxs=3"], "limit sandboxs: there is no such limit; known: clients, sandboxes"),
        (["--limit", "sandboxes=0"], "limit sandboxes: Input should be greater than or equal to 1"),
        (["--limit", "pending_mb=1"], "leaves no room for one body"),
        (["--token-file", "/nowhere/token"], "the token file /nowhere/token cannot be read"),
        (["--backend", "proces"], "did you mean 'process'?"),
        (["images=x"], "it takes: trusted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_server_that_cannot_be_is_refused_with_one_sentence(arguments: list[str], wanted: str) -> None:
    result = CliRunner().invoke(app, ["sandbox", "serve", "--backend", "process", "--port", "0", *arguments])
    assert wanted in str(result.exception)


def test_a_taken_port_is_named(server: Any) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(InfrastructureError, match=f"cannot listen on 127.0.0.1 port {port}"):
        serve_backend(ProcessBackend(), port=int(port), say=print)


def test_a_backend_that_does_not_isolate_is_not_lent() -> None:
    open_one = CountingBackend(ProcessBackend())
    open_one.capabilities = frozenset(("network_full",))
    with pytest.raises(CapabilityError, match="does not isolate"):
        serve_backend(open_one, port=0, say=print)


class _Unwell(CountingBackend):
    def check(self) -> None:
        raise SandboxError("the daemon is gone; start it")


def test_a_backend_that_fails_later_says_so_to_clients() -> None:
    desk = Desk(_Unwell(ProcessBackend()), Limits())

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(desk, "a-token-of-some-length"))
        headers = {"Authorization": "Bearer a-token-of-some-length", PROTOCOL_HEADER: "1"}
        async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
            return await client.get("/v1/backend")

    answer = asyncio.run(ask())
    desk.close()
    assert str(raised(answer.json()["error"])) == "the daemon is gone; start it"


def test_a_token_that_nobody_gave_is_said_once_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGYM_SANDBOX_TOKEN", raising=False)
    program = [sys.executable, "-c", "from agentgym.cli import main; main()"]
    with subprocess.Popen(
        [*program, "sandbox", "serve", "--backend", "process", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        token, url = (process.stdout.readline().split()[-1] for _ in range(2))
        backend = RemoteBackend(url, token=token)
        with backend.start(SPEC) as box:
            assert box.exec("echo alive").stdout == b"alive\n"
        backend.close()
        process.terminate()
        assert token not in process.stdout.read()


def test_a_token_is_made_once_or_taken_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AGENTGYM_SANDBOX_TOKEN", raising=False)
    made = [find_token(None, TOKEN_VARIABLE) for _ in range(2)]
    assert all(is_new and len(token) >= 32 for token, is_new in made)
    assert made[0] != made[1]
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length\n")
    file.chmod(0o600)
    assert find_token(file, TOKEN_VARIABLE) == ("a-token-of-some-length", False)
    assert not caplog.records
    file.chmod(0o644)
    find_token(file, TOKEN_VARIABLE)
    assert "other users can read the token" in caplog.text
    monkeypatch.setenv("AGENTGYM_SANDBOX_TOKEN", "short")
    with pytest.raises(InfrastructureError, match="AGENTGYM_SANDBOX_TOKEN must have at least 16"):
        find_token(None, TOKEN_VARIABLE)


def test_a_server_is_exposed_by_an_explicit_word_and_its_client_is_warned(
    serve: Serve, connect: Callable[..., RemoteBackend], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve("--backend", "process", "--host", "0.0.0.0", "--expose")
    with connect(server).start(SPEC) as box:
        assert box.exec("echo alive").stdout == b"alive\n"
    assert "unencrypted" in caplog.text


def test_a_server_builds_nothing_for_its_clients() -> None:
    watched = CountingBackend(ProcessBackend())
    tenant = Tenant(watched, Limits())
    spec = SandboxSpec(image='build:{"run":["id"]}')
    for refuse in (tenant.accept, tenant.start):
        with pytest.raises(CapabilityError, match="builds no images for its clients"):
            refuse(spec)
    assert watched.started == 0
