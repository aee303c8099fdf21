"""What untrusted code cannot see or reach."""

import socket
from pathlib import Path

import pytest

from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec


def test_the_command_is_not_root(box: Sandbox) -> None:
    uid, groups = box.exec("id -u; id -G").stdout.decode().splitlines()
    assert uid != "0"
    assert "0" not in groups.split()


def test_the_command_has_no_capability_and_can_gain_none(box: Sandbox) -> None:
    if not box.exec("test -e /proc/self/status").ok:
        pytest.skip("this machine forbids a sandbox its own /proc, where the kernel would tell")
    status = box.exec("grep -E 'CapEff|CapPrm|CapBnd|NoNewPrivs' /proc/self/status").stdout.decode()
    assert {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines()} == {
        "CapPrm:": 0,
        "CapEff:": 0,
        "CapBnd:": 0,
        "NoNewPrivs:": 1,
    }


@pytest.mark.parametrize("script", ["mount -t tmpfs none /mnt", "chroot /", "hostname x"])
def test_privileged_calls_fail(box: Sandbox, script: str) -> None:
    assert not box.exec(script).ok


def test_the_hosts_files_are_not_there(box: Sandbox) -> None:
    repository, home = Path(__file__).resolve().parents[2], Path.home()
    for path in (repository, home / ".bashrc", home / ".ssh", "/var/lib/docker", "/var/run/docker.sock", "/boot/grub"):
        result = box.exec(f"ls -d {path} {path}/*")
        assert result.stdout == b"", path
    assert box.exec("cat /etc/shadow; head -c 10 /proc/kcore /dev/mem /proc/kmsg").stdout == b""


def test_system_folders_are_read_only(box: Sandbox) -> None:
    for folder in ("/", "/usr/bin", "/etc", "/lib", "/proc/sys/kernel"):
        assert not box.exec(f"echo x > {folder}/agentgym-test").ok, folder
    assert not box.exec("echo x >> /etc/passwd").ok


def test_there_is_no_network_but_its_own_loopback(box: Sandbox) -> None:
    reach = "import socket; socket.create_connection(('{}', {}), 2)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not box.exec(["python3", "-c", reach.format("127.0.0.1", port)]).ok
    for address in ("169.254.169.254", "172.17.0.1", "1.1.1.1"):
        assert b"unreachable" in box.exec(["python3", "-c", reach.format(address, 80)]).stderr
    own = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    assert box.exec(["python3", "-c", own]).ok


def test_abstract_sockets_of_the_host_are_out_of_reach(box: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0agentgym-test-abstract")
        server.listen()
        script = "import socket; socket.socket(socket.AF_UNIX).connect('\\0agentgym-test-abstract')"
        assert b"ConnectionRefusedError" in box.exec(["python3", "-c", script]).stderr


def test_other_processes_cannot_be_seen(box: Sandbox) -> None:
    seen = box.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout.decode()
    assert "pytest" not in seen
    assert "dockerd" not in seen


def test_one_sandbox_cannot_see_another(backend: SandboxBackend) -> None:
    with backend.start(SandboxSpec()) as one, backend.start(SandboxSpec()) as two:
        assert one.id != two.id
        one.exec("echo secret > mine; echo secret > /tmp/mine; echo secret > /dev/shm/mine")
        assert two.exec("cat mine /tmp/mine /dev/shm/mine; grep -rs secret /workspace /tmp").stdout == b""
        assert b"No such file" in two.exec(f"ls {one.workdir}/mine").stderr


def test_no_descriptor_of_ours_leaks_in(box: Sandbox, tmp_path: Path) -> None:
    script = """
import os
for number in range(1024):
    try:
        os.fstat(number)
    except OSError:
        continue
    print(number, end=" ")
"""
    with (tmp_path / "open").open("w"):
        assert box.exec(["python3", "-c", script]).stdout == b"0 1 2 "


def test_the_terminal_of_the_caller_is_out_of_reach(box: Sandbox) -> None:
    assert not box.exec("echo x > /dev/tty").ok
    assert box.exec("tty").stdout == b"not a tty\n"
