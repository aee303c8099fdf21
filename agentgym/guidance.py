"""Who gets a hint, when, and in which context the result is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field

from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.types import Group, Record

OffPolicy = Literal["none", "true", "shaped", "reset"]


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Ask for n attempts at a task."""

    task: Task
    n: int
    seed: int
    hint: str | None = None
    off_policy: OffPolicy = "none"
    """How the loss treats a hinted attempt that is trained in its bare context."""
    spare: int = 0
    """Attempts started beyond n: the first n to end with a verdict are kept and the others cancelled, so that nobody
    waits for stragglers. What is kept is then what was quick; the group counts how many were cut."""


class Guidance(Protocol):
    """Plans rounds of attempts and makes one group of them."""

    def plan(self, task: Task, history: Sequence[Group], *, size: int, seed: int) -> list[RolloutRequest]:
        """Return the next round for a task, given the rounds so far; an empty list ends it."""
        ...

    def merge(self, history: Sequence[Group]) -> Group:
        """Return the group that is trained."""
        ...


class NoGuidance(Record):
    """One round without hints."""

    def plan(self, task: Task, history: Sequence[Group], *, size: int, seed: int) -> list[RolloutRequest]:
        """Ask for one group of attempts."""
        return [] if history else [RolloutRequest(task, size, derive_seed(seed, "round", 0))]

    def merge(self, history: Sequence[Group]) -> Group:
        """Return the only group."""
        return history[0]


class Guide(Record):
    """Retry with a hint when a whole group failed, and train the hinted attempts in the bare context.

    Guide trains pi(y|x) on attempts sampled from pi(y|x, hint), with the ratio between the two, clipped
    (Adaptive Guidance Accelerates Reinforcement Learning of Reasoning Models). A task without hints, and a group
    with an unscored attempt and no failure, get no second round.
    """

    attempts: Annotated[int, Field(ge=1)] | None = None
    """How many of the group's failures hinted attempts replace; None replaces the whole group."""
    ratio: Literal["true", "shaped", "reset"] = "true"
    """`true`: pi(y|x) / pi_old(y|x, hint); `shaped`: p / (p + 0.1) as in AMPO; `reset`: as if on-policy."""
    hint: int = -1
    """Which of the task's hints; -1 is the strongest."""

    def plan(self, task: Task, history: Sequence[Group], *, size: int, seed: int) -> list[RolloutRequest]:
        """Ask for a bare round, then for a hinted one if every scored attempt failed."""
        if not history:
            return [RolloutRequest(task, size, derive_seed(seed, "round", 0))]
        if len(history) > 1 or history[0].solved or not history[0].scored or not task.hints:
            return []
        hint = task.hints[max(self.hint, -len(task.hints)) if self.hint < 0 else min(self.hint, len(task.hints) - 1)]
        count = min(self.attempts or size, size)
        return [RolloutRequest(task, count, derive_seed(seed, "round", 1), hint=hint, off_policy=self.ratio)]

    def merge(self, history: Sequence[Group]) -> Group:
        """Return the bare group, its unscored attempts and then its last failures replaced by the hinted ones."""
        if len(history) == 1:
            return history[0]
        bare = sorted(history[0].trajectories, key=lambda one: not one.scored)
        hinted = history[1].trajectories
        kept = bare[: max(0, len(bare) - len(hinted))]
        return Group(history[0].task_id, [*kept, *hinted], guided=True)
