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
from agentgym_sandboxes._proxy_rules import LABEL, Call, NewContainer, Refusal, judge, reduced

VOLUME = "agentgym-supervisor-x86_64-0123456789abcdef"
MOUNT: dict[str, Any] = {
    "Type": "volume",
    "Target": "/.agentgym",
    "Source": VOLUME,
    "ReadOnly": True,
    "VolumeOptions": {"NoCopy": True},
}
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
    "Mounts": [MOUNT],
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
BAD_MOUNTS: dict[str, list[Any]] = {
    "none": [],
    "two": [MOUNT, MOUNT],
    "a bind beside": [MOUNT, {"Type": "bind", "Source": "/", "Target": "/host"}],
    "no object": ["/:/host"],
    "bind": [{**MOUNT, "Type": "bind", "Source": "/"}],
    "bind of the name": [{**MOUNT, "Type": "bind"}],
    "tmpfs": [{"Type": "tmpfs", "Target": "/.agentgym"}],
    "elsewhere": [{**MOUNT, "Target": "/etc"}],
    "writable": [{**MOUNT, "ReadOnly": False}],
    "read-only unsaid": [{name: value for name, value in MOUNT.items() if name != "ReadOnly"}],
    "read-only as a number": [{**MOUNT, "ReadOnly": 1}],
    "another case beside": [{**MOUNT, "readonly": False}],
    "another case instead": [{**{n: v for n, v in MOUNT.items() if n != "ReadOnly"}, "readOnly": True}],
    "a second source": [{**MOUNT, "source": "/"}],
    "somebody else's volume": [{**MOUNT, "Source": "database"}],
    "a name that goes on": [{**MOUNT, "Source": f"{VOLUME}-evil"}],
    "a name with a line": [{**MOUNT, "Source": f"{VOLUME}\n"}],
    "a folder": [{**MOUNT, "Source": f"/{VOLUME}"}],
    "an unknown machine": [{**MOUNT, "Source": "agentgym-supervisor-riscv64-0123456789abcdef"}],
    "a driver": [{**MOUNT, "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Options": {"device": "/"}}}}],
    "a copy of the image's files": [{**MOUNT, "VolumeOptions": {"NoCopy": False}}],
    "propagation": [{**MOUNT, "BindOptions": {"Propagation": "rshared"}}],
}
BAD_CALLS = [
    ("POST", "/containers/abc/attach?logs=1"),
    ("GET", "/containers/abc/attach"),
    ("GET", "/containers/abc/attach/ws?stream=1"),
    ("GET", "/containers/abc/logs"),
    ("GET", "/containers/abc/export"),
    ("GET", "/containers/abc/changes"),
    ("POST", "/commit?container=abc"),
    ("HEAD", "/containers/abc/archive?path=/"),
    ("PUT", "/containers/abc/archive?path=/"),
    ("GET", "/containers/abc/archive?path=/"),
    ("POST", "/containers/abc/rename?name=x"),
    ("POST", "/build"),
    ("POST", "/images/create?fromImage=x"),
    ("DELETE", "/images/x"),
    ("POST", "/images/x/json"),
    ("GET", "/volumes"),
    ("POST", "/volumes/create"),
    ("GET", f"/volumes/{VOLUME}"),
    ("DELETE", f"/volumes/{VOLUME}"),
    ("POST", "/volumes/prune"),
    ("GET", "/images/json"),
    ("POST", "/containers/prune"),
    ("GET", "/system/df"),
    ("POST", "/networks/create"),
    ("POST", "/info"),
    ("GET", "/info/../containers/abc/json"),
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


@pytest.mark.parametrize("mounts", BAD_MOUNTS.values(), ids=BAD_MOUNTS.keys())
def test_nothing_is_mounted_but_the_supervisor_and_that_read_only(mounts: list[Any]) -> None:
    with pytest.raises(Refusal, match="Mounts must be a read-only volume"):
        _create({**BODY, "HostConfig": {**HOST, "Mounts": mounts}})


def test_a_container_that_is_let_through_says_which_volume_must_be_filled() -> None:
    mount = {**MOUNT, "Consistency": "", "TmpfsOptions": None}
    body = json.dumps({**BODY, "HostConfig": {**HOST, "Mounts": [mount]}}).encode()
    verdict = judge(Call.parse("POST", "/containers/create", body))
    assert verdict.makes == NewContainer("x", VOLUME)
    assert json.loads(verdict.call.body)["HostConfig"]["Mounts"] == [MOUNT]


@pytest.mark.parametrize("image", ["", "../x", "a b", "x?y=1", None, ["x"]])
def test_an_image_that_is_no_name_is_refused(image: object) -> None:
    with pytest.raises(Refusal, match="not an image's name"):
        _create({**BODY, "Image": image, "HostConfig": HOST})


def test_an_attachment_is_to_all_streams_and_nothing_else() -> None:
    call = judge(Call.parse("POST", "/v1.41/containers/abc/attach?stdin=1&detachKeys=ctrl-a", b"x")).call
    assert call.target == "/v1.41/containers/abc/attach?stdin=1&stdout=1&stderr=1&stream=1"
    assert call.body == b""


def test_what_docker_says_of_the_machine_is_reduced_to_what_sandboxes_need() -> None:
    status = [["Backing Filesystem", "xfs"], ["Data file", "/dev/sda"], ["Supports pquota", "true"]]
    secret = {"Name": "host", "ID": "x", "DockerRootDir": "/var", "HttpProxy": "http://u:p@h", "RegistryConfig": {}}
    runtimes = {"runc": {"path": "/usr/bin/runc"}}
    found = reduced({"Driver": "overlay2", "NCPU": 2, "DriverStatus": status, "Runtimes": runtimes, **secret})
    assert found == {
        "Driver": "overlay2",
        "NCPU": 2,
        "DriverStatus": [status[0], status[2]],
        "Runtimes": {"runc": {}},
    }


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
        with box.shell() as shell, box.terminal("cat") as terminal:
            assert shell.run("x=7; cd /tmp").ok
            assert shell.run('echo "$x $PWD"').stdout == b"7 /tmp\n"
            terminal.send("typed\r")
            assert b"typed" in terminal.read(until=b"typed").data
        assert box.exec(["id", "-u"], user="12345").stdout == b"12345\n"
        with backend.fork(box.snapshot()) as branch:
            assert branch.read("a/b") == data
    backend.close()


@pytest.mark.docker
def test_the_proxy_itself_fills_the_supervisors_volume_whenever_it_is_gone(
    proxy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    direct = _backend()
    api = direct._daemon.connect()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # with nothing built, and no compiler
    monkeypatch.setenv("PATH", "")
    backend = _backend()
    for _ in range(2):
        with backend.start(SandboxSpec()) as box:
            assert box.exec(["true"]).ok
            mount = api.inspect_container(box.id)["HostConfig"]["Mounts"][0]
            assert mount["ReadOnly"]
        try:
            api.remove_volume(mount["Source"])
        except Exception as error:
            if "in use" not in str(error) and "the socket proxy refuses" not in str(error):
                raise
            pytest.skip(f"the volume cannot be removed just now: {error}")
    assert not (tmp_path / "cache").exists()
    assert not api.containers(all=True, filters={"label": "agentgym.helper=proxy"})
    backend.close()
    direct.close()


@pytest.mark.docker
def test_a_caller_of_another_version_is_refused(proxy: Path) -> None:
    _backend().close()
    request = _posted("/containers/create", {**BODY, "HostConfig": HOST})
    answer = _send(proxy, request)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"it hands out the supervisor agentgym-supervisor-" in answer


@pytest.mark.docker
def test_docker_says_only_what_sandboxes_need_of_the_machine(proxy: Path) -> None:
    _backend().close()
    answer = json.loads(_send(proxy, b"GET /v1.41/info HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")[2])
    assert answer["Driver"]
    assert answer["AgentgymSupervisor"].startswith("agentgym-supervisor-")
    assert not answer.keys() & {"Name", "ID", "DockerRootDir", "RegistryConfig", "Labels", "HttpProxy", "Swarm"}


@pytest.fixture
def attached(proxy: Path) -> Iterator[tuple[socket.socket, str, Any]]:
    """A connection by hand to the streams of a container that copies its input."""
    backend = _backend()
    api = backend._daemon.connect()
    volume = json.loads(_send(proxy, b"GET /info HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")[2])["AgentgymSupervisor"]
    body = {"Image": "agentgym-base:latest", "User": "1000:1000", "Entrypoint": ["cat"], "OpenStdin": True}
    host = {**HOST, "Mounts": [{**MOUNT, "Source": volume}]}
    streams = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "StdinOnce": True}
    answer = _send(proxy, _posted("/containers/create", {**body, **streams, "HostConfig": host}))
    container = json.loads(answer.partition(b"\r\n\r\n")[2])["Id"]
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(10)
            caller.connect(str(proxy))
            line = f"POST /containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1"
            caller.sendall(f"{line}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode())
            assert caller.recv(65536).startswith(b"HTTP/1.1 101 ")
            yield caller, container, api
    finally:
        api.remove_container(container, force=True)
        backend.close()


def _posted(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@pytest.mark.docker
def test_an_attachment_carries_both_ways_and_ends_when_the_container_does(
    attached: tuple[socket.socket, str, Any], proxy: Path
) -> None:
    caller, container, api = attached
    assert _send(proxy, _posted(f"/containers/{container}/start", {})).startswith(b"HTTP/1.1 204 ")
    caller.sendall(b"GET /info HTTP/1.1\r\n\r\n")  # input, and no longer a request
    assert caller.recv(65536)[8:] == b"GET /info HTTP/1.1\r\n\r\n"
    api.kill(container)
    assert caller.recv(65536) == b""


@pytest.mark.docker
def test_an_attachment_ends_when_the_caller_hangs_up_and_lives_on_while_it_only_listens(
    attached: tuple[socket.socket, str, Any], proxy: Path
) -> None:
    caller, container, api = attached
    assert _send(proxy, _posted(f"/containers/{container}/start", {})).startswith(b"HTTP/1.1 204 ")
    caller.sendall(b"last words")
    caller.shutdown(socket.SHUT_WR)
    assert caller.recv(65536)[8:] == b"last words"
    assert caller.recv(65536) == b""  # its input ended, so the program did
    assert api.wait(container)["StatusCode"] == 0


@pytest.mark.docker
def test_no_connection_to_docker_outlives_the_callers(attached: tuple[socket.socket, str, Any], proxy: Path) -> None:
    caller, container, api = attached  # it never starts, so Docker itself would wait for ever
    assert _connections(proxy) == 1
    caller.close()
    deadline = time.monotonic() + 5
    while _connections(proxy) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _connections(proxy) == 0
    assert api.inspect_container(container)["State"]["Status"] == "created"


def _connections(listening: Path) -> int:
    """Count the accepted connections of a listening socket of this machine."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {listening}") and line.split()[5] == "03" for line in lines)


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
            (f"POST /containers/{box.id}/attach", b""),
            (f"GET /containers/{box.id}/stats", b""),
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
