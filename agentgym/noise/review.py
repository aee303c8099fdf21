"""Noise injected into training verdicts, and appeals to a grader that is trusted; both are recorded in the verdict."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field

from agentgym import registry
from agentgym.errors import HeldOutError, RecipeError, VerifierError
from agentgym.noise.rates import RateTable
from agentgym.sampling import derive_seed
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Noise, Record, Submission, Verdict

logger = logging.getLogger(__name__)
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict was given on."""

    task: Task
    submission: Submission
    sandboxes: Callable[[], SandboxBackend]
    """Where a second grader gets its sandboxes from."""
    seed: int
    """The attempt's: the same seed is flipped and appealed the same way."""


class FlipNoise(RateTable):
    """Flips verdicts at given rates, to study training under imperfect graders.

    What the grader really said stays in the verdict's `noise`, so that no evaluation can take the noisy value for it.
    Components and feedback stay as they were.
    """

    passed: str
    """The level of a wrong answer that is accepted."""
    failed: str
    """The level of a right answer that is rejected."""

    def check_levels(self, levels: tuple[str, ...]) -> None:
        """Refuse levels that the environment does not know.

        Raises:
            RecipeError: naming the level.
        """
        for level in (self.passed, self.failed):
            if level not in levels:
                raise RecipeError(
                    f"the noise would give the level {level!r}; the environment reaches {', '.join(levels)}; name these"
                )

    def flip(self, verdict: Verdict, case: Case) -> Verdict:
        """Return the verdict, flipped or not, with what was done to it.

        Unscored verdicts, and those for which no grader was asked, stay as they are.

        Raises:
            HeldOutError: for a task outside the train split.
        """
        task = case.task
        if verdict.value is None or verdict.grader is None:
            return verdict
        if task.split != "train":
            raise HeldOutError(f"task {task.id!r} of the {task.split!r} split would be graded with injected noise")
        _, rates = self.find(task_id=task.id, grader=verdict.grader)
        rate = rates.rho1 if verdict.passed else rates.rho0
        flipped = bool(np.random.default_rng(derive_seed(case.seed, "flip", task.id)).random() < rate)
        noise = Noise(
            rho0=rates.rho0, rho1=rates.rho1, flipped=flipped, clean_value=verdict.value, clean_level=verdict.level
        )
        change: dict[str, Any] = {"noise": noise}
        if flipped:
            change |= {"value": 1.0 - verdict.passed, "level": self.failed if verdict.passed else self.passed}
        return verdict.model_copy(update=change)


class TrustedGrader(Record):
    """A registered grader and its options."""

    name: str
    options: dict[str, Any] = {}


class Appeals(Record):
    """Sends a share of the verdicts to a second grader, so that the error rates of the first can be estimated.

    Which verdicts are sent depends on nothing but what the first grader said, or the estimate would be biased.
    """

    grader: TrustedGrader | None
    """Who decides an appeal; None takes back the injected noise, for experiments."""
    accepted: Share
    """Share of the accepted answers that are judged again."""
    rejected: Share
    """Share of the rejected ones."""

    def check(self) -> None:
        """Refuse a grader that is not registered or does not take the options.

        Raises:
            UnknownNameError, AgentgymError: each one sentence.
        """
        if self.grader is not None:
            registry.create("graders", self.grader.name, **self.grader.options)

    def hear(self, verdict: Verdict, case: Case) -> Verdict:
        """Return the verdict, with what the trusted grader said if it was asked; its own value stays."""
        if verdict.value is None or verdict.grader is None:
            return verdict
        share = self.accepted if verdict.passed else self.rejected
        if np.random.default_rng(derive_seed(case.seed, "appeal", case.task.id)).random() >= share:
            return verdict
        return verdict.model_copy(update={"appeal": self._decide(verdict, case)})

    def _decide(self, verdict: Verdict, case: Case) -> float | None:
        if self.grader is None:
            return verdict.noise.clean_value if verdict.noise is not None else None
        grader = registry.create("graders", self.grader.name, **self.grader.options)
        try:
            return cast(Verdict, grader.grade(case.task, case.submission, case.sandboxes())).value
        except VerifierError as error:  # the first verdict stands; this appeal tells nothing
            logger.warning("appeal undecided task=%s reason=%s", case.task.id, error)
            return None


@dataclass(frozen=True, slots=True)
class Review:
    """What happens to a training verdict before anyone sees it: noise first, then the appeal against the result."""

    noise: FlipNoise | None = None
    appeals: Appeals | None = None

    def __post_init__(self) -> None:
        if self.appeals is not None and self.appeals.grader is None and self.noise is None:
            raise RecipeError("appeals need a grader to go to, unless noise is injected; name one in appeals.grader")

    def __call__(self, verdict: Verdict, case: Case) -> Verdict:
        """Return the verdict that training sees."""
        if self.noise is not None:
            verdict = self.noise.flip(verdict, case)
        if self.appeals is not None:
            verdict = self.appeals.hear(verdict, case)
        return verdict
