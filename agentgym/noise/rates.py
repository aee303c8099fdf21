"""How often graders err, by grader or by task, and what that makes of the rewards they give."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentgym.errors import RecipeError
from agentgym.types import Record

Rate = Annotated[float, Field(ge=0, lt=1)]


class Rates(Record):
    """The two error rates of a noisy grader.

    (Reinforcement Learning with Verifiable yet Noisy Rewards under Imperfect Verifiers.)
    """

    rho0: Rate
    """P(accepted | wrong): false positives."""
    rho1: Rate
    """P(rejected | right): false negatives."""

    @model_validator(mode="after")
    def _tells_something(self) -> Rates:
        if not self.rho0 + self.rho1 < 1.0:
            raise ValueError(
                f"wanted rho0 + rho1 below 1, found {self.rho0:g} + {self.rho1:g}: a grader that accepts wrong answers "
                "as readily as right ones tells nothing; use another grader"
            )
        return self

    @property
    def signal(self) -> float:
        """What is left of a difference in reward, `1 - rho0 - rho1`."""
        return 1.0 - self.rho0 - self.rho1

    def backward(self, *, accepted: bool) -> float:
        """Return the backward-corrected reward `(R - rho0) / (1 - rho0 - rho1)`, whose mean is the clean reward.

        >>> rates = Rates(rho0=0.25, rho1=0.25)
        >>> rates.backward(accepted=True), rates.backward(accepted=False)
        (1.5, -0.5)
        """
        return (accepted - self.rho0) / self.signal

    def forward(self, *, accepted: bool) -> float:
        """Return the forward weight of the score function: `rho1` if accepted, `rho1 - 1` if rejected.

        Its mean is 0 for right answers and `rho0 + rho1 - 1` for wrong ones: the clean gradient's direction, without
        knowing rho0.

        >>> rates = Rates(rho0=0.0, rho1=0.25)
        >>> rates.forward(accepted=True), rates.forward(accepted=False)
        (0.25, -0.75)
        """
        return self.rho1 if accepted else self.rho1 - 1.0


class RateTable(Record):
    """Rates under names that may hold wildcards; an exact name wins, then the first pattern that fits."""

    by: Literal["grader", "task"]
    """What the names match: the verdict's grader (`grade` where the environment grades itself), or the task's id."""
    rates: Annotated[dict[str, Rates], Field(min_length=1)]
    """Such as {function: {rho0: 0.05, rho1: 0.2}}, or {"easy-*": ...} by task."""

    def find(self, *, task_id: str, grader: str) -> tuple[str, Rates]:
        """Return the entry that fits, and its name.

        Raises:
            RecipeError: if none does.
        """
        wanted = grader if self.by == "grader" else task_id
        for name, rates in self.rates.items():
            if name == wanted:
                return name, rates
        for name, rates in self.rates.items():
            if fnmatchcase(wanted, name):
                return name, rates
        raise RecipeError(
            f"no noise rates are given for the {self.by} {wanted!r}; the recipe names {', '.join(self.rates)}; add it"
        )
