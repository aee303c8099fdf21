"""What every reward scheme is made of: prices, named rungs, signals and components that are never guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field, FiniteFloat

from agentgym.errors import RecipeError, VerifierError
from agentgym.types import Group, Record, Trajectory

Ladder = Annotated[dict[str, FiniteFloat], Field(min_length=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    """Prices a group; the same group always gets the same rewards, between two updates of a scheme that learns."""

    def __call__(self, group: Group) -> Rewards:
        """Return the rewards of every attempt; unscored attempts get zeros and `keep` False."""
        ...


@dataclass(frozen=True, slots=True)
class Price:
    """What one attempt of T turns is worth."""

    outcome: float
    step: list[float]
    """[T]"""


class Scheme(Record, ABC):
    """Base of the schemes that are records: what a recipe may say about them is exactly their fields."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The turn signals that this scheme reads; an environment that declares none of that name refuses it."""
        return ()

    @abstractmethod
    def __call__(self, group: Group) -> Rewards:
        """Price a group."""


class AttemptScheme(Scheme):
    """Base of schemes that price each scored attempt by itself."""

    @abstractmethod
    def price(self, one: Trajectory) -> Price | None:
        """Return what a scored attempt is worth, or None, which keeps it out, where what decides it is unknown."""

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        return assemble(group, [self.price(one) if one.scored else None for one in group.trajectories])


class LadderScheme(Scheme):
    """Base of schemes whose outcome reward is a named rung."""

    ladder: Ladder
    """The outcome reward of each named level, such as {no_submission: -1, failed: 0, passed: 1}."""

    def rung(self, level: str) -> float:
        """Return the outcome reward of a level.

        Raises:
            RecipeError: if the ladder does not name it.
        """
        if level not in self.ladder:
            raise RecipeError(
                f"the ladder has no rung for level {level!r}; it names {', '.join(sorted(self.ladder))}; add the rung"
            )
        return self.ladder[level]

    def outcome(self, one: Trajectory) -> float:
        """Return the outcome reward of a scored attempt."""
        return self.rung(level_of(one))


class RankedLadder(LadderScheme):
    """Base of schemes that may move an attempt, but never a right one below a wrong one."""

    def check_gap(self, name: str, most: float) -> None:
        """Refuse an amount that could close the distance between the ladder's two highest prices.

        Raises:
            ValueError: naming the field.
        """
        rungs = sorted(set(self.ladder.values()))
        gap = rungs[-1] - rungs[-2] if len(rungs) > 1 else 0.0
        if not most < gap:
            raise ValueError(
                f"{name} {most:g} is not below the distance {gap:g} between the ladder's two highest prices, so that "
                f"a wrong answer could outrank a right one; lower {name}"
            )

    def outcome(self, one: Trajectory) -> float:
        """Return the outcome reward of a scored attempt.

        Raises:
            RecipeError: if a right answer is not on the ladder's top, or a wrong one is.
        """
        rung = super().outcome(one)
        if one.passed != (rung == max(self.ladder.values())):
            kind = "right" if one.passed else "wrong"
            raise RecipeError(
                f"a {kind} answer has the level {level_of(one)!r}, worth {rung:g}; "
                "give the highest price to right answers, and to nothing else"
            )
        return rung


def level_of(one: Trajectory) -> str:
    """Return the level of an attempt's verdict."""
    if one.verdict is None:
        raise RecipeError(f"an attempt at {one.task_id!r} has no verdict; grade it before it is priced")
    return one.verdict.level


def flat(one: Trajectory, outcome: float) -> Price:
    """Return a price without step rewards."""
    return Price(outcome, [0.0] * len(one.turns))


def assemble(group: Group, prices: Sequence[Price | None]) -> Rewards:
    """Lay out the prices of a group; attempts without one get zeros and are kept out."""
    filled = [price or flat(one, 0.0) for one, price in zip(group.trajectories, prices, strict=True)]
    return Rewards(
        [price.outcome for price in filled], [price.step for price in filled], [price is not None for price in prices]
    )


def judged_turns(one: Trajectory, signal: str) -> list[float | None] | None:
    """Return the process score of each turn, None for a turn that has none; None if a whole attempt went unjudged."""
    scores = [next((one.value for one in reversed(turn.signals) if one.name == signal), None) for turn in one.turns]
    return None if scores and all(score is None for score in scores) else scores


def component(one: Trajectory, name: str) -> float | None:
    """Return a component of the verdict; None, which never becomes 0, where its grader does not know.

    Raises:
        RecipeError: if the verdict has no component of that name.
        VerifierError: if it is not between 0 and 1.
    """
    found = one.verdict.components if one.verdict is not None else {}
    if name not in found:
        known = f"it has {', '.join(sorted(found))}" if found else "it has none"
        raise RecipeError(
            f"the verdict of level {level_of(one)!r} has no component {name!r}; {known}; "
            "name one that the grader always gives"
        )
    value = found[name]
    if value is not None and not 0.0 <= value <= 1.0:
        raise VerifierError(f"wanted the component {name!r} between 0 and 1, found {value!r}")
    return value


def settlement(scheme: RewardScheme, trajectory: Trajectory) -> float:
    """Return what one finished episode is worth by itself: the price of an attempt without siblings."""
    return scheme(Group(trajectory.task_id, [trajectory])).returns[0]
