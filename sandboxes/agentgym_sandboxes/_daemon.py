"""The Docker daemon: is it there, may we use it, has it what sandboxes need, and what did dead owners leave in it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from agentgym.errors import CapabilityError, SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes._docker_host import environment, is_cut_off, knock
from agentgym_sandboxes._images import Images, Pull
from agentgym_sandboxes._owner import Owner
from agentgym_sandboxes._proxy_rules import GIVEN
from agentgym_sandboxes._removal import remove_container
from agentgym_sandboxes._supervisor_volume import SupervisorVolume

logger = logging.getLogger(__name__)

_CONNECTIONS = 128
_CALL_TIMEOUT_S = 120
_PODMAN = "agentgym.podman"
_PATIENCE_S = 0.5
"""With what another run left: the first sandbox waits for it."""


class Daemon:
    """One client of one daemon; safe to use from many threads."""

    def __init__(self, image: str, runtime: str | None, pull: Pull = "never", contexts: str | None = None) -> None:
        self.image = image
        self.runtime = runtime
        self.images = Images(self.connect, image, pull, contexts)
        self._lock = threading.RLock()
        self._client: docker.APIClient | None = None
        self._info: dict[str, Any] = {}
        self._volume: SupervisorVolume | None = None

    def check(self) -> None:
        """Reach the daemon and find the default image and the runtime.

        Raises:
            SandboxError: what is missing and how to mend it.
        """
        self.connect()
        self.supervisor(self.require_image(None))

    def connect(self) -> docker.APIClient:
        """Return the client; the first call reaches for the daemon and removes what dead owners left."""
        knock()
        with self._lock:
            if is_cut_off():
                self.close()
            if self._client is None:
                client, self._info = reach()
                runtimes = self._info.get("Runtimes") or {}
                if self.runtime is not None and self.runtime not in runtimes:
                    raise SandboxError(
                        f"the Docker daemon knows no runtime {self.runtime!r}, only {', '.join(sorted(runtimes))}: "
                        "install it and name it in the daemon's configuration, or choose another"
                    )
                for name in sweep(client):
                    logger.info("removed a container whose owner is dead name=%s", name)
                self._client = client
            return self._client

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client, self._volume = None, None
        self.images.forget()

    @property
    def is_podman(self) -> bool:
        """Whether this is Podman, which speaks Docker's API with small differences."""
        return bool(self._info.get(_PODMAN))

    @property
    def is_guarded(self) -> bool:
        """Whether the socket proxy stands before it, which refuses what sandboxes rarely need."""
        return GIVEN in self._info

    def require_room(self, spec: SandboxSpec) -> None:
        """Refuse limits that this daemon cannot set or its machine cannot give.

        Raises:
            CapabilityError: the storage cannot bound a writable root.
            SandboxError: the machine has less than the task asks for.
        """
        self.connect()
        processors, memory_mb = int(self._info.get("NCPU") or 0), int(self._info.get("MemTotal") or 0) >> 20
        if spec.cpus and processors and spec.cpus > processors:
            raise SandboxError(f"the task asks for cpus={spec.cpus:g}, but the Docker machine has {processors}")
        if memory_mb and spec.memory_mb > memory_mb:
            raise SandboxError(f"the task asks for memory_mb={spec.memory_mb}, but the Docker machine has {memory_mb}")
        if spec.writable_root and self.is_guarded:
            raise CapabilityError(
                "the task asks for writable_root, which the socket proxy before this Docker refuses because nothing "
                "bounds its size; drop it, or use Docker's own socket"
            )
        if spec.writable_root and spec.disk_mb is not None and not has_quotas(self._info):
            raise CapabilityError(
                "the task asks for disk_mb with a writable root, which this Docker daemon's storage cannot bound "
                "(overlay2 can on XFS with pquota); drop disk_mb or writable_root"
            )

    def require_image(self, image: str | None) -> str:
        """Return the image's name once it is known to be there."""
        return self.images.require(image or self.image)

    def workdir(self, image: str) -> str:
        """Return the folder that an image itself says commands run in."""
        found: dict[str, Any] = self.connect().inspect_image(image)  # type: ignore[no-untyped-call]
        return str((found.get("Config") or {}).get("WorkingDir") or "/")

    def forget_image(self, image: str) -> Callable[[], None]:
        """Return what removes an image that we made."""

        def remove() -> None:
            with suppress(NotFound):
                self.connect().remove_image(image, force=True)

        return remove

    def supervisor(self, image: str) -> str:
        """Return the volume that holds the supervisor; `image` is any, for the container that fills it."""
        with self._lock:
            if self._volume is None:
                machine = str(self._info.get("Architecture") or "")
                self._volume = SupervisorVolume(self.connect(), machine, self._info.get(GIVEN))
            return self._volume.require(image)


def reach() -> tuple[docker.APIClient, dict[str, Any]]:
    """Return a client, and what the daemon says of itself; nothing is touched.

    Raises:
        SandboxError: it does not answer.
    """
    try:
        client = docker.from_env(timeout=_CALL_TIMEOUT_S, max_pool_size=_CONNECTIONS, environment=environment()).api
        client.ping()
        parts = client.version().get("Components") or []
        is_podman = any(str(one.get("Name", "")).startswith("Podman") for one in parts)
        return client, {**client.info(), _PODMAN: is_podman}
    except (DockerException, requests.RequestException) as error:
        raise SandboxError(f"the Docker daemon does not answer: {error}") from error


def has_quotas(info: Mapping[str, Any]) -> bool:
    """Whether the daemon's storage can bound a container's writable root."""
    driver = str(info.get("Driver", ""))
    status = dict(info.get("DriverStatus") or [])
    on_xfs = status.get("Backing Filesystem") == "xfs" and status.get("Supports pquota") == "true"
    return driver in ("btrfs", "zfs") or (driver == "overlay2" and on_xfs)


def sweep(api: docker.APIClient) -> list[str]:
    """Remove the containers whose owner is provably dead; everybody else's are left alone."""
    removed = []
    for container in api.containers(all=True, filters={"label": "agentgym.boot"}):
        owner = Owner.from_labels(container["Labels"])
        if owner is None or not owner.is_dead():
            continue
        try:
            remove_container(api, container["Id"], _PATIENCE_S)
            removed.append(container["Id"][:12])
        except NotFound:
            continue
        except APIError as error:
            logger.warning("cannot remove container name=%s: %s", container["Id"][:12], error)
    return removed
