"""Where the daemon is: DOCKER_HOST as a socket, a TCP address, or over ssh."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from agentgym.errors import SandboxError

DEFAULT = "unix:///var/run/docker.sock"
_PATIENCE_S = 20.0
_KNOCK_S = 10.0


def host() -> str:
    """Return DOCKER_HOST, or where Docker listens by default."""
    return os.environ.get("DOCKER_HOST") or DEFAULT


def environment() -> dict[str, str]:
    """Return the environment for Docker's client, in which the daemon can be reached without ssh.

    Raises:
        SandboxError: what is missing and how to mend it.
    """
    where = host()
    if where.startswith("ssh://"):
        where = f"unix://{_tunnel(where)}"
    elif where.startswith("tcp://"):
        _knock_at_port(where)
    return {**os.environ, "DOCKER_HOST": where}


def is_cut_off() -> bool:
    """Whether there was a tunnel to the daemon and it ended."""
    with _lock:
        known = _tunnels.get(host())
        return known is not None and known.process.poll() is not None


def knock() -> None:
    """Try the daemon's socket ourselves: the SDK wraps the reason of a failure and leaves its socket open.

    Raises:
        SandboxError: nobody is there, or does not let us in.
    """
    where = host()
    if where.startswith("unix://"):
        _knock_at_socket(where)
    elif not where.startswith(("tcp://", "ssh://", "http://", "https://")):
        raise SandboxError(f"DOCKER_HOST is {where!r}: wanted unix://PATH, tcp://HOST:PORT or ssh://USER@HOST")


def _knock_at_socket(where: str) -> None:
    with socket.socket(socket.AF_UNIX) as knocker:
        try:
            knocker.connect(where.removeprefix("unix://"))
        except PermissionError as error:
            raise SandboxError(
                f"no permission on the Docker socket {where}: add this user to the group docker and log in again"
            ) from error
        except OSError as error:
            raise SandboxError(
                f"no Docker daemon answers at {where} ({error.strerror}): install it (`apt-get install docker.io`) "
                "and start it"
            ) from error


def _knock_at_port(where: str) -> None:
    address = urlsplit(where)
    port = address.port or (2376 if os.environ.get("DOCKER_TLS_VERIFY") else 2375)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_KNOCK_S).close()
    except OSError as error:
        raise SandboxError(f"no Docker daemon answers at {where} ({error.strerror or error})") from error


class _Tunnel:
    """The system's ssh, which carries connections to a socket here to the daemon's socket there."""

    def __init__(self, where: str) -> None:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise SandboxError(f"DOCKER_HOST is {where!r}, but ssh is not installed: `apt-get install openssh-client`")
        address = urlsplit(where)
        self._folder = tempfile.TemporaryDirectory(prefix="agentgym-ssh-")
        self.path = Path(self._folder.name, "docker.sock")
        argv = [ssh, "-nNT", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
        argv += ["-l", address.username] if address.username else []
        argv += ["-p", str(address.port)] if address.port else []
        argv += ["-L", f"{self.path}:{address.path or '/var/run/docker.sock'}", "--", address.hostname or ""]
        with Path(self._folder.name, "log").open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE_S
        while not self.path.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = Path(self._folder.name, "log").read_text(errors="replace").strip() or "no answer"
                self.close()
                raise SandboxError(f"ssh cannot reach the Docker daemon at {where}: {said[-300:]}")
            time.sleep(0.02)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self._folder.cleanup()


_tunnels: dict[str, _Tunnel] = {}
_lock = threading.Lock()


def _tunnel(where: str) -> Path:
    """Return the near end of the one tunnel of this process to a machine."""
    with _lock:
        known = _tunnels.get(where)
        if known is None or known.process.poll() is not None:
            if known is not None:
                known.close()
            made = _tunnels[where] = _Tunnel(where)
            atexit.register(made.close)
        return _tunnels[where].path
