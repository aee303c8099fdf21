"""Through the socket proxy one can run sandboxes, and can neither become root on the host nor touch others."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes._proxy_rules import LABEL, Call, Refusal, judge

HOST: dict[str, Any] = {
    "NetworkMode": "none",
    "ReadonlyRootfs": True,
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges:true"],
    "Memory": 1 << 26,
    "MemorySwap": 1 << 26,
    "PidsLimit": 10,
    "OomScoreAdj": 500,
    "LogConfig": {"Type": "none", "Config": {}},
}
BODY: dict[str, Any] = {"Image": "x", "User": "1000:1000"}
BAD_HOST: dict[str, Any] = {
    "Binds": ["/:/host"],
    "Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}],
    "VolumesFrom": ["other"],
    "Privileged": True,
    "PidMode": "host",
    "IpcMode": "host",
    "UTSMode": "host",
    "UsernsMode": "host",
    "CgroupParent": "/",
    "CapAdd": ["SYS_ADMIN"],
    "Devices": [{"PathOnHost": "/dev/sda"}],
    "DeviceRequests": [{"Count": -1}],
    "Runtime": "other",
    "Sysctls": {"a": "b"},
    "PortBindings": {"80/tcp": [{}]},
    "NetworkMode": "host",
    "SecurityOpt": ["seccomp=unconfined"],
    "CapDrop": [],
    "ReadonlyRootfs": False,
    "PidsLimit": -1,
    "Memory": 0,
    "OomScoreAdj": -1000,
    "LogConfig": {"Type": "syslog", "Config": {"syslog-address": "udp://10.0.0.1"}},
}
BAD_CALLS = [
    ("POST", "/containers/abc/attach"),
    ("PUT", "/containers/abc/archive?path=/"),
    ("GET", "/containers/abc/archive?path=/"),
    ("POST", "/containers/abc/rename?name=x"),
    ("POST", "/build"),
    ("POST", "/images/create?fromImage=x"),
    ("DELETE", "/images/x"),
    ("POST", "/images/x/json"),
    ("GET", "/volumes"),
    ("POST", "/volumes/create"),
    ("POST", "/networks/create"),
    ("GET", "/info"),
    ("POST", "/swarm/init"),
    ("GET", "/secrets"),
    ("GET", "/images/../containers/abc/json"),
    ("GET", "//containers/abc/json"),
    ("GET", "/containers/abc%2fjson"),
    ("GET", "/v1.41/v1.41/containers/abc/json"),
    ("POST", "/containers/abc/start/../../create"),
    ("GET", "/events"),
    ("GET", "/events?filters=%7B%22container%22%3A%5B%22a%22%2C%22b%22%5D%7D&until=1"),
]


def _create(body: dict[str, Any]) -> dict[str, Any]:
    checked = judge(Call.parse("POST", "/v1.41/containers/create", json.dumps(body).encode())).call
    assert checked.target == "/v1.41/containers/create"
    made: dict[str, Any] = json.loads(checked.body)
    return made


def test_a_hardened_container_passes_and_is_labelled() -> None:
    made = _create({**BODY, "HostConfig": HOST, "Volumes": None, "Labels": {"mine": "1"}})
    assert made == {**BODY, "HostConfig": HOST, "Labels": {"mine": "1", LABEL: "true"}}


@pytest.mark.parametrize("field", BAD_HOST)
def test_a_container_that_is_less_than_hardened_is_refused(field: str) -> None:
    with pytest.raises(Refusal, match=field):
        _create({**BODY, "HostConfig": {**HOST, field: BAD_HOST[field]}})


@pytest.mark.parametrize(
    "field", ["hostconfig", "HOSTCONFIG", "ho\u017ftconfig", "Volumes", "NetworkingConfig", "Runtime"]
)
def test_unknown_spellings_and_fields_are_refused(field: str) -> None:
    with pytest.raises(Refusal, match=field):
        _create({**BODY, "HostConfig": HOST, field: {"Privileged": True}})


def test_empty_fields_that_would_undo_others_are_dropped() -> None:
    made = _create({**BODY, "HostConfig": {**HOST, "capdrop": [], "securityopt": None, "MaskedPaths": []}})
    assert made["HostConfig"] == HOST


@pytest.mark.parametrize("user", ["", "0", "root", "0:0", "00", "1000:0", None, "-1"])
def test_root_is_refused_in_containers_and_commands(user: str | None) -> None:
    with pytest.raises(Refusal, match="not root"):
        _create({**BODY, "HostConfig": HOST, "User": user})
    with pytest.raises(Refusal, match="not root"):
        judge(Call.parse("POST", "/containers/abc/exec", json.dumps({"User": user}).encode()))


def test_a_privileged_command_is_refused_in_every_spelling() -> None:
    for name in ("Privileged", "privileged", "PRIVILEGED"):
        with pytest.raises(Refusal, match=name):
            judge(Call.parse("POST", "/containers/abc/exec", json.dumps({"User": "1000", name: True}).encode()))


@pytest.mark.parametrize(("method", "target"), BAD_CALLS)
def test_calls_that_sandboxes_do_not_need_are_refused(method: str, target: str) -> None:
    with pytest.raises(Refusal):
        judge(Call.parse(method, target, b"{}"))


def test_a_listing_shows_only_what_was_made_through_the_proxy() -> None:
    call = judge(Call.parse("GET", '/containers/json?all=1&filters={"label":["mine"]}', b"")).call
    assert json.loads(call.query["filters"]) == {"label": ["mine", LABEL]}


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Path]:
    upstream = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    listen = tmp_path / "docker.sock"
    argv = [sys.executable, "-m", "agentgym_sandboxes.socket_proxy", "--listen", str(listen), "--upstream", upstream]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not listen.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield listen
        process.kill()


def _backend() -> Any:
    module = pytest.importorskip("agentgym_sandboxes.docker", reason="the docker extra is not installed")
    backend = module.DockerBackend()
    try:
        backend.check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    return backend


def _send(where: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(str(where))
        caller.sendall(request)
        answer = b""
        while chunk := caller.recv(65536):
            answer += chunk
        return answer


@pytest.mark.docker
def test_the_docker_sandbox_works_through_the_proxy(proxy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _backend().close()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy}")
    backend = _backend()
    with backend.start(SandboxSpec(memory_mb=128)) as box:
        data = os.urandom(300_000)
        assert box.exec(["cat"], stdin=data, output_limit=1 << 20).stdout == data
        assert box.exec("sleep 60", timeout=0.5).timed_out
        assert box.exec(["python3", "-c", "bytearray(1 << 30)"]).oom
        box.write("a/b", data)
        assert box.download(".") == {"a/b": data}
    backend.close()


@pytest.mark.docker
def test_somebody_elses_container_is_out_of_reach(proxy: Path) -> None:
    backend = _backend()
    with backend.start(SandboxSpec()) as box:
        api = backend._daemon.connect()
        if LABEL in api.inspect_container(box.id)["Config"]["Labels"]:
            pytest.skip("this Docker is itself behind a proxy, so every container here was made through one")
        command = api.exec_create(box.id, ["id"])["Id"]
        filters = quote(f'{{"container": ["{box.id}"]}}')
        for line, body in (
            (f"GET /containers/{box.id}/json", b""),
            (f"POST /containers/{box.id}/kill", b""),
            (f"DELETE /containers/{box.id}?force=1", b""),
            (f"POST /exec/{command}/start", b"{}"),
            (f"POST /containers/{box.id}/exec", b'{"User": "1000", "Cmd": ["id"]}'),
            (f"GET /events?until=1&filters={filters}", b""),
        ):
            request = f"{line} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            answer = _send(proxy, request)
            assert answer.startswith(b"HTTP/1.1 403 "), line
            assert b"was not created through it" in answer, line
        assert box.id not in _send(proxy, b"GET /containers/json HTTP/1.1\r\n\r\n").decode()
        assert box.exec("true").ok
    backend.close()


@pytest.mark.docker
def test_a_second_request_behind_one_that_passed_is_not_read(proxy: Path) -> None:
    _backend().close()
    hidden = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
    for first in (
        b"GET /_ping HTTP/1.1\r\n\r\n",
        b"POST /exec/none/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}",
    ):
        answer = _send(proxy, first + hidden)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"KernelVersion" not in answer


@pytest.mark.docker
@pytest.mark.parametrize(
    "head",
    [
        "Transfer-Encoding: chunked",
        "Content-Length: 0\r\ncontent-length: 5",
        "Content-Length : 1",
        "Content-Length: -1",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(proxy: Path, head: str) -> None:
    assert _send(proxy, f"GET /_ping HTTP/1.1\r\n{head}\r\n\r\n".encode()).startswith(b"HTTP/1.1 403 ")
