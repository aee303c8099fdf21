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
_HEARD_CHARS = 1000


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
    waits for stragglers. What is kept is then what was quick; the group counts how many were cut, and has those that
    were lost without a verdict among its replaced."""


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


def heard(group: Group) -> str:
    """Return what the environment said of a group's best failed attempt; hidden tests are never part of it.

    The best is the one that passed the greatest share of its tests, as far as its verdict tells; of equals the first.
    """
    failed = [one for one in group.scored if not one.passed]
    if not failed:
        return ""
    best = max(failed, key=lambda one: (one.verdict.components.get("passed") or 0.0) if one.verdict else 0.0)
    said = [message.content.strip() for turn in best.turns for message in turn.observation if message.content.strip()]
    parts = {"the environment last answered": said[-1] if said else "",
             "it was judged": best.verdict.feedback.strip() if best.verdict else ""}  # fmt: skip
    told = [f"{name}: {_cut(text)}" for name, text in parts.items() if text]
    return "\n".join(["In an earlier attempt that failed,", *told]) if told else ""


def _cut(text: str) -> str:
    half = _HEARD_CHARS // 2
    return text if len(text) <= _HEARD_CHARS else f"{text[:half]} … {text[-half:]}"


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
    feedback: bool = False
    """Add what the environment said of the best failed attempt: its last failing test, and why it was not accepted
    (the environment feedback of Agent-RLVR). Tasks without hints then get a second round too."""

    def plan(self, task: Task, history: Sequence[Group], *, size: int, seed: int) -> list[RolloutRequest]:
        """Ask for a bare round, then for a hinted one if every scored attempt failed."""
        if not history:
            return [RolloutRequest(task, size, derive_seed(seed, "round", 0))]
        if len(history) > 1 or history[0].solved or not history[0].scored:
            return []
        hint = "\n".join(
            [*self._chosen(task.hints), *([told] if self.feedback and (told := heard(history[0])) else [])]
        )
        if not hint:
            return []
        count = min(self.attempts or size, size)
        return [RolloutRequest(task, count, derive_seed(seed, "round", 1), hint=hint, off_policy=self.ratio)]

    def _chosen(self, hints: Sequence[str]) -> list[str]:
        if not hints:
            return []
        return [hints[max(self.hint, -len(hints)) if self.hint < 0 else min(self.hint, len(hints) - 1)]]

    def merge(self, history: Sequence[Group]) -> Group:
        """Return the bare group, its unscored attempts and then its last failures replaced by the hinted ones."""
        if len(history) == 1:
            return history[0]
        bare = sorted(history[0].trajectories, key=lambda one: not one.scored)
        hinted = history[1].trajectories
        kept = bare[: max(0, len(bare) - len(hinted))]
        return Group(history[0].task_id, [*kept, *hinted], guided=True)
