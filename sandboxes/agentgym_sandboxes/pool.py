"""Unused sandboxes that wait for their one episode, so that nobody waits for a start."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from agentgym.errors import AgentgymError, SandboxError
from agentgym.sandbox import SandboxSpec

logger = logging.getLogger(__name__)


class Warm(Protocol):
    """What the pool must know of a sandbox."""

    id: str

    def is_well(self) -> bool:
        """Whether it answers now."""
        ...

    def close(self) -> None:
        """Remove it."""
        ...


S = TypeVar("S", bound=Warm)


@dataclass(slots=True)
class PoolStats:
    """How often the pool helped."""

    hits: int = 0
    misses: int = 0
    discarded: int = 0
    """Were too old or did not answer."""


@dataclass(slots=True)
class _Shelf(Generic[S]):
    spec: SandboxSpec
    wanted: int = 0
    coming: int = 0
    waiting: deque[tuple[float, S]] = field(default_factory=deque)


class WarmPool(Generic[S]):
    """Keeps up to `size` unused sandboxes of the specs that were asked for last; safe to use from many threads.

    One that was handed out never comes back: whatever ran agent code is closed by whoever used it.
    """

    def __init__(self, create: Callable[[SandboxSpec], S], size: int, workers: int, longest_wait_s: float) -> None:
        """Take how one is created, with `longest_wait_s` more to live than its spec says."""
        if size < 1:
            raise ValueError(f"a pool holds at least 1 sandbox, not {size}")
        self._create = create
        self._size = size
        self._longest_wait_s = longest_wait_s
        self._lock = threading.Lock()
        self._shelves: OrderedDict[str, _Shelf[S]] = OrderedDict()
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="agentgym-pool")
        self._jobs: set[Future[None]] = set()
        self._closed = False
        self.stats = PoolStats()

    def take(self, spec: SandboxSpec) -> S | None:
        """Return an unused sandbox of this spec that is well, or None; its successor waits for `started`."""
        key = spec.model_dump_json()
        while True:
            with self._lock:
                shelf = self._shelves.setdefault(key, _Shelf(spec))
                self._shelves.move_to_end(key)
                shelf.wanted = self._size
                found = shelf.waiting.popleft() if shelf.waiting else None
            if found is None:
                self.stats.misses += 1
                break
            since, sandbox = found
            if time.monotonic() - since < self._longest_wait_s and sandbox.is_well():
                self.stats.hits += 1
                return sandbox
            self.stats.discarded += 1
            self._do(lambda sandbox=sandbox: _discard(sandbox))  # type: ignore[misc]
        return None

    def started(self) -> None:
        """Learn that the one that was wanted is in use, so that starting others takes nothing from it."""
        self._refill()

    def prepare(self, spec: SandboxSpec, count: int, timeout: float = 300.0) -> int:
        """Start `count` sandboxes of a spec and wait for them; return how many are there."""
        key = spec.model_dump_json()
        with self._lock:
            shelf = self._shelves.setdefault(key, _Shelf(spec))
            self._shelves.move_to_end(key)
            shelf.wanted = min(count, self._size)
        self._refill()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._lock:
                if len(shelf.waiting) >= shelf.wanted or not shelf.coming:
                    break
            time.sleep(0.005)
        return len(shelf.waiting)

    def later(self, remove: Callable[[], None]) -> None:
        """Remove what is left of a used sandbox while others work."""
        self._do(lambda: _quietly(remove))

    def empty(self) -> None:
        """Remove every unused sandbox, and keep none ready any more."""
        with self._lock:
            self._closed = True
            shelves = list(self._shelves.values())
            self._shelves.clear()
        for shelf in shelves:
            for _, sandbox in shelf.waiting:
                self._do(lambda sandbox=sandbox: _discard(sandbox))  # type: ignore[misc]

    def close(self) -> None:
        """Empty the pool and wait for what it still does."""
        self.empty()
        self._workers.shutdown(wait=True)

    def _refill(self) -> None:
        jobs: list[_Shelf[S]] = []
        surplus: list[S] = []
        with self._lock:
            if self._closed:
                return
            room = self._size
            for shelf in reversed(self._shelves.values()):  # the spec asked for last comes first
                wanted = min(shelf.wanted, room)
                while len(shelf.waiting) > wanted:
                    surplus.append(shelf.waiting.popleft()[1])
                missing = wanted - len(shelf.waiting) - shelf.coming
                for _ in range(missing):
                    shelf.coming += 1
                    jobs.append(shelf)
                room -= wanted
            for key in [key for key, shelf in self._shelves.items() if not (shelf.waiting or shelf.coming)][:-1]:
                del self._shelves[key]
        for one in surplus:
            self._do(lambda one=one: _discard(one))  # type: ignore[misc]
        for shelf in jobs:
            self._do(lambda shelf=shelf: self._start(shelf))  # type: ignore[misc]

    def _start(self, shelf: _Shelf[S]) -> None:
        sandbox: S | None = None
        try:
            if not self._closed:
                sandbox = self._create(shelf.spec)
        except AgentgymError as error:  # whoever asks next starts one himself, and hears the reason
            logger.warning("a sandbox could not be kept ready: %s", error)
            shelf.wanted = 0
        finally:
            with self._lock:
                shelf.coming -= 1
                keep = sandbox is not None and not self._closed
                if keep and sandbox is not None:
                    shelf.waiting.append((time.monotonic(), sandbox))
        if sandbox is not None and not keep:
            _discard(sandbox)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            future = self._workers.submit(job)
        except RuntimeError:  # the pool is closed: nobody works for it any more
            job()
            return
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)


def _discard(sandbox: Warm) -> None:
    _quietly(sandbox.close)


def _quietly(remove: Callable[[], None]) -> None:
    try:
        remove()
    except SandboxError as error:  # the next sweep removes it
        logger.warning("a sandbox could not be removed: %s", error)
