"""Docker as it is: a container, and `docker exec` through Docker's own SDK for each command."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import docker

from benchmarks.workers.worker import Box, System, serve

_CONNECTIONS = 64


class DockerExec(System):
    """Containers hardened as ours are, but for a writable root: `docker cp` cannot see a tmpfs."""

    def open(self, settings: Mapping[str, Any]) -> None:
        """Connect."""
        super().open(settings)
        self._client = docker.from_env(max_pool_size=_CONNECTIONS)

    def start(self) -> Box:
        """Create and start a container."""
        return self._run(self.image)

    def execute(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command."""
        done = box.exec_run(list(argv))
        return done.exit_code, done.output.decode()

    def write(self, box: Box, path: str, data: bytes) -> None:
        """Write one file."""
        where = PurePosixPath(path)
        box.put_archive(str(where.parent), _packed({where.name: data}))

    def read(self, box: Box, path: str) -> bytes:
        """Read one file."""
        pieces, _about = box.get_archive(path)
        return next(iter(_unpacked(b"".join(pieces)).values()))

    def upload(self, box: Box, folder: str, host_folder: str) -> None:
        """Write many files."""
        name = PurePosixPath(folder).name
        files = {f"{name}/{path.name}": path.read_bytes() for path in Path(host_folder).iterdir()}
        box.put_archive(str(PurePosixPath(folder).parent), _packed(files))

    def download(self, box: Box, folder: str) -> dict[str, bytes]:
        """Read many files."""
        pieces, _about = box.get_archive(folder)
        return _unpacked(b"".join(pieces))

    def fork(self, box: Box) -> Box:
        """Commit the container and start another from the image."""
        made = box.commit(conf={"Labels": self.labels})
        return self._run(made.id)

    def unfork(self, box: Box) -> None:
        """Remove the image, too."""
        box.remove(force=True)
        self._client.images.remove(box.attrs["Image"], force=True)

    def containers(self, box: Box) -> list[str]:
        """Return the container."""
        return [box.id]

    def remove(self, box: Box) -> None:
        """Remove the container."""
        box.remove(force=True)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _run(self, image: str) -> Box:
        return self._client.containers.run(
            image,
            ["/bin/sleep", "infinity"],
            detach=True,
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            mem_limit="512m",
            memswap_limit="512m",
            pids_limit=66,
            user="1000:1000",
            labels=self.labels,
        )


def _packed(files: Mapping[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size, about.uid, about.gid = len(data), 1000, 1000
            archive.addfile(about, io.BytesIO(data))
    return whole.getvalue()


def _unpacked(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for one in archive:
            content = archive.extractfile(one)
            if content is not None:
                found[PurePosixPath(one.name).name] = content.read()
    return found


if __name__ == "__main__":
    serve(DockerExec())
