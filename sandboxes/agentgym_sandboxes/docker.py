"""Run in hardened containers of a Docker daemon, or of anything that speaks its API."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agentgym.errors import MissingExtraError, SandboxError
from agentgym.sandbox import Capability, SandboxSpec, require
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._owner import Owner

try:
    import docker
    import requests
    from docker.errors import APIError, DockerException
except ImportError as error:
    raise MissingExtraError("docker", "docker") from error

from agentgym_sandboxes._allowlist import Proxy
from agentgym_sandboxes._allowlist_rules import Rules
from agentgym_sandboxes._attached import AttachedWire
from agentgym_sandboxes._container import Container
from agentgym_sandboxes._daemon import Daemon
from agentgym_sandboxes._docker_upkeep import DockerUpkeep
from agentgym_sandboxes._hardening import WORKDIR, folders, in_memory, pids, settings
from agentgym_sandboxes._images import BASE_IMAGE, Pull
from agentgym_sandboxes._link import Hub, Link
from agentgym_sandboxes._removal import remove_container
from agentgym_sandboxes._snapshots import Snapshots
from agentgym_sandboxes._supervised import SupervisedSandbox
from agentgym_sandboxes.pool import PoolStats, WarmPool

logger = logging.getLogger(__name__)

_GREETING_S = 60.0
_STARTS_PER_CORE = 2
_WARM_S = 900.0
"""How long a sandbox may wait to be used."""
_WARM_UP_S = 10.0


class DockerBackend:
    """Containers without network, capabilities, root or a writable root filesystem, bounded in everything.

    `disk_mb`, or half of `memory_mb`, is shared by the working directory and /tmp, which live in memory.
    """

    name = "docker"
    capabilities: frozenset[Capability] = frozenset(
        (
            "network_none",
            "network_allowlist",
            "network_full",
            "memory_limit",
            "cpu_limit",
            "pids_limit",
            "disk_limit",
            "image",
            "background",
            "isolation",
            "session",
            "snapshot",
            "user",
            "writable_root",
        )
    )

    def __init__(
        self,
        image: str = BASE_IMAGE,
        run: str = "",
        runtime: str | None = None,
        starts: int | None = None,
        warm: int = 0,
        pull: Pull = "never",
        contexts: str | None = None,
    ) -> None:
        """Prepare, without speaking to the daemon yet.

        Args:
            image: for tasks that name none.
            run: the name of the run, for the containers' label.
            runtime: of those that the daemon knows, such as `runsc`, `crun` or `kata`; None is the daemon's own choice.
            starts: how many containers may be started at once; None is two for each processor.
            warm: how many unused sandboxes to keep ready, of the specs that were asked for last.
            pull: whether images that tasks name are pulled: `never`, `if-missing`, or `always`, which is once.
            contexts: the folder below which a task's `build:<folder>` is looked for; None refuses those.
        """
        self._daemon = Daemon(image, runtime, pull, contexts)
        self._run = run
        self._lock = threading.Lock()
        self._sandboxes: dict[str, tuple[SupervisedSandbox, SandboxSpec, Container]] = {}
        self._snapshots = Snapshots()
        self._hub: Hub | None = None
        self._proxy = Proxy()
        starts = starts or _STARTS_PER_CORE * (os.cpu_count() or 1)
        self._starting = threading.Semaphore(starts)
        self._pool = WarmPool(self._create_warm, warm, starts, _WARM_S) if warm else None

    def check(self) -> None:
        """Reach the daemon, find the default image, and remove containers whose owner is dead.

        Raises:
            SandboxError: what is missing and how to mend it.
        """
        self._daemon.check()
        if self._daemon.is_guarded:
            self.capabilities = type(self).capabilities - {"user", "writable_root"}

    def accept(self, spec: SandboxSpec) -> None:
        """Refuse what a task asks for and this daemon, or its machine, does not have."""
        require(spec, self.name, self.capabilities)
        Rules.parse(spec.allow)
        self._daemon.require_room(spec)
        self._daemon.require_image(spec.image)

    def has_image(self, image: str | None) -> bool:
        """Return whether an image is there now, see `agentgym.sandbox.Stocked`."""
        return self._daemon.images.has(image or self._daemon.image)

    def start(self, spec: SandboxSpec) -> SupervisedSandbox:
        """Start a fresh container, or take one that was started and never used."""
        sandbox = self._take_or_create(spec)
        self._refill()
        return sandbox

    def _take_or_create(self, spec: SandboxSpec) -> SupervisedSandbox:
        sandbox = self._pool.take(spec) if self._pool else None
        if sandbox is None:
            return self._create(spec)
        sandbox.renew(spec.ttl_s)
        return sandbox

    def _refill(self) -> None:
        if self._pool is not None:
            self._pool.started()

    def prepare(self, spec: SandboxSpec, count: int) -> int:
        """Keep sandboxes of a spec ready before anybody asks; return how many there are once they are."""
        if self._pool is None:
            raise ValueError("this backend keeps no sandboxes ready: give it warm=N")
        return self._pool.prepare(spec, count)

    @property
    def pool_stats(self) -> PoolStats:
        """How often a sandbox was ready when one was wanted."""
        return self._pool.stats if self._pool else PoolStats()

    def _create_warm(self, spec: SandboxSpec) -> SupervisedSandbox:
        sandbox = self._create(spec, _WARM_S)
        # The first program in a fresh container finds none of its files in memory. What is not there costs nothing.
        sandbox.exec(["python3", "-I", "-S", "-B", "-c", "pass"], timeout=_WARM_UP_S, output_limit=0)
        return sandbox

    def _create(self, spec: SandboxSpec, longer_s: float = 0.0) -> SupervisedSandbox:
        self.accept(spec)
        api = self._daemon.connect()
        image = self._daemon.require_image(spec.image)
        asked, spec = spec, spec.model_copy(update={"ttl_s": spec.ttl_s + longer_s})
        life = {"agentgym.created": f"{time.time():.3f}", "agentgym.ttl": f"{spec.ttl_s:.3f}"}
        labels = {"agentgym.run": self._run, **life, **Owner.current().labels()}
        with self._starting:
            daemon = self._daemon
            volume = daemon.supervisor(image)  # only now: volumes are pruned while a start waits for its turn
            config = settings(api, spec, volume, labels, daemon.runtime, podman=daemon.is_podman)
            return self._start(api, image, asked, config)

    def fork(self, snapshot: str) -> SupervisedSandbox:
        """Start a fresh container with the files of a snapshot."""
        kept = self._snapshots[snapshot]
        sandbox = self._take_or_create(kept.spec)
        try:
            sandbox.files.thaw(kept.folders)
        except BaseException:
            sandbox.close()
            raise
        finally:
            self._refill()
        return sandbox

    def freeze(self, sandbox: SupervisedSandbox) -> str:
        """Keep the files of a sandbox; see `Sandbox.snapshot`."""
        with self._lock:
            found = self._sandboxes.get(sandbox.id)
        if found is None:
            raise SandboxError(f"sandbox {sandbox.id} is closed")
        _, spec, container = found
        kept = sandbox.files.frozen(in_memory(spec))
        if spec.writable_root:
            labels = {"agentgym.snapshot": secrets.token_hex(8), **Owner.current().labels()}
            image = container.commit(labels)
            return self._snapshots.add(spec.model_copy(update={"image": image}), kept, self._daemon.forget_image(image))
        return self._snapshots.add(spec, kept)

    def drop(self, snapshot: str) -> None:
        """Free what a snapshot holds."""
        self._snapshots.drop(snapshot)

    def upkeep(self) -> DockerUpkeep:
        """Return what looks after the containers of every run; see `agentgym.upkeep.Maintained`."""
        return DockerUpkeep(self._daemon.image, self._daemon.runtime)

    def close(self) -> None:
        """Remove every container that this backend started, and every snapshot."""
        if self._pool is not None:
            self._pool.empty()
        with self._lock:
            sandboxes = [sandbox for sandbox, _, _ in self._sandboxes.values()]
        for sandbox in sandboxes:
            sandbox.close()
        if self._pool is not None:
            self._pool.close()
        self._snapshots.close()
        with self._lock:
            hub, self._hub = self._hub, None
        if hub is not None:
            hub.close()
        self._proxy.close()
        self._daemon.close()

    def _start(self, api: docker.APIClient, image: str, spec: SandboxSpec, config: dict[str, Any]) -> SupervisedSandbox:
        container, wire, link = "", None, None
        try:
            container = str(api.create_container(image, **config)["Id"])
            wire = AttachedWire(api, container)
            api.start(container)
            link = Link(self._get_hub(), wire)
            link.greeting(_GREETING_S)
        except (DockerException, requests.RequestException, OSError, SandboxError) as error:
            said = wire.complaints.value().decode(errors="replace").strip() if wire else ""
            reason = error.explanation if isinstance(error, APIError) else error
            if link is not None:
                link.hang_up()
            elif wire is not None:
                wire.close()
            with suppress(DockerException, requests.RequestException):
                if container:
                    remove_container(api, container)
            raise SandboxError(f"Docker refused to start a sandbox from {image!r}: {reason} {said}".rstrip()) from error
        lifetime = Lifetime(container[:12], spec.ttl_s)
        place = Container(api, container, pids(spec), lifetime, wire)
        sandbox = SupervisedSandbox(
            container[:12],
            link,
            place,
            workdir=spec.workdir or (self._daemon.workdir(image) if spec.writable_root else WORKDIR),
            folders=folders(spec),
            lifetime=lifetime,
            owner=self,
        )
        if spec.network == "allowlist":
            try:
                sandbox.proxy = self._proxy.open(link, Rules.parse(spec.allow), sandbox.id)
            except SandboxError:
                link.hang_up()
                place.remove()
                raise
        with self._lock:
            self._sandboxes[sandbox.id] = (sandbox, spec, place)
        return sandbox

    def dispose(self, sandbox: SupervisedSandbox, remove: Callable[[], None]) -> None:
        """Remove a container whose processes are ended; with a pool, while others work."""
        with self._lock:
            known = self._sandboxes.pop(sandbox.id, None)
        if known is None:
            return
        if self._pool is not None:
            self._pool.later(remove)
        else:
            remove()

    def _get_hub(self) -> Hub:
        with self._lock:
            if self._hub is None:
                self._hub = Hub("agentgym-docker")
            return self._hub
