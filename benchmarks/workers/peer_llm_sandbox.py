"""llm-sandbox's Docker session: `docker exec` through the SDK for each command."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
from llm_sandbox import SandboxSession  # type: ignore[import-not-found]

from benchmarks.workers.worker import Box, System, expect, serve

_CONNECTIONS = 64


class LLMSandbox(System):
    """Runs as root, as it insists on; its virtual environment in each sandbox is left out, as there is no network."""

    def open(self, settings: Mapping[str, Any]) -> None:
        """Connect."""
        super().open(settings)
        self._client = docker.from_env(max_pool_size=_CONNECTIONS)

    def start(self) -> Box:
        """Open a session."""
        limits = {
            "network_mode": "none",
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": "512m",
            "pids_limit": 66,
            "labels": self.labels,
        }
        box = SandboxSession(
            client=self._client,
            image=self.image,
            lang="python",
            runtime_configs=limits,
            workdir="/tmp",
            skip_environment_setup=True,
            keep_template=True,
        )
        box.open()
        return box

    def execute(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command."""
        done = box.execute_command(shlex.join(argv))
        return done.exit_code, done.stdout

    def write(self, box: Box, path: str, data: bytes) -> None:
        """Write one file: from a file of ours, as that is what it takes."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            box.copy_to_runtime(file.name, path)

    def read(self, box: Box, path: str) -> bytes:
        """Read one file, into a file of ours."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "file")
            box.copy_from_runtime(path, str(target))
            return target.read_bytes()

    def upload(self, box: Box, folder: str, host_folder: str) -> None:
        """Write many files."""
        box.copy_to_runtime(host_folder, folder)

    def download(self, box: Box, folder: str) -> dict[str, bytes]:
        """Read many files."""
        with tempfile.TemporaryDirectory() as target:
            box.copy_from_runtime(folder, f"{target}/many")
            return {path.name: path.read_bytes() for path in Path(target).rglob("*") if path.is_file()}

    def containers(self, box: Box) -> list[str]:
        """Return the container."""
        return [box.container.id]

    def remove(self, box: Box) -> None:
        """Close a session."""
        container = box.container.id
        box.close()
        expect(self._client.containers.list(all=True, filters={"id": container}), [], "what is left of the container")

    def discard(self, box: Box) -> None:
        """Remove its container, without waiting for it to stop."""
        box.container.remove(force=True)

    def close(self) -> None:
        """Hang up."""
        self._client.close()


if __name__ == "__main__":
    serve(LLMSandbox())
