"""Schemes in which the other attempts of the group decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentgym.errors import RecipeError
from agentgym.rewards.base import (
    LadderScheme,
    Positive,
    Price,
    RankedLadder,
    Rewards,
    Unit,
    assemble,
    flat,
    judged_turns,
)
from agentgym.types import Group, Trajectory


class ProcessFilter(LadderScheme):
    """PROF: process scores choose which attempts are trained on, and never enter the reward.

    Of the attempts that the process judge scored, `size` stay, half of them right where possible: right answers go
    lowest mean score first, wrong ones highest first
    (Beyond Correctness: Harmonizing Process and Outcome Rewards through RL Training).

    >>> scheme = ProcessFilter(ladder={"failed": 0.0, "passed": 1.0}, score="process", size=4, drop="both")
    >>> scheme.counts(right=6, wrong=2), scheme.counts(right=7, wrong=1)
    ((2, 2), (3, 1))
    """

    score: str
    """The turn signal that holds the process score; attempts without any are kept out."""
    size: Annotated[int, Field(ge=2)]
    """How many attempts of a group stay; smaller groups stay whole."""
    drop: Literal["both", "right"]
    """`right` never drops a wrong answer, the safer choice with a weak judge; then more than `size` may stay."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The process score."""
        return (self.score,)

    def price(self, one: Trajectory) -> Price:
        """Return the rung."""
        return flat(one, self.outcome(one))

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        means = {
            index: found
            for index, one in enumerate(group.trajectories)
            if one.scored and (found := self._mean(one)) is not None
        }
        right = sorted((index for index in means if group.trajectories[index].passed), key=lambda at: -means[at])
        wrong = sorted((index for index in means if not group.trajectories[index].passed), key=means.__getitem__)
        rights, wrongs = self.counts(len(right), len(wrong))
        kept = {*right[:rights], *wrong[:wrongs]}
        return assemble(group, [self.price(one) if at in kept else None for at, one in enumerate(group.trajectories)])

    def counts(self, right: int, wrong: int) -> tuple[int, int]:
        """Return how many of so many right and wrong attempts stay."""
        stay = min(self.size, right + wrong)
        # Where the size is odd, the larger side keeps one more.
        half = (stay + (right >= wrong)) // 2
        rights = min(right, max(stay - wrong, half))
        return rights, stay - rights if self.drop == "both" else wrong

    def _mean(self, one: Trajectory) -> float | None:
        scores = judged_turns(one, self.score)
        if scores is None:
            return None
        # An attempt that never took a turn agrees with its failure: it is the last of the wrong ones to go.
        return fmean(score for score in scores if score is not None) if scores else -math.inf


class LengthPenalty(RankedLadder):
    """GRPO-lambda: long right answers are worth less, but only in groups that are mostly right.

    A right answer of length l loses `penalty * sigmoid((l - mean) / std)` over the group's right answers, where the
    group's pass rate reaches a threshold; elsewhere length is free
    (Stable Reinforcement Learning for Efficient Reasoning). The paper opens the penalty for the batch's most solved
    groups; a threshold keeps the price a function of the group alone.

    >>> scheme = LengthPenalty(ladder={"failed": 0.0, "passed": 1.0}, penalty=0.5, pass_rate=0.5, unit="turns")
    >>> [round(cost, 2) for cost in scheme.costs([2, 4, 6])]
    [0.11, 0.25, 0.39]
    """

    penalty: Positive
    """The most that length can cost."""
    pass_rate: Unit
    """The share of right answers among the group's scored attempts from which length costs."""
    unit: Literal["tokens", "turns"]
    """Sampled tokens, or turns."""

    @model_validator(mode="after")
    def _ranks(self) -> LengthPenalty:
        self.check_gap("penalty", self.penalty)
        return self

    def costs(self, lengths: Sequence[float]) -> list[float]:
        """Return what the length of each of a group's right answers costs."""
        spread = pstdev(lengths) if lengths else 0.0
        scaled = [(length - fmean(lengths)) / spread if spread > 0.0 else 0.0 for length in lengths]
        return [self.penalty / (1.0 + math.exp(-one)) for one in scaled]

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        right = [one for one in group.scored if one.passed]
        costs = [0.0] * len(right)
        if right and len(right) / len(group.scored) >= self.pass_rate:
            # A lone right answer has nothing to be compared with, and an attempt in text only has no tokens.
            costs = self.costs([self._length(one) for one in right] if len(right) > 1 else [0.0])
        cost = iter(costs)
        return assemble(
            group,
            [
                flat(one, self.outcome(one) - (next(cost) if one.passed else 0.0)) if one.scored else None
                for one in group.trajectories
            ],
        )

    def _length(self, one: Trajectory) -> float:
        if self.unit == "turns":
            return float(len(one.turns))
        if one.tokens is None:
            raise RecipeError(
                f"an attempt at {one.task_id!r} has no token ids to measure; use unit: turns, or a policy with tokens"
            )
        return float(one.tokens.sampled_count)


class ToolContrast(RankedLadder):
    """GCPO: using a tool is paid or punished according to whether the attempts that used it did better.

    `sign(pass rate with - pass rate without) * bonus` for attempts that used the tool, on the turn of its first use;
    nothing where the rates differ by no more than the margin, or where all or none used it
    (GeometryZero: Improving Geometry Solving for LLM with Group Contrastive Policy Optimization).

    >>> scheme = ToolContrast(ladder={"failed": 0.0, "passed": 1.0}, signal="tests_run", bonus=0.25, margin=0.1)
    >>> scheme.sign([True, True], [True, False]), scheme.sign([False], [True]), scheme.sign([True], [])
    (1, -1, 0)
    """

    signal: str
    """The turn signal that is above 0 where the tool was used."""
    bonus: Positive
    margin: Annotated[float, Field(ge=0, lt=1)]
    """By how much the pass rates must differ."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The tool's signal."""
        return (self.signal,)

    @model_validator(mode="after")
    def _ranks(self) -> ToolContrast:
        self.check_gap("bonus", self.bonus)
        return self

    def sign(self, with_tool: Sequence[bool], without: Sequence[bool]) -> int:
        """Return whether the attempts that used the tool passed more often (1), less often (-1), or neither (0)."""
        if not with_tool or not without:
            return 0
        difference = fmean(with_tool) - fmean(without)
        return 0 if abs(difference) <= self.margin else 1 if difference > 0 else -1

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        with_tool = [one.passed for one in group.scored if self._first_use(one) is not None]
        without = [one.passed for one in group.scored if self._first_use(one) is None]
        sign = self.sign(with_tool, without)
        return assemble(group, [self._price(one, sign) if one.scored else None for one in group.trajectories])

    def _first_use(self, one: Trajectory) -> int | None:
        return next((number for number, turn in enumerate(one.turns) if turn.signal(self.signal) > 0.0), None)

    def _price(self, one: Trajectory, sign: int) -> Price:
        used = self._first_use(one)
        return Price(self.outcome(one), [sign * self.bonus * (number == used) for number in range(len(one.turns))])
