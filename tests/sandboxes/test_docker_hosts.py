"""Daemons elsewhere, and other runtimes: what differs is where they are, and nothing else."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec

docker = pytest.importorskip("docker", reason="the docker extra is not installed")

from private_daemon import IMAGE, PrivateDaemon, busybox_root, require  # noqa: E402

from agentgym_sandboxes.docker import DockerBackend  # noqa: E402

SPEC = SandboxSpec(memory_mb=32, pids=16)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


PORT = _free_port()


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    require()
    crun = shutil.which("crun")
    config = {"runtimes": {"crun": {"path": crun}}} if crun else {}
    daemon = PrivateDaemon("--host", f"tcp://127.0.0.1:{PORT}", "--tls=false", config=json.dumps(config))
    try:
        daemon.start()
        daemon.load()
        yield daemon
    finally:
        daemon.remove()


def _use(backend: DockerBackend) -> None:
    try:
        with backend.start(SPEC) as box:
            assert box.exec("cat; echo $((6 * 7))", stdin=b"in ").stdout == b"in 42\n"
            data = os.urandom(3_000_000)
            box.write("file", data)
            assert box.read("file", limit=1 << 22) == data
            with box.shell() as shell:
                shell.run("X=1")
                assert shell.run("echo $X").stdout == b"1\n"
            assert box.exec("sleep 60", timeout=0.5).timed_out
            with backend.fork(box.snapshot()) as fork:
                assert fork.read("file", limit=1 << 22) == data
    finally:
        backend.close()


@pytest.mark.docker
def test_over_tcp(daemon: PrivateDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{PORT}")
    _use(DockerBackend(image=IMAGE))


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[int]:
    """A real sshd on this machine's loopback, and an `ssh` that knows its keys."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH is not installed")
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "mine.pub").read_text())
    port = _free_port()
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nAllowStreamLocalForwarding yes\n"
    )
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    options = f"-F none -i {tmp_path}/mine -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    wrapper.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen([program, "-D", "-f", str(tmp_path / "sshd_config")]) as server:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        yield port
        server.terminate()


@pytest.mark.docker
def test_over_ssh(daemon: PrivateDaemon, sshd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    path = daemon.url.removeprefix("unix://")
    monkeypatch.setenv("DOCKER_HOST", f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}{path}")
    _use(DockerBackend(image=IMAGE))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("tcp://127.0.0.1:1", r"no Docker daemon answers at tcp://127.0.0.1:1 \(Connection refused\)"),
        ("ssh://nobody@127.0.0.1:1", r"ssh cannot reach the Docker daemon at ssh://nobody@127.0.0.1:1: .*refused"),
        ("carrier-pigeon://x", r"DOCKER_HOST is 'carrier-pigeon://x': wanted unix://PATH, tcp://HOST:PORT or ssh://"),
    ],
)
def test_a_daemon_that_is_not_there_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, where: str, said: str
) -> None:
    if where.startswith("ssh") and shutil.which("ssh") is None:
        pytest.skip("OpenSSH is not installed")
    monkeypatch.setenv("DOCKER_HOST", where)
    with pytest.raises(SandboxError, match=said):
        DockerBackend().check()


@pytest.mark.docker
def test_another_runtime_by_name(daemon: PrivateDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", daemon.url)
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    _use(DockerBackend(image=IMAGE, runtime="crun"))


@pytest.mark.docker
def test_a_runtime_that_is_not_there_is_one_clear_sentence(
    daemon: PrivateDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", daemon.url)
    with pytest.raises(SandboxError, match=r"knows no runtime 'kata', only .*runc.*: install it"):
        DockerBackend(image=IMAGE, runtime="kata").check()


@pytest.fixture
def podman() -> Iterator[str]:
    """Podman's own service, as root, with a configuration that also works inside a container."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("Podman is not installed, or may not run here")
    folder = Path(tempfile.mkdtemp(prefix="agp-"))  # names of sockets must be short
    (folder / "containers.conf").write_text(
        '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nruntime="runc"\n'
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver="vfs"\ngraphroot="{folder}/graph"\nrunroot="{folder}/run"\n'
    )
    socket_path = folder / "p.sock"
    names = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
    environment = {**os.environ, **{name: f"{folder}/{file}" for name, file in names.items()}}
    command = ["podman", "system", "service", "--time=0", f"unix://{socket_path}"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as service:
        deadline = time.monotonic() + 20
        while service.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as knocker:
                knocker.connect(str(socket_path))
                break
            time.sleep(0.05)
        yield f"unix://{socket_path}"
        service.terminate()
    subprocess.run(["podman", "system", "reset", "--force"], env=environment, capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.docker
def test_podman_differs_by_its_url_only(podman: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", podman)
    with closing(docker.APIClient(base_url=podman, version="auto")) as client:
        client.import_image_from_data(busybox_root(), repository="agentgym-busybox", tag="latest")
    _use(DockerBackend(image=f"docker.io/library/{IMAGE}"))
