"""Every environment that the project brings, by family, ready to be played: none can be forgotten here.

An environment without a row of its own gets one without options, so that a new one is measured from its first day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import distribution
from typing import Any

import numpy as np

from agentgym import registry
from agentgym.env import AgentEnv
from agentgym.task import Task
from agentgym.testing import CountingBackend
from benchmarks import bundled_places
from benchmarks.bundled_places import Place

DISTRIBUTION = "agentgym-rlvr"
_DRAWN_FROM = 200
"""Tasks are drawn from so many at a set's beginning."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """One family of one environment."""

    id: str
    family: str = "-"
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "process"
    """Where its sandboxes come from, if it has any."""
    place: Callable[[ExitStack], Place] | None = None
    """Starts or writes what it plays on."""
    only: Callable[[Task], bool] = lambda _: True
    """Which tasks belong to the family."""

    @property
    def name(self) -> str:
        """The id without its namespace, and the family."""
        short = self.id.partition("/")[2]
        return short if self.family == "-" else f"{short}:{self.family}"

    @contextmanager
    def furnished(self) -> Iterator[Furnished]:
        """Yield what makes its environments, until whatever they play on is taken away again."""
        with ExitStack() as stack:
            place = self.place(stack) if self.place else Place()
            backend = CountingBackend(registry.create("sandboxes", self.backend, **place.backend))
            stack.callback(backend.close)
            make = partial(registry.make, self.id, sandbox=backend, **self.options, **place.options)
            yield Furnished(make, backend, self.only)


@dataclass(frozen=True, slots=True)
class Furnished:
    """A family that can be played."""

    make_env: Callable[[], AgentEnv]
    backend: CountingBackend
    only: Callable[[Task], bool]

    def draw(self, count: int, seed: int) -> list[Task]:
        """Return up to `count` tasks; the seed decides which."""
        env = self.make_env()
        tasks = list(env.tasks.filter(self.only).take(_DRAWN_FROM))
        env.close()
        kept = np.random.default_rng(seed).permutation(len(tasks))[:count]
        return [tasks[index] for index in sorted(kept)]


_PUZZLES = ("sat", "latin", "sudoku", "path", "countdown", "equations", "transforms")
_NAMED = (
    Bundled("agentgym/Code-v0", "repair", {"family": "repair"}),
    Bundled("agentgym/Code-v0", "functions", {"family": "functions"}),
    Bundled("agentgym/FunctionCall-v0", "calls", only=lambda task: "partly" not in task.id),
    Bundled("agentgym/FunctionCall-v0", "partly", only=lambda task: "partly" in task.id),
    Bundled("agentgym/Mcp-v0", "outside", place=bundled_places.mcp_outside),
    Bundled("agentgym/Mcp-v0", "in a sandbox", backend="docker", place=bundled_places.mcp_inside),
    Bundled("agentgym/OpenEnv-v0", place=bundled_places.openenv),
    *(Bundled("agentgym/Puzzle-v0", family, {"family": family}) for family in _PUZZLES),
    Bundled("agentgym/Terminal-v0", "harbor", backend="docker", place=bundled_places.harbor),
    Bundled("agentgym/Tools-v0", "built"),
    Bundled("agentgym/Tools-v0", "airline", {"family": "airline"}),
)


def bundled_ids() -> list[str]:
    """Return the ids of the environments that this distribution registers, sorted."""
    return sorted(one.name for one in distribution(DISTRIBUTION).entry_points.select(group="agentgym.envs"))


def bundled() -> list[Bundled]:
    """Return every family, sorted by environment."""
    named = {one.id for one in _NAMED}
    return sorted((*_NAMED, *(Bundled(one) for one in bundled_ids() if one not in named)), key=lambda one: one.id)
