"""SWE-ReX: a server inside the container, asked over HTTP; `execute` is stateless, a session is a shell by pexpect."""

from __future__ import annotations

import base64
import io
import logging
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from swerex.deployment.docker import DockerDeployment  # type: ignore[import-not-found]
from swerex.runtime.abstract import (  # type: ignore[import-not-found]
    BashAction,
    CloseBashSessionRequest,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    UploadRequest,
    WriteFileRequest,
)

from benchmarks.workers.worker import AsyncSystem, Box, Session, serve


class SweRex(AsyncSystem):
    """Needs a published port, so its containers are on Docker's bridge."""

    has_sessions = True

    def open(self, settings: Mapping[str, Any]) -> None:
        """Silence its log."""
        super().open(settings)
        logging.disable(logging.ERROR)
        self._sessions = 0

    def start(self) -> Box:
        """Start a deployment."""
        labels = [word for pair in self.labels.items() for word in ("--label", "=".join(pair))]
        limits = ["--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--memory=512m", "--pids-limit=66"]
        box = DockerDeployment(image=self.image, pull="never", docker_args=[*labels, *limits])
        self.wait(box.start())
        return box

    async def execute_async(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command outside of any session."""
        done = await box.runtime.execute(Command(command=list(argv)))
        return done.exit_code, done.stdout

    def session(self, box: Box) -> Session:
        """Open a shell."""
        self._sessions += 1
        name = f"session-{self._sessions}"
        self.wait(box.runtime.create_session(CreateBashSessionRequest(session=name)))
        return Bash(self, box, name)

    def write(self, box: Box, path: str, data: bytes) -> None:
        """Write one file: text, as that is what it takes."""
        self.wait(box.runtime.write_file(WriteFileRequest(path=path, content=data.decode())))

    def read(self, box: Box, path: str) -> bytes:
        """Read one file: text."""
        found: str = self.wait(box.runtime.read_file(ReadFileRequest(path=path))).content
        return found.encode()

    def upload(self, box: Box, folder: str, host_folder: str) -> None:
        """Write many files."""
        self.wait(box.runtime.upload(UploadRequest(source_path=host_folder, target_path=folder)))

    def download(self, box: Box, folder: str) -> dict[str, bytes]:
        """Read many files: it has no call for it, so as one archive in a command's output."""
        _code, out = self.execute(box, ["/bin/sh", "-c", f"tar -C {folder} -c . | base64 -w 0"])
        found = {}
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(out))) as archive:
            for one in archive:
                content = archive.extractfile(one)
                if content is not None:
                    found[PurePosixPath(one.name).name] = content.read()
        return found

    def containers(self, box: Box) -> list[str]:
        """Return the container."""
        asked = ["docker", "inspect", "--format", "{{.Id}}", box.container_name]
        return [subprocess.run(asked, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()]

    def remove(self, box: Box) -> None:
        """Stop the deployment, which removes its container."""
        self.wait(box.stop())


class Bash:
    """One of its sessions."""

    def __init__(self, system: SweRex, box: Box, name: str) -> None:
        self._system, self._box, self._name = system, box, name

    def run(self, script: str) -> str:
        """Run a script."""
        done = self._system.wait(self._box.runtime.run_in_session(BashAction(command=script, session=self._name)))
        out: str = done.output
        return out

    def close(self) -> None:
        """Close it."""
        self._system.wait(self._box.runtime.close_session(CloseBashSessionRequest(session=self._name)))


if __name__ == "__main__":
    serve(SweRex())
