"""What the backends of a cluster's nodes keep there: every node is asked, and tidies up, by itself.

Only the machine that a process ran on can tell whether it lives, so no node speaks for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agentgym import registry
from agentgym.errors import AgentgymError, MissingExtraError
from agentgym.upkeep import Decision, Kept, Maintained
from agentgym_sandboxes.ray_cluster import name_of, offering

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

_PATIENCE_S = 120.0
"""For all nodes together: removing many containers takes a while."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one node says."""

    node: str
    kept: Sequence[Kept] = ()
    decisions: Sequence[Decision] = ()
    failure: str = ""
    """Why it says nothing."""


def inventory(backend: str) -> Iterator[Told]:
    """Yield the sandboxes of every run that a backend has on each node.

    Raises:
        SandboxError: no node of the cluster offers sandboxes.
    """
    for node, found in _ask(backend, "inventory"):
        yield Told(node, failure=found) if isinstance(found, str) else Told(node, kept=found)


def collect(backend: str, *, images: bool, expired: bool, dry_run: bool) -> Iterator[Told]:
    """Let every node remove what provably has no living owner; see `agentgym.upkeep.Upkeep`.

    Raises:
        SandboxError: no node of the cluster offers sandboxes.
    """
    for node, found in _ask(backend, "collect", images=images, expired=expired, dry_run=dry_run):
        yield Told(node, failure=found) if isinstance(found, str) else Told(node, decisions=found)


def _ask(backend: str, method: str, **options: bool) -> Iterator[tuple[str, Any]]:
    """Yield each node's name and its answer, or why there is none."""
    asked = [(name_of(node), _at(node["NodeID"]).remote(backend, method, options)) for node in offering()]
    done = set(ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=_PATIENCE_S)[0])
    for name, ref in asked:
        if ref not in done:
            ray.cancel(ref)
            yield name, f"it does not answer within {_PATIENCE_S:.0f} s"
            continue
        try:
            yield name, ray.get(ref)
        except RayError as error:
            told = error.cause if isinstance(error, RayTaskError) else error
            yield name, (str(told).strip().splitlines() or [type(told).__name__])[0]


def _at(node: str) -> Any:
    # Beside the node's actor, which may be the one that crashed, and claiming nothing.
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_looked_after).options(num_cpus=0, scheduling_strategy=strategy)


def _looked_after(backend: str, method: str, options: dict[str, bool]) -> list[Kept] | list[Decision] | str:
    """Return what this node's upkeep answers, or why it does not: not every exception of ours can travel."""
    try:
        made = registry.create("sandboxes", backend)
        if not isinstance(made, Maintained):
            return f"the sandbox backend {backend!r} keeps nothing on a machine to look after"
        answer: list[Kept] | list[Decision] = list(getattr(made.upkeep(), method)(**options))
    except AgentgymError as error:
        return str(error)
    return answer
