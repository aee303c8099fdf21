"""Nothing of a benchmark outlives it: containers and images carry its token and its owner."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Self

import docker
from docker.errors import APIError, DockerException, NotFound

from agentgym.errors import SandboxError
from agentgym_sandboxes._docker_host import knock
from agentgym_sandboxes._owner import Owner

_LABEL = "agentgym.benchmark"


class Leftovers:
    """A `with` block at whose end Docker holds nothing that was made in it, nor what a dead benchmark left."""

    def __init__(self) -> None:
        """Reach for the daemon.

        Raises:
            SandboxError: none answers.
        """
        knock()
        try:
            self._client = docker.from_env()
        except DockerException as error:
            raise SandboxError(f"the Docker daemon does not answer: {error}") from error
        self.token = secrets.token_hex(8)
        self.labels = {_LABEL: self.token, **Owner.current().labels()}

    def require_image(self, name: str) -> None:
        """Refuse to begin without the image.

        Raises:
            SandboxError: it is not on this machine.
        """
        try:
            self._client.images.get(name)
        except NotFound:
            hint = "build it with `agentgym sandbox build-base`" if name.startswith("agentgym-base") else "pull it"
            raise SandboxError(f"the Docker image {name!r} is not on this machine: {hint}") from None

    def sweep(self) -> list[str]:
        """Remove what carries our token or belongs to a dead benchmark; return the names."""
        removed = []
        for label in (_LABEL, "agentgym.run"):
            for container in self._client.containers.list(all=True, filters={"label": label}, ignore_removed=True):
                if self._is_ours(container.labels, label):
                    try:
                        container.remove(force=True, v=True)
                    except (NotFound, APIError):  # its own removal is under way
                        continue
                    removed.append(container.short_id)
        for image in self._client.images.list(all=True, filters={"label": _LABEL}):
            if self._is_ours(image.labels, _LABEL):
                try:
                    self._client.images.remove(str(image.id), force=True)
                except (NotFound, APIError):  # went with the image that was built upon it
                    continue
                removed.append(image.short_id)
        return removed

    def _is_ours(self, labels: dict[str, str], label: str) -> bool:
        if labels.get(label) == self.token:
            return True
        owner = Owner.from_labels(labels) if label == _LABEL else None
        return owner is not None and owner.is_dead()

    def __enter__(self) -> Self:
        try:
            self.sweep()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sweep()
        self._client.close()
