"""Schemes that weigh what else a grader measured, and keep every right answer above every wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from agentgym.errors import RecipeError
from agentgym.rewards.base import (
    AttemptScheme,
    Positive,
    Price,
    RankedLadder,
    Rewards,
    Scheme,
    assemble,
    component,
    flat,
    level_of,
)
from agentgym.types import Group, Trajectory

Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RubricGated(Scheme):
    """C-GRPO: a rubric's score counts only in right answers.

    With rubric score r between 0 and 1 and share a, a right answer is worth `1 - a + a r`, and a wrong one 0; r may
    first be divided by the group's highest
    (Chaining the Evidence: Robust Reinforcement Learning for Deep Search Agents with Citation-Aware Rubric Rewards).
    A right answer whose rubric is unknown is kept out.

    >>> RubricGated(rubric="citations", share=0.25, normalise="none").worth(0.5)
    0.875
    """

    rubric: str
    """The verdict's component that holds the rubric's score."""
    share: Share
    """How much of a right answer's worth the rubric decides (0.3 in the paper)."""
    normalise: Literal["group", "none"]
    """`group` divides by the highest rubric score of the group's scored attempts, right or wrong."""

    def worth(self, rubric: float) -> float:
        """Return the outcome reward of a right answer."""
        return 1.0 - self.share + self.share * rubric

    def __call__(self, group: Group) -> Rewards:
        """Price a group."""
        highest = self._highest(group.scored)
        return assemble(group, [self._price(one, highest) if one.scored else None for one in group.trajectories])

    def _highest(self, scored: list[Trajectory]) -> float:
        if self.normalise == "none":
            return 1.0
        # A wrong attempt may have handed in nothing that a rubric could judge.
        judged = [one for one in scored if one.passed or (one.verdict and self.rubric in one.verdict.components)]
        return max((component(one, self.rubric) or 0.0 for one in judged), default=0.0)

    def _price(self, one: Trajectory, highest: float) -> Price | None:
        if not one.passed:
            return flat(one, 0.0)
        rubric = component(one, self.rubric)
        return None if rubric is None else flat(one, self.worth(rubric / highest if highest > 0.0 else 0.0))


class FlawPenalty(RankedLadder, AttemptScheme):
    """FAPO: a right answer that was reached by flawed reasoning is worth less, yet more than a wrong one.

    `R - penalty * flaw` for right answers, R for wrong ones, with R = 1 and -1 and penalty 1 in the paper
    (FAPO: Flawed-Aware Policy Optimization for Efficient and Reliable Reasoning). A flaw between 0 and 1 is charged
    in proportion; a right answer whose flaw is unknown is kept out.

    >>> scheme = FlawPenalty(ladder={"failed": -1.0, "passed": 1.0}, flaw="lucky", penalty=1.0)
    >>> scheme.worth(1.0, flaw=0.0), scheme.worth(1.0, flaw=1.0)
    (1.0, 0.0)
    """

    flaw: str
    """The verdict's component that is 1 where the reasoning is flawed and 0 where it is not."""
    penalty: Positive

    @model_validator(mode="after")
    def _ranks(self) -> FlawPenalty:
        self.check_gap("penalty", self.penalty)
        return self

    def worth(self, outcome: float, flaw: float) -> float:
        """Return the outcome reward of a right answer."""
        return outcome - self.penalty * flaw

    def price(self, one: Trajectory) -> Price | None:
        """Return the rung, less the penalty."""
        outcome = self.outcome(one)
        if not one.passed:
            return flat(one, outcome)
        flaw = component(one, self.flaw)
        return None if flaw is None else flat(one, self.worth(outcome, flaw))


class WeightedPartial(AttemptScheme):
    """Partial credit that can never make a wrong answer worth as much as a right one.

    `correct * [right] + sum_k w_k v_k` with components v_k between 0 and 1, as in Reasoning-SQL's execution, syntax
    and schema rewards (Reasoning-SQL: Reinforcement Learning with SQL Tailored Partial Rewards for Reasoning-Enhanced
    Text-to-SQL). The worst right answer is worth `correct` and the best wrong one `sum_k w_k`; weights that do not
    keep these apart are refused when the recipe is loaded. An attempt with an unknown component is kept out.

    >>> scheme = WeightedPartial(correct=1.0, weights={"syntax": 0.3, "schema": 0.2}, without_components={})
    >>> scheme.worth({"syntax": 1.0, "schema": 1.0}, right=False)
    0.5
    >>> scheme.worth({"syntax": 0.0, "schema": 0.0}, right=True)
    1.0
    """

    correct: Positive
    """What being right is worth."""
    weights: Annotated[dict[str, Weight], Field(min_length=1)]
    """What each component of the verdict is worth."""
    without_components: dict[str, FiniteFloat]
    """The outcome reward of levels whose verdicts have no components, such as {no_submission: -0.1}."""

    @model_validator(mode="after")
    def _ranks(self) -> WeightedPartial:
        best_wrong = max([sum(self.weights.values()), *self.without_components.values()])
        if not self.correct > best_wrong:
            raise ValueError(
                f"a wrong answer can be worth {best_wrong:g} and a right one only {self.correct:g}; "
                "raise `correct` above the sum of the weights and every price in `without_components`"
            )
        return self

    def worth(self, values: Mapping[str, float], *, right: bool) -> float:
        """Return the weighted sum."""
        return self.correct * right + sum(weight * values[name] for name, weight in self.weights.items())

    def price(self, one: Trajectory) -> Price | None:
        """Return the weighted sum, or the price of a level that has no components."""
        level = level_of(one)
        if level in self.without_components:
            if one.passed:
                raise RecipeError(f"a right answer has the level {level!r}; take it out of `without_components`")
            return flat(one, self.without_components[level])
        given = one.verdict.components if one.verdict is not None else {}
        missing = [name for name in self.weights if name not in given]
        if missing:
            raise RecipeError(
                f"verdicts of level {level!r} have no component {', '.join(missing)}; correct the name, "
                "or price the level in `without_components`"
            )
        found = {name: component(one, name) for name in self.weights}
        known = {name: value for name, value in found.items() if value is not None}
        return flat(one, self.worth(known, right=one.passed)) if len(known) == len(found) else None
