"""What runs on each node of a Ray cluster: one actor that lends the sandboxes of its machine to every driver."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentgym import registry
from agentgym.errors import AgentgymError, MissingExtraError, SandboxError
from agentgym.sandbox import SandboxBackend, Stocked
from agentgym_sandboxes.ray_cluster import is_marked_draining, mark_draining
from agentgym_sandboxes.remote_wire import NoRoomError
from agentgym_sandboxes.serving.calls import parse
from agentgym_sandboxes.serving.desk import Desk
from agentgym_sandboxes.serving.leases import GoneError, Lease
from agentgym_sandboxes.serving.limits import Limits

try:
    import ray
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

logger = logging.getLogger(__name__)

IDLE_S = 60.0
"""An actor that lends nothing for so long ends."""
_HEALTHY_S = 10.0
"""For how long a backend that was well is taken to be."""
_GRACE_S = 5.0
_TIDY_S = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What a driver wants of a node."""

    backend: str
    options: str
    """Of the backend, as JSON."""
    lease_s: float

    @classmethod
    def of(cls, backend: str, options: Mapping[str, Any], lease_s: float) -> Kind:
        """Return what the options of the Ray backend ask for."""
        return cls(backend, json.dumps(options, sort_keys=True), lease_s)

    def create(self) -> SandboxBackend:
        """Build the node's own backend."""
        backend: SandboxBackend = registry.create("sandboxes", self.backend, **json.loads(self.options))
        return backend

    @property
    def limits(self) -> Limits:
        """One run owns what it started here, so that the node's room alone bounds how much it has."""
        many = 100_000
        return Limits(
            clients=many,
            sandboxes=many,
            snapshots=many,
            calls_per_client=512,
            waiting=many,
            lease_s=self.lease_s,
            grace_s=min(_GRACE_S, self.lease_s),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """How a node is."""

    capacity: int
    used: int
    """How many sandboxes it holds, of all drivers and backends."""
    is_draining: bool
    capabilities: frozenset[str] = frozenset()
    """Of the backend that was asked about."""
    has_image: bool = False
    body_bytes: int = 0
    failure: str = ""
    """Why that backend cannot work there now."""
    refusal: str = ""
    """Why it never will: a name or an option that does not exist."""


class _Places:
    """How many sandboxes the node holds; see `serving.tenant.Room`."""

    def __init__(self, capacity: int, is_draining: bool) -> None:
        self.capacity = capacity
        self.used = 0
        self.is_draining = is_draining
        self._lock = threading.Lock()

    def take(self) -> None:
        """Take a place, unless the node is full or draining."""
        with self._lock:
            if self.is_draining:
                raise NoRoomError("the node is draining")
            if self.used >= self.capacity:
                raise NoRoomError(f"the node holds {self.used} sandboxes, as many as it offers")
            self.used += 1

    def give_back(self) -> None:
        """Free a place."""
        with self._lock:
            self.used -= 1


class _Counter:
    """One backend of the node, with its clients and its health."""

    def __init__(self, backend: SandboxBackend, desk: Desk) -> None:
        self.backend = backend
        self.desk = desk
        self.failure = "it was not looked at yet"
        self.emptied = time.monotonic()
        """When it was last seen with a client."""
        self._looked = 0.0
        self._looking = asyncio.Lock()
        self.sweeping = asyncio.create_task(desk.sweep())

    async def look(self, *, fresh: bool) -> None:
        """Let the backend check itself, unless it was well a moment ago."""
        asked = time.monotonic()
        async with self._looking:
            is_old = self._looked < (asked if fresh else asked - _HEALTHY_S)
            if not is_old and not (self.failure and self._looked < asked):
                return
            try:
                await asyncio.to_thread(self.backend.check)
                self.failure = ""
            except SandboxError as error:
                self.failure = str(error)
            self._looked = time.monotonic()

    async def has(self, image: str | None) -> bool:
        """Whether the image is there; a backend that does not tell has what it can use."""
        if self.failure or not isinstance(self.backend, Stocked):
            return not self.failure
        return await asyncio.to_thread(self.backend.has_image, image)


class Node:
    """The sandboxes of one machine; lives on the event loop of a Ray actor."""

    def __init__(self, capacity: int, idle_s: float = IDLE_S) -> None:
        """Begin with nothing.

        Args:
            capacity: how many sandboxes the node may hold.
            idle_s: after how many seconds without a client the actor ends.
        """
        self._name = ray.get_runtime_context().get_node_id()
        self._places = _Places(capacity, is_marked_draining(self._name))
        self._idle_s = idle_s
        self._counters: dict[Kind, _Counter] = {}
        self._opening = asyncio.Lock()
        self._tidying: asyncio.Task[None] | None = None
        self._seen = time.monotonic()
        # A driver may die before its first question arrives: an actor that nobody ever asks must end as well.
        self._unasked = threading.Timer(idle_s, lambda: ray.get_runtime_context().current_actor.state.remote())
        self._unasked.daemon = True
        self._unasked.start()

    async def state(self) -> Report:
        """Tell how full the node is."""
        self._begin_tidying()
        return Report(self._places.capacity, self._places.used, self._places.is_draining)

    async def report(self, kind: Kind, image: str | None, fresh: bool) -> Report:
        """Tell how the node is, for sandboxes of a kind and an image."""
        places = self._places
        try:
            counter = await self._counter(kind)
            await counter.look(fresh=fresh)
            has_image = await counter.has(image)
        except SandboxError as error:
            return Report(places.capacity, places.used, places.is_draining, failure=str(error))
        except (AgentgymError, ValueError, TypeError) as error:
            return Report(places.capacity, places.used, places.is_draining, refusal=str(error))
        return Report(
            places.capacity,
            places.used,
            places.is_draining,
            frozenset(counter.backend.capabilities),
            has_image,
            counter.desk.limits.body_mb << 20,
            counter.failure,
        )

    async def begin(self, kind: Kind, key: str) -> None:
        """Give a client a lease, or renew it."""
        (await self._counter(kind)).desk.begin(key)

    async def call(
        self,
        key: str,
        number: int,
        body: bytes | None,
        wait: float,
        done: tuple[int, ...],
        abandoned: tuple[int, ...],
    ) -> bytes | None:
        """Run a call once and return its packed answer, or None if it takes longer than `wait` seconds."""
        lease = self._lease(key, done, abandoned)
        operation = lease.find(number)
        if operation is None:
            if body is None:
                raise SandboxError(f"call {number} never came")
            operation = lease.submit(number, parse(body))
        await asyncio.wait((operation.answer, lease.over), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        if operation.answer.done() and not operation.answer.cancelled():
            return operation.answer.result()
        if lease.over.done():
            raise GoneError(f"the lease on its node is over: {lease.over.result()}")
        return None

    async def keep(self, key: str, wait: float, done: tuple[int, ...], abandoned: tuple[int, ...]) -> None:
        """Learn that a client lives, and let it wait until its lease is over or time is."""
        over = self._lease(key, done, abandoned).over
        await asyncio.wait((over,), timeout=wait)

    async def end(self, key: str) -> None:
        """End a lease and all that it holds."""
        desk = self._home(key)
        if desk is not None:
            await desk.end(key, "its client ended it")

    async def drain(self, is_draining: bool) -> Report:
        """Take no new sandboxes, or take them again; those that are there go on."""
        await asyncio.to_thread(mark_draining, self._name, is_draining)
        self._places.is_draining = is_draining
        return await self.state()

    async def leave(self) -> None:
        """End the actor."""
        ray.actor.exit_actor()

    def _lease(self, key: str, done: tuple[int, ...], abandoned: tuple[int, ...]) -> Lease:
        desk = self._home(key)
        if desk is None:
            raise GoneError(
                "the node does not know this client any more: its actor began anew, or heard nothing of it for too "
                "long, and all that it held there is gone"
            )
        lease = desk.find(key)
        lease.settle(done, abandoned)
        return lease

    def _home(self, key: str) -> Desk | None:
        return next((one.desk for one in self._counters.values() if one.desk.knows(key)), None)

    async def _counter(self, kind: Kind) -> _Counter:
        self._seen = time.monotonic()
        self._begin_tidying()
        async with self._opening:
            if kind not in self._counters:
                backend = await asyncio.to_thread(kind.create)
                self._counters[kind] = _Counter(backend, Desk(backend, kind.limits, self._places, builds=True))
            return self._counters[kind]

    def _begin_tidying(self) -> None:
        self._unasked.cancel()
        if self._tidying is None:
            # Ray keeps interrupts from its nodes' processes, but what runs in a sandbox may want to hear them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            self._tidying = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        """Close backends that nobody uses any more, and end the actor once it has none and nobody asks."""
        while True:
            await asyncio.sleep(_TIDY_S)
            now = time.monotonic()
            for kind, counter in list(self._counters.items()):
                if not counter.desk.is_empty:
                    counter.emptied = self._seen = now
                elif now - max(counter.emptied, self._seen) > self._idle_s:
                    del self._counters[kind]
                    counter.sweeping.cancel()
                    try:
                        await asyncio.to_thread(counter.desk.close)
                    except SandboxError as error:  # such as a daemon that is gone; the actor must end all the same
                        logger.warning("a backend that nobody uses could not be closed: %s", error)
            if not self._counters and now - self._seen > self._idle_s:
                ray.get_runtime_context().current_actor.leave.remote()
                return
