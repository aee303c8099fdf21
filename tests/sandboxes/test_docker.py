"""What only the Docker backend promises: hardening, and the daemon's word on whose fault a death was."""

import io
import os
import socket
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import AgentFault, CapabilityError, SandboxError
from agentgym.sandbox import SandboxSpec

docker = pytest.importorskip("docker", reason="the docker extra is not installed")

from agentgym_sandboxes._tar import pack, unpack  # noqa: E402
from agentgym_sandboxes.docker import DockerBackend  # noqa: E402

needs_daemon = pytest.mark.docker


@pytest.fixture
def backend() -> Iterator[DockerBackend]:
    made = DockerBackend(run="test")
    try:
        made.check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


def _inspect(container: str) -> dict[str, Any]:
    with closing(docker.from_env()) as client:
        found: dict[str, Any] = client.api.inspect_container(container)
        return found


@needs_daemon
def test_the_container_is_hardened_and_says_who_owns_it(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec(memory_mb=64, pids=10, cpus=0.5)) as box:
        found = _inspect(box.id)
    host, labels = found["HostConfig"], found["Config"]["Labels"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] == host["MemorySwap"] == 64 << 20
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == 12
    assert not host["Binds"]
    assert not host["Privileged"]
    assert not found["Config"]["User"].startswith("0")
    assert labels["agentgym.run"] == "test"
    assert int(labels["agentgym.pid"]) == os.getpid()
    assert {"agentgym.host", "agentgym.boot", "agentgym.started", "agentgym.created"} <= labels.keys()


@needs_daemon
def test_the_disk_is_bounded_in_bytes_and_in_files(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec(disk_mb=8)) as box:
        fill = "head -c 9000000 /dev/zero > {0}/fill; head -c 9000000 /dev/zero > /tmp/fill; du -sck {0} /tmp | tail -1"
        assert int(box.exec(fill.format(box.workdir)).stdout.split()[0]) <= 8 * 1024
        box.exec("rm -f fill /tmp/fill")
        many = "i=0; while [ $i -lt 20000 ]; do : > f$i || exit 9; i=$((i + 1)); done"
        assert not box.exec(many).ok
        assert box.exec("echo alive").stdout == b"alive\n"


@needs_daemon
def test_orphans_are_reaped(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec()) as box:
        box.exec("for i in 1 2 3 4 5; do (sleep 0.05 &) ; done")
        time.sleep(0.3)
        assert b") Z " not in box.exec("cat /proc/[0-9]*/stat").stdout


@needs_daemon
@pytest.mark.parametrize(
    "attack",
    [
        "for s in $(seq 1 64); do kill -$s 1; done",
        "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p != $$ ] && kill -9 $p; done",
        "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p != $$ ] && kill -STOP $p; done",
        "prlimit --pid 1 --nofile=0:0 --cpu=1:1 --as=1:1 --fsize=0:0 --stack=0:0",
        "echo forged > /proc/1/fd/1; echo forged > /proc/1/fd/0; echo x > /proc/1/mem",
        "echo 1000 > /proc/1/oom_score_adj",
        "chrt --idle --pid 0 1; taskset --pid 1 1; renice 19 1",
        "rm -rf /.agentgym; echo x > /.agentgym/supervisor; umount /.agentgym",
    ],
)
def test_the_agent_cannot_hurt_the_first_process(backend: DockerBackend, attack: str) -> None:
    with backend.start(SandboxSpec()) as box:
        box.exec(attack, timeout=3)
        assert box.exec("echo alive").stdout == b"alive\n"
        box.write("file", b"x" * 100_000)
        assert box.read("file") == b"x" * 100_000
        with box.shell() as shell:
            assert shell.run("echo alive").stdout == b"alive\n"


@needs_daemon
def test_nobody_can_trace_or_read_the_first_process(backend: DockerBackend) -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, 1, 0, 0), os.strerror(ctypes.get_errno()))
for name in ("mem", "environ", "maps", "fd/0"):
    try:
        print(open(f"/proc/1/{name}", "rb").read(10))
    except OSError as error:
        print(error.strerror)
"""
    with backend.start(SandboxSpec()) as box:
        said = box.exec(["python3", "-c", script]).stdout.decode().splitlines()
    assert said == ["-1 Operation not permitted", *["Permission denied"] * 4]


@needs_daemon
def test_a_background_process_lives_on_until_the_next_command(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec()) as box:
        box.exec("(while [ ! -e go ]; do sleep 0.05; done; echo later > file; touch written) >/dev/null 2>&1 &")
        assert box.exec("cat file").exit_code == 1
        box.write("go", b"")
        assert box.exec("while [ ! -e written ]; do sleep 0.05; done", timeout=20).ok
        assert box.read("file") == b"later\n"


@needs_daemon
def test_a_command_that_ends_just_as_it_is_killed_takes_no_other_with_it(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec()) as box:
        box.exec("sleep 3600 >/dev/null 2>&1 & echo $! > pid")
        for i in range(100):
            with box.terminal(["sleep", f"0.00{i % 10}"]):
                time.sleep(0.0005 * (i % 12))
            box.exec(["sleep", "0.01"], timeout=0.010 + 0.0005 * (i % 8))
        assert box.exec("kill -0 $(cat pid)").ok


@needs_daemon
def test_processes_that_use_up_the_limit_do_not_keep_the_next_command_from_starting(backend: DockerBackend) -> None:
    fill = """
import os, time
try:
    while os.fork():
        pass
    time.sleep(60)
except OSError:
    os._exit(7)
"""
    with backend.start(SandboxSpec(pids=20)) as box:
        assert box.exec(["python3", "-c", fill]).exit_code == 7
        assert box.exec("echo alive").stdout == b"alive\n"
        box.write("file", b"data")
        assert box.read("file") == b"data"
        assert _inspect(box.id)["HostConfig"]["PidsLimit"] == 22


@needs_daemon
def test_a_bomb_that_fights_for_every_process_is_the_agents_fault_or_in_vain(backend: DockerBackend) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    with backend.start(SandboxSpec(pids=20)) as box:
        box.exec(["sh", "-c", 'python3 -c "$0" >/dev/null 2>&1 & sleep 0.3', bomb])
        for _ in range(3):
            try:
                assert box.exec(["sleep", "60"], timeout=0.5).timed_out
                assert box.exec("echo alive").stdout == b"alive\n"
            except AgentFault as error:
                assert "no room" in str(error)  # noqa: PT017
            else:
                break


@needs_daemon
def test_a_kill_for_memory_is_told_from_any_other_kill(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec(memory_mb=64)) as box:
        for _ in range(2):
            result = box.exec(["python3", "-c", "bytearray(1 << 28)"])
            assert (result.exit_code, result.oom) == (137, True)
            result = box.exec("kill -9 $$")
            assert (result.exit_code, result.oom) == (137, False)
        assert not box.exec("exit 1").oom


@needs_daemon
@pytest.mark.parametrize("how", ["kill", "remove_container", "stop"])
def test_a_container_that_somebody_else_ends_is_an_infrastructure_failure(backend: DockerBackend, how: str) -> None:
    with backend.start(SandboxSpec()) as box, closing(docker.from_env()) as client:
        options = {"force": True} if how == "remove_container" else {}
        getattr(client.api, how)(box.id, **options)
        for use in (lambda: box.exec("true"), lambda: box.read("x"), lambda: box.write("x", b"")):
            with pytest.raises(SandboxError, match=f"{box.id} (is gone|was stopped)"):
                use()


@needs_daemon
def test_the_container_ends_by_itself_even_if_nobody_asks(backend: DockerBackend) -> None:
    with backend.start(SandboxSpec(ttl_s=1)) as box:
        deadline = time.monotonic() + 20
        while _inspect(box.id)["State"]["Running"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _inspect(box.id)["State"]["Running"]
        with pytest.raises(SandboxError, match="ttl_s is over"):
            box.exec("true")


@needs_daemon
def test_an_unknown_image_is_one_clear_sentence(backend: DockerBackend) -> None:
    for refuse in (backend.accept, backend.start):
        with pytest.raises(SandboxError, match=r"'no/such:image' is not on this machine: pull or build it"):
            refuse(SandboxSpec(image="no/such:image"))


@needs_daemon
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("cpus", 10_000, r"cpus=10000, but the Docker machine has \d+"),
        ("memory_mb", 1 << 30, "memory_mb=1073741824, but"),
    ],
)
def test_an_impossible_limit_is_one_clear_sentence(backend: DockerBackend, field: str, value: int, said: str) -> None:
    for refuse in (backend.accept, backend.start):
        with pytest.raises(SandboxError, match=said):
            refuse(SandboxSpec.model_validate({field: value}))


@needs_daemon
def test_a_disk_that_cannot_be_bounded_is_refused(backend: DockerBackend) -> None:
    if "writable_root" not in backend.capabilities:
        pytest.skip("the socket proxy before this Docker allows no writable root at all")
    spec = SandboxSpec(writable_root=True, disk_mb=64)
    try:
        backend.accept(spec)
    except CapabilityError as error:
        assert "drop disk_mb or writable_root" in str(error)  # noqa: PT017
    else:
        with backend.start(spec) as box:
            assert not box.exec("head -c 100000000 /dev/zero > fill").ok


def test_a_missing_daemon_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxError, match=r"no Docker daemon answers at unix://.*none.sock \(No such file.*start it"):
        DockerBackend().check()


def test_a_socket_that_is_nobodys_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/dead.sock")
    with pytest.raises(SandboxError, match="no Docker daemon answers"):
        DockerBackend().check()


def _archive(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(_member(".", tarfile.DIRTYPE))
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, size
    return member


def test_packed_files_come_back_and_hard_links_come_as_files() -> None:
    files = {"a/b": b"1", "c" * 200: b"", "d\nd": b"\0"}
    assert unpack(_archive()[:512] + pack(files, 1000), 10, 100) == dict(sorted(files.items()))
    linked = _archive(_member("one", size=3), _member("two", tarfile.LNKTYPE, "one"))
    assert unpack(linked, 10, 100) == {"one": b"xxx", "two": b"xxx"}


@pytest.mark.parametrize("name", ["../up", "/absolute", "a/../../up", "a/" * 200 + "deep", "x\udcff"])
def test_a_hostile_name_in_an_archive_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|deep"):
        unpack(_archive(_member(name)), 10, 100)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_what_is_not_a_file_does_not_leave_an_archive(kind: bytes) -> None:
    assert unpack(_archive(_member("trap", kind, "/etc/passwd")), 10, 100) == {}


def test_an_archive_is_bounded_in_entries_and_bytes_and_may_be_garbage() -> None:
    with pytest.raises(ValueError, match="more than 2 entries"):
        unpack(_archive(*(_member(f"f{i}") for i in range(3))), 2, 100)
    with pytest.raises(ValueError, match="more than"):
        unpack(_archive(_member("big", size=101)), 10, 100)
    with pytest.raises(ValueError, match="more than 5 bytes"):
        unpack(_archive(_member("one", size=3), _member("two", tarfile.LNKTYPE, "one")), 10, 5)
    with pytest.raises(ValueError, match="broken archive"):
        unpack(os.urandom(2048), 10, 100)
