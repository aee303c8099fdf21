"""This project's own backends: `process`, `docker`, and `docker` with a warm pool."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentgym.sandbox import SandboxSpec
from benchmarks.workers.worker import Box, Lacking, Session, System, serve

_WARM = 2
_SETTLE_S = 60.0


def settle(backend: Any, spec: SandboxSpec, warm: int) -> None:
    """Wait until a backend's pool is full and has nothing to do."""
    backend.prepare(spec, warm)
    deadline = time.monotonic() + _SETTLE_S
    while backend._pool._jobs and time.monotonic() < deadline:
        time.sleep(0.01)


class Ours(System):
    """One of our backends."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec = SandboxSpec()
        self.has_sessions = name != "process"
        self._snapshots: dict[str, str] = {}

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make the backend."""
        super().open(settings)
        if self._name == "process":
            from agentgym_sandboxes.process import ProcessBackend

            self._backend: Any = ProcessBackend()
        else:
            from agentgym_sandboxes.docker import DockerBackend

            self._backend = DockerBackend(self.image, settings["run"], warm=_WARM if self._name == "pool" else 0)
        self._backend.check()

    def before_start(self) -> None:
        """Fill the pool."""
        if self._name == "pool":
            self._backend.prepare(self._spec, _WARM)

    def settle(self) -> None:
        """Wait until the pool has removed what was used and replaced it."""
        if self._name == "pool":
            settle(self._backend, self._spec, _WARM)

    def start(self) -> Box:
        """Start a sandbox."""
        return self._backend.start(self._spec)

    def execute(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command."""
        done = box.exec(argv)
        return done.exit_code, done.output

    def session(self, box: Box) -> Session:
        """Open a shell."""
        return Shell(box.shell()) if self.has_sessions else super().session(box)

    def write(self, box: Box, path: str, data: bytes) -> None:
        """Write one file."""
        box.write(path, data)

    def read(self, box: Box, path: str) -> bytes:
        """Read one file."""
        found: bytes = box.read(path)
        return found

    def upload(self, box: Box, folder: str, host_folder: str) -> None:
        """Write many files."""
        box.upload({f"{folder}/{path.name}": path.read_bytes() for path in Path(host_folder).iterdir()})

    def download(self, box: Box, folder: str) -> dict[str, bytes]:
        """Read many files."""
        found: dict[str, bytes] = box.download(folder)
        return found

    def fork(self, box: Box) -> Box:
        """Freeze the files and start another sandbox with them."""
        if self._name == "process":
            raise Lacking("no fork")
        name = box.snapshot()
        other = self._backend.fork(name)
        self._snapshots[other.id] = name
        return other

    def unfork(self, box: Box) -> None:
        """Drop the frozen files, too."""
        self.remove(box)
        self._backend.drop(self._snapshots.pop(box.id))

    def containers(self, box: Box) -> list[str]:
        """Return the container, if it is one."""
        if self._name == "process":
            raise Lacking("no containers")
        return [box.id]

    def remove(self, box: Box) -> None:
        """Close a sandbox."""
        box.close()

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


class Shell:
    """A shell session as the benchmark wants it."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def run(self, script: str) -> str:
        """Run a script."""
        out: str = self._shell.run(script).output
        return out

    def close(self) -> None:
        """End the shell."""
        self._shell.close()


if __name__ == "__main__":
    serve(Ours(sys.argv[1]))
