"""A Docker daemon of the tests' own, which may be frozen, killed and started again without harm to anybody."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import docker
import pytest
import requests
from docker.errors import DockerException

IMAGE = "agentgym-busybox:latest"
_WAIT_S = 60


def why_not() -> str | None:
    """Return what keeps this machine from having one, if anything does."""
    if os.geteuid() != 0:
        return "a Docker daemon can be started by root only"
    missing = [name for name in ("dockerd", "containerd", "busybox") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def require() -> None:
    """Skip the test where there can be no such daemon, or fail it where there should be: in CI on a machine of its own.

    In a container that has only Docker's client, AGENTGYM_REQUIRE_DOCKER is "client".
    """
    if reason := why_not():
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


class PrivateDaemon:
    """dockerd with everything it has below one folder, and one image: busybox, which has a shell and no Python."""

    def __init__(self, *options: str, config: str = "{}") -> None:
        """Take further arguments and the configuration file's text."""
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="agd-"))
        self.url = f"unix://{self._folder}/d.sock"
        self._log = (self._folder / "log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        (self._folder / "daemon.json").write_text(config)
        # As on most machines, a service of its own that outlives the daemon.
        self._containerd = self._run(
            ["containerd", "--root", f"{self._folder}/c", "--state", f"{self._folder}/s", "--address", self._socket]
        )

    @property
    def _socket(self) -> str:
        return f"{self._folder}/c.sock"

    def _run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdout=self._log, stderr=self._log, start_new_session=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = self._run(
            [
                *("dockerd", "--containerd", self._socket),
                *("--data-root", f"{self._folder}/data", "--exec-root", f"{self._folder}/exec"),
                *("--pidfile", f"{self._folder}/pid", "--host", self.url),
                # Not `--bridge none`: that would remove docker0, on which the machine's own daemon depends.
                *("--iptables=false", "--ip-masq=false", "--ip-forward=false"),
                *("--config-file", f"{self._folder}/daemon.json"),
                *self._options,
            ]
        )
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as knocker:
                knocker.connect(self.url.removeprefix("unix://"))
                with suppress(DockerException, requests.RequestException), closing(self.client()) as client:
                    if client.ping():
                        return
            assert self._process.poll() is None, self.log()
            time.sleep(0.1)
        raise AssertionError(f"the private daemon did not come up: {self.log()}")

    def client(self) -> docker.APIClient:
        """Return a client of it."""
        return docker.APIClient(base_url=self.url, version="auto", timeout=60)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it and wait until each of its threads stands still."""
        assert self._process is not None
        self.send(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        deadline = time.monotonic() + _WAIT_S
        while any(one.read_text().rpartition(")")[2].split()[0] != "T" for one in threads.glob("*/stat")):
            assert time.monotonic() < deadline, "the private daemon cannot be frozen"
            time.sleep(0.01)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for that."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(_WAIT_S)
        Path(f"{self._folder}/pid").unlink(missing_ok=True)

    def load(self) -> None:
        """Make the image from this machine's busybox."""
        with closing(self.client()) as client:
            client.import_image_from_data(busybox_root(), repository=IMAGE.split(":")[0], tag="latest")

    def log(self) -> str:
        """Return the last of what it said."""
        return (self._folder / "log").read_text(errors="replace")[-2000:]

    def remove(self) -> None:
        """End it and remove everything."""
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self.stop()
        self._containerd.terminate()
        self._containerd.wait(_WAIT_S)
        subprocess.run(["pkill", "-KILL", "-f", str(self._folder)], check=False)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if str(self._folder) in line.split()[1]:
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def busybox_root() -> bytes:
    """Return a root filesystem of one static program as an archive."""
    program = Path(shutil.which("busybox") or "busybox").resolve()
    applets = subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "etc", "tmp", "proc", "dev"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name, data, mode in (
            ("bin/busybox", program.read_bytes(), 0o755),
            ("etc/passwd", b"root:x:0:0::/:/bin/sh\nagent:x:1000:1000::/tmp:/bin/sh\n", 0o644),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
        for applet in applets:
            if applet != "busybox":
                member = tarfile.TarInfo(f"bin/{applet}")
                member.type, member.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(member)
    return buffer.getvalue()
