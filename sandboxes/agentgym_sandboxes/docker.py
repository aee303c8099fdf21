"""Run in hardened containers of the local Docker daemon."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from agentgym.errors import MissingExtraError, SandboxError
from agentgym.sandbox import Capability, SandboxSpec, require
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._owner import Owner

try:
    import docker
    import requests
    from docker.errors import APIError, DockerException, ImageNotFound, NotFound
except ImportError as error:
    raise MissingExtraError("docker", "docker") from error

from agentgym_sandboxes._container import WORKDIR, DockerSandbox
from agentgym_sandboxes._docker_exec import AGENT_ID

logger = logging.getLogger(__name__)

BASE_IMAGE = "agentgym-base:latest"
_INIT_ID = 65532
_CONNECTIONS = 128
_CALL_TIMEOUT_S = 120

# PID 1 reaps, ends by itself when its time is over, and has a user that the agent can neither signal nor trace.
_INIT = 'trap "exit 0" TERM; sleep "$1" & wait $!'


class DockerBackend:
    """Containers without network, capabilities, root or a writable root filesystem, bounded in everything.

    `disk_mb`, or half of `memory_mb`, is shared by the working directory and /tmp, which live in memory.
    """

    name = "docker"
    capabilities: frozenset[Capability] = frozenset(
        (
            "network_none",
            "network_full",
            "memory_limit",
            "cpu_limit",
            "pids_limit",
            "disk_limit",
            "image",
            "background",
            "isolation",
        )
    )

    def __init__(self, image: str = BASE_IMAGE, run: str = "") -> None:
        """Take the image for tasks that name none, and the name of the run for the containers' label."""
        self._image = image
        self._run = run
        self._lock = threading.Lock()
        self._sandboxes: set[DockerSandbox] = set()
        self._client: docker.APIClient | None = None

    def check(self) -> None:
        """Reach the daemon, find the default image, and remove containers whose owner is dead.

        Raises:
            SandboxError: what is missing and how to mend it.
        """
        self._require_image(self._connect(), self._image)

    def start(self, spec: SandboxSpec) -> DockerSandbox:
        """Create and start a fresh container."""
        require(spec, self.name, self.capabilities)
        api = self._connect()
        image = spec.image or self._image
        self._require_image(api, image)
        container = ""
        try:
            container = str(api.create_container(image, **self._settings(api, spec))["Id"])
            api.start(container)
        except (DockerException, requests.RequestException) as error:
            with suppress(DockerException, requests.RequestException):
                if container:
                    api.remove_container(container, v=True, force=True)
            reason = error.explanation if isinstance(error, APIError) else error
            raise SandboxError(f"Docker refused to start a sandbox from {image!r}: {reason}") from error
        sandbox = DockerSandbox(api, container, _pids(spec), Lifetime(container[:12], spec.ttl_s), self._forget)
        with self._lock:
            self._sandboxes.add(sandbox)
        return sandbox

    def close(self) -> None:
        """Remove every container that this backend started."""
        with self._lock:
            sandboxes = list(self._sandboxes)
        for sandbox in sandboxes:
            sandbox.close()
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connect(self) -> docker.APIClient:
        with self._lock:
            if self._client is None:
                _knock()
                try:
                    client = docker.from_env(timeout=_CALL_TIMEOUT_S, max_pool_size=_CONNECTIONS).api
                    client.ping()
                except (DockerException, requests.RequestException) as error:
                    raise SandboxError(f"the Docker daemon does not answer: {error}") from error
                for name in _sweep(client):
                    logger.info("removed a container whose owner is dead name=%s", name)
                self._client = client
            return self._client

    def _require_image(self, api: docker.APIClient, image: str) -> None:
        try:
            api.inspect_image(image)  # type: ignore[no-untyped-call]
        except ImageNotFound:
            hint = (
                "build it with agentgym_sandboxes/images/build-base.sh" if image == BASE_IMAGE else "pull or build it"
            )
            raise SandboxError(f"the Docker image {image!r} is not on this machine: {hint}") from None
        except (DockerException, requests.RequestException) as error:
            raise SandboxError(f"Docker cannot look up the image {image!r}: {error}") from error

    def _settings(self, api: docker.APIClient, spec: SandboxSpec) -> dict[str, Any]:
        memory = f"{spec.memory_mb}m"
        host = api.create_host_config(
            network_mode="bridge" if spec.network == "full" else "none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            mem_limit=memory,
            memswap_limit=memory,
            pids_limit=_pids(spec),
            nano_cpus=int(spec.cpus * 1e9) if spec.cpus else None,
            tmpfs=_tmpfs(spec),
            oom_score_adj=500,
            ulimits=[docker.types.Ulimit(name="core", soft=0, hard=0)],
            log_config=docker.types.LogConfig(type="none"),
        )
        return {
            "entrypoint": ["/bin/sh", "-c", _INIT, "init", str(math.ceil(spec.ttl_s))],
            "user": f"{_INIT_ID}:{_INIT_ID}",
            "hostname": "sandbox",
            "working_dir": WORKDIR,
            "environment": {"HOME": "/tmp", "USER": "agent", "LANG": "C.UTF-8", **spec.env},
            "labels": {
                "agentgym.run": self._run,
                "agentgym.created": f"{time.time():.3f}",
                **Owner.current().labels(),
            },
            "healthcheck": {"test": ["NONE"]},
            "host_config": host,
        }

    def _forget(self, sandbox: DockerSandbox) -> None:
        with self._lock:
            self._sandboxes.discard(sandbox)


def _pids(spec: SandboxSpec) -> int:
    return spec.pids + 2  # PID 1 and its timer


def _tmpfs(spec: SandboxSpec) -> dict[str, str]:
    kilobytes = 1024 * spec.disk_mb if spec.disk_mb is not None else 512 * spec.memory_mb
    shares = {WORKDIR: kilobytes - kilobytes // 4, "/tmp": kilobytes // 4}
    common = f"rw,exec,nosuid,nodev,mode=0755,uid={AGENT_ID},gid={AGENT_ID}"
    return {folder: f"{common},size={size}k,nr_inodes={max(size, 1024)}" for folder, size in shares.items()}


def _sweep(api: docker.APIClient) -> list[str]:
    """Remove the containers whose owner is provably dead; everybody else's are left alone."""
    removed = []
    for container in api.containers(all=True, filters={"label": "agentgym.boot"}):
        owner = Owner.from_labels(container["Labels"])
        if owner is None or not owner.is_dead():
            continue
        try:
            api.remove_container(container["Id"], v=True, force=True)
            removed.append(container["Id"][:12])
        except NotFound:
            continue
        except APIError as error:
            logger.warning("cannot remove container name=%s: %s", container["Id"][:12], error)
    return removed


def _knock() -> None:
    """Try the daemon's socket ourselves: the SDK wraps the reason of a failure and leaves its socket open."""
    where = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not where.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX) as knocker:
        try:
            knocker.connect(where.removeprefix("unix://"))
        except PermissionError:
            raise SandboxError(
                f"no permission on the Docker socket {where}: add this user to the group docker and log in again"
            ) from None
        except OSError as error:
            raise SandboxError(
                f"no Docker daemon answers at {where} ({error.strerror}): install it (`apt-get install docker.io`) "
                "and start it"
            ) from error
