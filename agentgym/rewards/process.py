"""Step rewards from a judge of single turns, in forms that cannot be farmed by adding turns."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Annotated

from pydantic import Field, FiniteFloat, model_validator

from agentgym.errors import VerifierError
from agentgym.rewards.base import AttemptScheme, LadderScheme, Positive, Price, Unit, judged_turns
from agentgym.types import Trajectory


class _ProcessScheme(LadderScheme, AttemptScheme):
    """Base: a rung, and a step reward for each turn that the process judge scored.

    Turns without a score earn nothing and count in no minimum. An attempt none of whose turns was scored is kept out:
    what the judge does not know is no zero.
    """

    score: str
    """The turn signal that holds the process score."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The process score."""
        return (self.score,)

    @abstractmethod
    def shape(self, scores: list[float], outcome: float) -> list[float]:
        """Return the step reward of each scored turn, in order."""

    def price(self, one: Trajectory) -> Price | None:
        """Return rung and step rewards."""
        scores, outcome = judged_turns(one, self.score), self.outcome(one)
        if scores is None:
            return None
        shaped = iter(self.shape([score for score in scores if score is not None], outcome))
        return Price(outcome, [0.0 if score is None else next(shaped) for score in scores])


class MinForm(_ProcessScheme):
    """PURE: an attempt is worth its worst turn, not the sum of its turns.

    Each score r_t becomes `softmax(-r / T)_t r_t`; the sum of these tends to min_t r_t as the temperature T tends
    to 0, and never exceeds the mean score, however many turns there are
    (Stop Summation: Min-Form Credit Assignment Is All Process Reward Model Needs for Reasoning).

    >>> scheme = MinForm(ladder={"failed": 0.0, "passed": 1.0}, score="process", temperature=0.1, weight=1.0)
    >>> [round(value, 3) for value in scheme.shape([0.9, 0.2, 0.9], outcome=1.0)]
    [0.001, 0.2, 0.001]
    """

    temperature: Positive
    """How soft the minimum is, in units of the score (0.1 in the paper)."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the step rewards against the outcome."""

    def shape(self, scores: list[float], outcome: float) -> list[float]:  # noqa: ARG002 -- the same for every outcome
        """Return the transformed scores."""
        worst = min(scores, default=0.0)
        shares = [math.exp((worst - score) / self.temperature) for score in scores]
        return [self.weight * score * share / sum(shares) for score, share in zip(scores, shares, strict=True)]


class ClipDelta(_ProcessScheme):
    """Clip and delta: process rewards whose sum has an upper bound that repeating good turns does not raise.

    Clipping replaces a score r_t by `min(r_t - clip, 0)`: turns that are good enough earn nothing, bad ones lose.
    Delta then pays `r_t - r_{t+1}`, and the last scored turn its own r_t, so that what remains from turn t on is r_t
    (On Designing Effective RL Reward at Training Time for LLM Reasoning).

    >>> delta = ClipDelta(ladder={"failed": 0.0}, score="process", clip=None, delta=True, weight=1.0)
    >>> delta.shape([0.5, 0.25, 1.0], outcome=0.0)
    [0.25, -0.75, 1.0]
    >>> clip = ClipDelta(ladder={"failed": 0.0}, score="process", clip=0.5, delta=False, weight=1.0)
    >>> clip.shape([0.5, 0.25, 1.0], outcome=0.0)
    [0.0, -0.25, 0.0]
    """

    clip: FiniteFloat | None
    """The score from which a turn is good enough (the paper's eta); None does not clip."""
    delta: bool
    """Whether to pay differences of neighbouring scores."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the step rewards against the outcome."""

    @model_validator(mode="after")
    def _bounded(self) -> ClipDelta:
        if self.clip is None and not self.delta:
            raise ValueError("neither clip nor delta leaves the plain sum, which is farmed; set one, or choose ungated")
        return self

    def shape(self, scores: list[float], outcome: float) -> list[float]:  # noqa: ARG002 -- the same for every outcome
        """Return the clipped scores, or their differences."""
        bounded = scores if self.clip is None else [min(score - self.clip, 0.0) for score in scores]
        if self.delta:
            bounded = [score - after for score, after in pairwise([*bounded, 0.0])]
        return [self.weight * score for score in bounded]


class ReNorm(_ProcessScheme):
    """PPR's reward normalisation: no turn of a failed attempt is worth having, and none of a right one is punished.

    With outcome r_o and process scores r_t, both between 0 and 1, a scored turn earns `r_t + r_o - 1`; the outcome
    itself stands at the end (Hybrid Reward Normalization for Process-supervised Non-verifiable Agentic Tasks).

    >>> scheme = ReNorm(ladder={"failed": 0.0, "passed": 1.0}, score="process")
    >>> scheme.shape([0.75, 0.25], outcome=0.0), scheme.shape([0.75, 0.25], outcome=1.0)
    ([-0.25, -0.75], [0.75, 0.25])
    """

    ladder: Annotated[dict[str, Unit], Field(min_length=1)]
    """The outcome reward of each named level, between 0 and 1."""

    def shape(self, scores: list[float], outcome: float) -> list[float]:
        """Return the normalised scores.

        Raises:
            VerifierError: if a score is not between 0 and 1.
        """
        if any(not 0.0 <= score <= 1.0 for score in scores):
            raise VerifierError(f"wanted process scores {self.score!r} between 0 and 1, found {scores}")
        return [score + outcome - 1.0 for score in scores]
