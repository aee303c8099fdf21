"""Run in sandboxes on the nodes of a Ray cluster: each lends its own backend's, and one that dies costs time alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import tenacity

from agentgym.errors import CapabilityError, SandboxError
from agentgym.sandbox import Capability, SandboxSpec, require
from agentgym_sandboxes.ray_cluster import RESOURCE, connect
from agentgym_sandboxes.ray_fleet import Fleet, View
from agentgym_sandboxes.ray_node import IDLE_S, Kind
from agentgym_sandboxes.remote_lease import Lease
from agentgym_sandboxes.remote_sandbox import RemoteSandbox
from agentgym_sandboxes.remote_wire import LeaseLostError, NoRoomError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class RaySandbox(RemoteSandbox):
    """A sandbox on a node of the cluster."""

    def __init__(self, lease: Lease, name: str, workdir: str, keep: Callable[[str, Lease], None]) -> None:
        super().__init__(lease, name, workdir)
        self._keep = keep

    def snapshot(self) -> str:
        """Freeze the files' present state, on the sandbox's node."""
        name = super().snapshot()
        self._keep(name, self._lease)
        return name


class RayBackend:
    """Sandboxes of the nodes' own kind, with the capabilities that all nodes share.

    A sandbox starts on the least loaded node among those that have its image, else on any with room. A full cluster
    is waited for. A node or actor that dies takes its sandboxes along (`SandboxError`, so that episodes begin anew
    on another); if this process dies, its sandboxes end with its leases.
    """

    name = "ray"
    capabilities: frozenset[Capability]
    """Those that all nodes have."""

    def __init__(
        self,
        backend: str = "docker",
        address: str = "auto",
        capacity: int | None = None,
        wait_s: float = 300.0,
        lease_s: float = 30.0,
        idle_s: float = IDLE_S,
        **options: Any,
    ) -> None:
        """Prepare, without joining the cluster yet.

        Args:
            backend: what runs on each node, by its registered name.
            address: of the cluster, unless this process has joined one: `auto` is RAY_ADDRESS or the one on this
                machine, `local` starts one in this process.
            capacity: how many sandboxes `local` may hold; elsewhere, the nodes' resource `agentgym_sandboxes` says it.
            wait_s: for how long a full cluster is waited for.
            lease_s: after how many seconds of silence a node ends this process's sandboxes.
            idle_s: after how many seconds without any sandbox's owner a node's actor ends.
            options: of the nodes' backend, such as `warm=8`.
        """
        if backend in ("ray", "remote"):
            raise CapabilityError(f"backend={backend} cannot run on Ray's nodes: name what they have, such as docker")
        if (address == "local") != (capacity is not None):
            raise ValueError(
                f"address={address!r} with capacity={capacity}: say both address=local and capacity=N, or start the "
                f"cluster's nodes with the resource {RESOURCE}=N"
            )
        for name, value in {"wait_s": wait_s, "lease_s": lease_s, "idle_s": idle_s, "capacity": capacity}.items():
            least = 0.0 if name == "wait_s" else 1.0
            if value is not None and not (isinstance(value, int | float) and value >= least):
                raise ValueError(f"{name} must be {least:g} or more, not {value!r}")
        self._kind = Kind.of(backend, options, float(lease_s))
        self._address, self._capacity, self._wait_s = address, capacity, wait_s
        self._fleet = Fleet(self._kind, idle_s)
        self._lock = threading.Lock()
        self._snapshots: dict[str, Lease] = {}

    def __getattr__(self, name: str) -> Any:
        """Ask the nodes what they can do, once, when somebody wants to know."""
        if name != "capabilities":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        self.check()
        return self.capabilities

    def check(self) -> None:
        """Join the cluster and let every node check its backend.

        Raises:
            SandboxError: no node can start sandboxes; what is wrong there, or here, and how to mend it.
            CapabilityError: there is no such backend, or it takes no such option.
        """
        well = [view for view in self.nodes() if view.is_well]
        if not well:
            failures = {view.trouble: view.name for view in self._fleet.look()}
            told = "; ".join(f"{name}: {failure}" for failure, name in failures.items())
            raise SandboxError(f"no Ray node can start {self._kind.backend!r} sandboxes now: {told or 'all are lost'}")
        shared = frozenset.intersection(*(view.report.capabilities for view in well))
        self.capabilities = frozenset[Capability](get_args(Capability)) & shared

    def accept(self, spec: SandboxSpec) -> None:
        """Refuse what a task asks for and the nodes do not have; an image that is missing is made on one of them."""
        self._require(spec)
        self._placed(spec.image, lambda lease: lease.call("accept", spec=spec.model_dump()), roomy=False)

    def start(self, spec: SandboxSpec) -> RaySandbox:
        """Start a fresh sandbox on the node that suits it best, or on another one if that fails.

        Raises:
            CapabilityError: the spec asks for what the nodes lack (before anything starts).
            SandboxError: it could not be started on any, or all were full for `wait_s`.
        """
        self._require(spec)
        return self._patiently(
            lambda: self._placed(
                spec.image, lambda lease: self._named(lease, lease.call("start", spec=spec.model_dump()))
            )
        )

    def fork(self, snapshot: str) -> RaySandbox:
        """Start a fresh sandbox with the files of a snapshot, on the node that keeps it."""
        lease = self._keeper(snapshot)
        try:
            return self._patiently(lambda: self._named(lease, lease.call("fork", snapshot=snapshot)))
        except LeaseLostError as error:
            raise SandboxError(f"the snapshot {snapshot!r} is gone: {error}") from error

    def drop(self, snapshot: str) -> None:
        """Free what a snapshot holds."""
        lease = self._keeper(snapshot)
        try:
            lease.call("drop", snapshot=snapshot)
        except LeaseLostError as error:
            logger.info("the snapshot %s was lost before it was dropped: %s", snapshot, error)
        with self._lock:
            self._snapshots.pop(snapshot, None)

    def nodes(self) -> list[View]:
        """Return all nodes that offer sandboxes, after their backends checked themselves."""
        connect(self._address, self._capacity)
        return self._fleet.look(fresh=True, patient=True)

    def drain(self, node: str, *, is_draining: bool = True) -> View:
        """Let a node take no new sandboxes of anybody, while those that it has go on; or let it take them again.

        Args:
            node: its name, or the beginning of its id.
            is_draining: False takes it back.

        Raises:
            SandboxError: there is no such node, or more than one.
        """
        connect(self._address, self._capacity)
        return self._fleet.drain(node, is_draining)

    def close(self) -> None:
        """End every sandbox that this backend started, and free its snapshots; the cluster stays joined."""
        self._fleet.close()
        with self._lock:
            self._snapshots.clear()

    def _require(self, spec: SandboxSpec) -> None:
        require(spec, f"{self.name} {self._kind.backend}", self.capabilities)

    def _placed(self, image: str | None, begin: Callable[[Lease], T], *, roomy: bool = True) -> T:
        """Begin something on the best node, or on the next one if it fails there."""
        connect(self._address, self._capacity)
        tried: set[str] = set()
        is_full = False
        failure: SandboxError | None = None
        while (view := self._fleet.choose(image, tried, roomy=roomy)) is not None:
            tried.add(view.id)
            try:
                return begin(self._fleet.lease(view))
            except NoRoomError:
                is_full = True
            except LeaseLostError as error:
                self._fleet.avoid(view.id)
                failure = error
            except SandboxError as error:
                logger.warning("the Ray node %s could not start a sandbox: %s", view.name, error)
                failure = error
            self._fleet.failed(image, view)
        self._fleet.forget()
        views = self._fleet.look(image)
        if failure is not None and not is_full and all(view.id in tried for view in views if view.is_well):
            raise failure
        raise NoRoomError(_fullness(views, failure))

    def _patiently(self, begin: Callable[[], T]) -> T:
        repeated = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(NoRoomError),
            stop=tenacity.stop_after_delay(self._wait_s),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=1.0),
            reraise=True,
        )
        try:
            begun: T = repeated(begin)
            return begun
        except NoRoomError as error:
            raise SandboxError(
                f"no sandbox could start within wait_s={self._wait_s:g} s: {error}; add nodes, let them offer more "
                f"{RESOURCE}, or run fewer episodes at once"
            ) from error

    def _named(self, lease: Lease, started: dict[str, str]) -> RaySandbox:
        return RaySandbox(lease, started["id"], started["workdir"], self._kept)

    def _kept(self, snapshot: str, lease: Lease) -> None:
        with self._lock:
            self._snapshots[snapshot] = lease

    def _keeper(self, snapshot: str) -> Lease:
        if "snapshot" not in self.capabilities:
            raise CapabilityError(
                f"the '{self.name} {self._kind.backend}' sandbox has no 'snapshot', so no {snapshot!r}; choose another "
                "backend"
            )
        with self._lock:
            if snapshot not in self._snapshots:
                raise KeyError(f"there is no snapshot {snapshot!r}: it was dropped, or belongs to another backend")
            return self._snapshots[snapshot]


def _fullness(views: list[View], failure: Exception | None) -> str:
    told = [view.told for view in views]
    return "; ".join(told or ["every node is lost"]) + (f"; the last failure: {failure}" if failure else "")
