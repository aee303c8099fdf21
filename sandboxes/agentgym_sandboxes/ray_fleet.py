"""The nodes of a Ray cluster that lend sandboxes: how they are, which is next, and what this process holds there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from agentgym.errors import CapabilityError, MissingExtraError, SandboxError
from agentgym_sandboxes.ray_cluster import NAMESPACE, RESOURCE, capacity_of, is_marked_draining, name_of, offering, only
from agentgym_sandboxes.ray_line import RayLine, ask
from agentgym_sandboxes.ray_node import Kind, Node, Report
from agentgym_sandboxes.remote_lease import Lease
from agentgym_sandboxes.remote_wire import PROTOCOL, LeaseLostError

try:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

logger = logging.getLogger(__name__)

_CALLS = 100_000
"""Of all drivers on one actor at once; most of them wait."""
_FRESH_S = 1.0
"""For how long a look at the nodes is good enough to choose by; the node itself has the last word."""
_MOMENT_S = 2.0
"""How long slow nodes are waited for where another one has answered."""
_FIRST_S = 90.0
"""The same where none has: an actor may have to start on a busy machine."""
_PATIENT_S = 20.0
_AVOID_S = 5.0


@dataclass(frozen=True, slots=True)
class View:
    """A node as it was a moment ago."""

    id: str
    name: str
    report: Report

    @property
    def is_well(self) -> bool:
        """Whether sandboxes can start there if it has room and does not drain."""
        return not self.trouble

    @property
    def trouble(self) -> str:
        """Why none can start there now, or ever; empty if they can."""
        return self.report.failure or self.report.refusal

    @property
    def told(self) -> str:
        """One line for people."""
        report = self.report
        state = "full" if report.used >= report.capacity else "open"
        state = "drains" if report.is_draining else self.trouble or state
        return f"{self.name} {self.id[:8]}: {report.used} of {report.capacity} sandboxes, {state}"


def choose(
    views: Iterable[View], pending: Mapping[str, int], tried: Collection[str] = (), *, roomy: bool = True
) -> View | None:
    """Return the node for the next sandbox: the least loaded that has the image, else the least loaded with room.

    Args:
        views: all nodes.
        pending: how many sandboxes were sent to a node since it reported.
        tried: ids of nodes that are out of the question.
        roomy: False takes full and draining nodes too.

    >>> one, two = (View(name, name, Report(4, used, False, has_image=has)) for name, used, has in
    ...             [("one", 2, True), ("two", 0, False)])
    >>> choose([one, two], {}).name, choose([one, two], {"one": 2}).name
    ('one', 'two')
    """

    def used(view: View) -> int:
        return view.report.used + pending.get(view.id, 0)

    able = [one for one in views if one.is_well and one.id not in tried]
    if roomy:
        able = [one for one in able if not one.report.is_draining and used(one) < one.report.capacity]
    return min(able, key=lambda one: (not one.report.has_image, used(one) / one.report.capacity, one.id), default=None)


class Fleet:
    """Safe to use from many threads of one process that is connected to a cluster."""

    def __init__(self, kind: Kind, idle_s: float) -> None:
        self._kind = kind
        self._idle_s = idle_s
        self._lock = threading.RLock()
        self._actors: dict[str, Any] = {}
        self._leases: dict[str, Lease] = {}
        self._asked: dict[tuple[str, str | None], Any] = {}
        self._seen: dict[str | None, tuple[float, list[View]]] = {}
        self._pending: dict[str, int] = {}
        self._avoided: dict[str, float] = {}
        self._makers: set[tuple[str | None, str]] = set()

    def look(self, image: str | None = None, *, fresh: bool = False, patient: bool = False) -> list[View]:
        """Return the nodes that are alive, as they are for sandboxes of an image.

        Args:
            image: by the name that a task gives it.
            fresh: let every backend check itself now.
            patient: wait longer for slow nodes.

        Raises:
            SandboxError: no node of the cluster offers sandboxes, or none answers.
            CapabilityError: no node knows such a backend or option.
        """
        with self._lock:
            when, views = self._seen.get(image, (0.0, []))
            if fresh or time.monotonic() - when > _FRESH_S:
                views = self._views(image, fresh, patient)
                self._seen = {one: seen for one, seen in self._seen.items() if time.monotonic() - seen[0] < _FRESH_S}
                self._seen[image] = time.monotonic(), views
            return [one for one in views if self._avoided.get(one.id, 0.0) < time.monotonic()]

    def choose(self, image: str | None, tried: Collection[str], *, roomy: bool = True) -> View | None:
        """Return the node for the next sandbox, or None if no node will do; a `roomy` one counts as sent there."""
        with self._lock:
            views = [self._hopeful(image, one) for one in self.look(image)]
            found = choose(views, self._pending, tried, roomy=roomy)
            if found is not None:
                self._pending[found.id] = self._pending.get(found.id, 0) + roomy
                if not found.report.has_image:
                    self._makers.add((image, found.id))
            return found

    def failed(self, image: str | None, view: View) -> None:
        """Learn that nothing could be begun on a node."""
        with self._lock:
            self._makers.discard((image, view.id))

    def _hopeful(self, image: str | None, view: View) -> View:
        """Take a node that an image is being made on to have it, so that not every node makes it."""
        if view.report.has_image:
            self._makers.discard((image, view.id))
        if (image, view.id) not in self._makers:
            return view
        return replace(view, report=replace(view.report, has_image=True))

    def lease(self, view: View) -> Lease:
        """Return this process's lease on a node.

        Raises:
            LeaseLostError: the node is gone.
        """
        with self._lock:
            lease = self._leases.get(view.id)
            if lease is None or lease.lost is not None:
                line = RayLine(self._actor(view.id, view.report.capacity), self._kind, f"the Ray node {view.name}")
                lease = self._leases[view.id] = Lease(line, self._kind.lease_s, view.report.body_bytes)
            return lease

    def avoid(self, node: str) -> None:
        """Send nothing to a node that was lost, until it has had time to come back."""
        with self._lock:
            self._avoided[node] = time.monotonic() + _AVOID_S
            self._actors.pop(node, None)
            self.forget()

    def forget(self) -> None:
        """Look again at all nodes before the next choice."""
        with self._lock:
            self._seen.clear()

    def drain(self, word: str, is_draining: bool) -> View:
        """Let a node take no new sandboxes, or take them again; returns how it is then.

        Args:
            word: its name, or the beginning of its id.
            is_draining: whether it takes none.

        Raises:
            SandboxError: there is no such node, or more than one.
        """
        node = only(offering(), word)
        name, where = node["NodeID"], f"the Ray node {name_of(node)}"
        with self._lock:
            actor = self._actor(name, capacity_of(node))
            self.forget()
        try:
            report = ask(actor, where, "drain", is_draining)
        except LeaseLostError:  # the actor that was known here; another one takes its place
            with self._lock:
                self._actors.pop(name, None)
                actor = self._actor(name, capacity_of(node))
            report = ask(actor, where, "drain", is_draining)
        return View(name, name_of(node), report)

    def close(self) -> None:
        """End all leases; a node that is out of reach ends its one by itself."""
        with self._lock:
            leases, self._leases = list(self._leases.values()), {}
        for lease in leases:
            try:
                lease.end("its backend was closed")
            except SandboxError as error:
                logger.warning("a lease ends by itself: %s", error)

    def _views(self, image: str | None, fresh: bool, patient: bool) -> list[View]:
        nodes = {node["NodeID"]: node for node in offering()}
        well = [name for name in nodes if self._avoided.get(name, 0.0) < time.monotonic()]
        # One that did not answer the last time is not asked, or waited for, again.
        late = {} if fresh else {name: self._asked[name, image] for name in well if (name, image) in self._asked}
        asked = {
            name: self._actor(name, capacity_of(nodes[name])).report.remote(self._kind, image, fresh)
            for name in well
            if name not in late
        }
        refs = {**late, **asked}
        ready = _answered(list(late.values()), 0.0) | _answered(
            list(asked.values()), _PATIENT_S if patient else _MOMENT_S
        )
        if not ready and refs:
            ready = set(ray.wait(list(refs.values()), num_returns=1, timeout=_FIRST_S)[0])
        views = [self._view(nodes[name], ref) for name, ref in refs.items() if ref in ready]
        self._asked = {key: ref for key, ref in self._asked.items() if key[0] in well and key[1] != image}
        self._asked |= {(name, image): ref for name, ref in refs.items() if ref not in ready}
        if refs and not views:
            raise SandboxError(
                f"no Ray node answers within {_FIRST_S:.0f} s: is agentgym installed on all of them, and "
                f"is {RESOURCE!r} claimed by nothing else?"
            )
        told = [view for view in views if not view.report.failure]
        if told and all(view.report.refusal for view in told):  # one alone may have another release
            raise CapabilityError(
                f"the Ray node {told[0].name} refuses the backend {self._kind.backend!r}: {told[0].report.refusal}"
            )
        return views

    def _view(self, node: dict[str, Any], ref: Any) -> View:
        name, word = node["NodeID"], name_of(node)
        try:
            report: Report = ray.get(ref)
        except RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.avoid(name)
            return View(name, word, Report(capacity_of(node), 0, False, failure=f"its actor is lost: {reason}"))
        self._pending.pop(name, None)
        view = View(name, word, report)
        if view.trouble:
            logger.warning("the Ray node %s is left out: %s", word, view.trouble)
        return view

    def _actor(self, node: str, capacity: int) -> Any:
        if node not in self._actors:
            # All of the node's resource is the actor's, so that Ray itself shows who hands it out.
            self._actors[node] = (
                ray.remote(Node)
                .options(
                    name=f"sandboxes-{PROTOCOL}-{node}",
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    num_cpus=0,
                    resources={RESOURCE: capacity},
                    max_concurrency=_CALLS,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                )
                .remote(capacity, self._idle_s)
            )
        return self._actors[node]


def states() -> list[View]:
    """Return every node that offers sandboxes and how full it is, without starting anything.

    Raises:
        SandboxError: no node of the cluster offers any.
    """
    found = []
    for node in offering():
        report = Report(capacity_of(node), 0, is_marked_draining(node["NodeID"]))
        with suppress(ValueError, LeaseLostError):  # without an actor it holds none
            actor = ray.get_actor(f"sandboxes-{PROTOCOL}-{node['NodeID']}", namespace=NAMESPACE)
            report = ask(actor, f"the Ray node {name_of(node)}", "state")
        found.append(View(node["NodeID"], name_of(node), report))
    return found


def _answered(refs: list[Any], seconds: float) -> set[Any]:
    return set(ray.wait(refs, num_returns=len(refs), timeout=seconds)[0]) if refs else set()
