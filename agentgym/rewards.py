"""Reward schemes: pure functions from a group's signals and verdicts to outcome and step rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field, FiniteFloat, model_validator

from agentgym.errors import RecipeError
from agentgym.types import Group, Record, Trajectory


@dataclass(frozen=True, slots=True)
class Rewards:
    """What a scheme makes of a group of G attempts with T turns each."""

    outcome: list[float]
    """[G]"""
    step: list[list[float]]
    """[G][T]: settled on the turn that earned it."""
    keep: list[bool]
    """[G]: False leaves an attempt out of the loss and of the group's mean and std."""

    @property
    def returns(self) -> list[float]:
        """[G]: outcome plus all step rewards; what an environment's `step` pays over the episode."""
        return [outcome + sum(step) for outcome, step in zip(self.outcome, self.step, strict=True)]


class RewardScheme(Protocol):
    """Prices a group; the same group always gets the same rewards."""

    def __call__(self, group: Group) -> Rewards:
        """Return the rewards of every attempt; unscored attempts get zeros and `keep` False."""
        ...


class OutcomeOnly(Record):
    """The verdict's value and nothing else."""

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        return Rewards(
            [_value(one) for one in group.trajectories],
            [[0.0] * len(one.turns) for one in group.trajectories],
            [one.scored for one in group.trajectories],
        )


class GatedRewards(Record):
    """G-RA: step rewards count only for attempts whose outcome reward reaches a threshold.

    With ladder value o and step signals s_kt of weights w_k, the return is
    `o + [o >= threshold] * sum_t sum_k w_k s_kt`
    (Stabilizing Long-term Multi-turn Reinforcement Learning with Gated Rewards).

    >>> scheme = GatedRewards(ladder={"failed": 0.0, "passed": 1.0}, threshold=1.0, step_weights={"valid_calls": 0.25})
    >>> scheme.settle("failed", [{"valid_calls": 1.0}, {"valid_calls": 1.0}])
    (0.0, [0.0, 0.0])
    >>> scheme.settle("passed", [{"valid_calls": 1.0}, {"valid_calls": 1.0}])
    (1.0, [0.25, 0.25])
    """

    ladder: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    """The outcome reward of each named level, such as {no_submission: -1, failed: 0, passed: 1}."""
    threshold: FiniteFloat
    """The outcome reward from which step rewards count (G-RA's delta)."""
    step_weights: dict[str, FiniteFloat]
    """The weight of each step signal; signals not named here weigh nothing."""

    @model_validator(mode="after")
    def _gate_can_open(self) -> GatedRewards:
        if self.threshold > max(self.ladder.values()):
            raise ValueError(
                f"the gate can never open: threshold {self.threshold} is above the ladder's top, "
                f"{max(self.ladder.values())}; lower the threshold"
            )
        return self

    def opens(self, outcome: float) -> bool:
        """Whether step rewards count for an attempt with this outcome reward."""
        return outcome >= self.threshold

    def settle(self, level: str, signals: list[dict[str, float]]) -> tuple[float, list[float]]:
        """Return one attempt's outcome reward and its step reward per turn."""
        if level not in self.ladder:
            raise RecipeError(
                f"the ladder has no rung for level {level!r}; it names {', '.join(sorted(self.ladder))}; add the rung"
            )
        outcome = self.ladder[level]
        if not self.opens(outcome):
            return outcome, [0.0] * len(signals)
        return outcome, [
            sum(weight * turn.get(name, 0.0) for name, weight in self.step_weights.items()) for turn in signals
        ]

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        outcomes, steps = [], []
        for one in group.trajectories:
            turns = [{signal.name: signal.value for signal in turn.signals} for turn in one.turns]
            level = one.verdict.level if one.scored and one.verdict else None
            outcome, step = self.settle(level, turns) if level is not None else (0.0, [0.0] * len(turns))
            outcomes.append(outcome)
            steps.append(step)
        return Rewards(outcomes, steps, [one.scored for one in group.trajectories])


class UngatedSum(GatedRewards):
    """The same sum with the gate always open: what agents learn to farm. Kept for comparison.

    >>> scheme = UngatedSum(ladder={"failed": 0.0}, threshold=0.0, step_weights={"valid_calls": 0.5})
    >>> scheme.settle("failed", [{"valid_calls": 1.0}, {"valid_calls": 1.0}])
    (0.0, [0.5, 0.5])
    """

    threshold: float = 0.0
    """Has no meaning here, and only 0 is accepted."""

    @model_validator(mode="after")
    def _no_threshold(self) -> UngatedSum:
        if self.threshold != 0.0:
            raise ValueError("an ungated sum has no threshold; drop the field or choose g_ra")
        return self

    def opens(self, outcome: float) -> bool:  # noqa: ARG002 -- the gate that is always open
        """Whether step rewards count: always."""
        return True


def settlement(scheme: RewardScheme, trajectory: Trajectory) -> float:
    """Return what one finished episode is worth under a scheme that needs no siblings."""
    return scheme(Group(trajectory.task_id, [trajectory])).returns[0]


def check_levels(scheme: RewardScheme, levels: Mapping[str, str] | tuple[str, ...]) -> None:
    """Refuse a ladder that lacks a rung for a level that the environment can reach.

    Raises:
        RecipeError: naming the missing rungs.
    """
    ladder = getattr(scheme, "ladder", None)
    missing = [level for level in levels if ladder is not None and level not in ladder]
    if missing:
        raise RecipeError(f"the ladder has no rung for {', '.join(missing)}; the environment can reach it, so add it")


def _value(trajectory: Trajectory) -> float:
    verdict = trajectory.verdict
    return verdict.value if verdict is not None and verdict.value is not None else 0.0
