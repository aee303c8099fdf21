"""inspect_ai's Docker sandbox: `docker compose exec` for each command."""

from __future__ import annotations

import io
import logging
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from inspect_ai.util._sandbox.docker.docker import DockerSandboxEnvironment  # type: ignore[import-not-found]
from inspect_ai.util._sandbox.docker.prereqs import validate_docker_compose  # type: ignore[import-not-found]

from benchmarks.workers.worker import AsyncSystem, Box, serve

_TASK = "benchmark"


class InspectAI(AsyncSystem):
    """Takes a compose file; many files at once go as one archive, because each of its own calls is a command or two."""

    def open(self, settings: Mapping[str, Any]) -> None:
        """Write the compose file: as its own default, with our limits."""
        super().open(settings)
        logging.disable(logging.ERROR)
        self.wait(validate_docker_compose())
        self._folder = tempfile.TemporaryDirectory(prefix="agentgym-benchmark-")
        service = {
            "image": self.image,
            "x-local": True,
            "command": "tail -f /dev/null",
            "init": True,
            "network_mode": "none",
            "stop_grace_period": "1s",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": "512m",
            "pids_limit": 66,
            "labels": self.labels,
        }
        self._config = Path(self._folder.name, "compose.yaml")
        self._config.write_text(yaml.safe_dump({"services": {"default": service}}))

    def start(self) -> Box:
        """Start a sample's environments."""
        return self.wait(DockerSandboxEnvironment.sample_init(_TASK, str(self._config), {}))

    async def execute_async(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command."""
        done = await box["default"].exec(list(argv))
        return done.returncode, done.stdout

    def write(self, box: Box, path: str, data: bytes) -> None:
        """Write one file."""
        self.wait(box["default"].write_file(path, data))

    def read(self, box: Box, path: str) -> bytes:
        """Read one file."""
        found: bytes = self.wait(box["default"].read_file(path, text=False))
        return found

    def upload(self, box: Box, folder: str, host_folder: str) -> None:
        """Write many files."""
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as archive:
            archive.add(host_folder, arcname=".")
        self.write(box, "/tmp/many.tar", whole.getvalue())
        self.execute(box, ["/bin/sh", "-c", f"mkdir -p {folder} && tar -C {folder} -xf /tmp/many.tar"])

    def download(self, box: Box, folder: str) -> dict[str, bytes]:
        """Read many files."""
        self.execute(box, ["tar", "-C", folder, "-cf", "/tmp/back.tar", "."])
        found = {}
        with tarfile.open(fileobj=io.BytesIO(self.read(box, "/tmp/back.tar"))) as archive:
            for one in archive:
                content = archive.extractfile(one)
                if content is not None:
                    found[PurePosixPath(one.name).name] = content.read()
        return found

    def containers(self, box: Box) -> list[str]:
        """Return the container."""
        name = self.wait(box["default"].connection()).container
        asked = ["docker", "inspect", "--format", "{{.Id}}", str(name)]
        return [subprocess.run(asked, stdout=subprocess.PIPE, check=True, text=True).stdout.strip()]

    def remove(self, box: Box) -> None:
        """Clean a sample up."""
        self.wait(DockerSandboxEnvironment.sample_cleanup(_TASK, str(self._config), box, False))

    def close(self) -> None:
        """Remove the compose file."""
        super().close()
        if hasattr(self, "_folder"):
            self._folder.cleanup()


if __name__ == "__main__":
    serve(InspectAI())
