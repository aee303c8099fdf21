"""Error rates learned from appeals, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentgym.errors import AgentgymError
from agentgym.noise.rates import Rates, RateTable
from agentgym.types import Group, Trajectory

DRAWS = 4000
_QUANTILES = (0.5, 0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A rate with its 95% credible interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class EstimatedRates:
    """What the appeals say about one grader or kind of task."""

    rho0: Interval
    rho1: Interval
    appeals: int
    """How many were decided, of accepted and rejected answers together."""

    def rates(self) -> Rates | None:
        """Return the point estimates, or None where they say that the grader tells nothing."""
        rho0, rho1 = self.rho0.value, self.rho1.value
        return Rates(rho0=rho0, rho1=rho1) if rho0 + rho1 < 1.0 else None


@dataclass(slots=True)
class AppealCounts:
    """Graded attempts, and decided appeals by what the noisy and the trusted grader said."""

    accepted: int = 0
    rejected: int = 0
    accepted_right: int = 0
    accepted_wrong: int = 0
    rejected_right: int = 0
    rejected_wrong: int = 0

    def add(self, *, accepted: bool, right: bool | None) -> None:
        """Count one attempt; `right` is None where nobody appealed."""
        name = "accepted" if accepted else "rejected"
        setattr(self, name, getattr(self, name) + 1)
        if right is not None:
            decided = f"{name}_{'right' if right else 'wrong'}"
            setattr(self, decided, getattr(self, decided) + 1)

    @property
    def fewest(self) -> int:
        """Decided appeals of the side that has fewer."""
        return min(self.accepted_right + self.accepted_wrong, self.rejected_right + self.rejected_wrong)

    def estimate(self) -> EstimatedRates:
        """Return the error rates: by Bayes' rule, from how often each side errs and how often each is seen.

        With a = P(accepted), b = P(right | accepted) and c = P(right | rejected),
        `rho0 = a (1 - b) / (a (1 - b) + (1 - a) (1 - c))` and `rho1 = (1 - a) c / (a b + (1 - a) c)`; a, b and c have
        Jeffreys posteriors, whose medians and 95% intervals are taken from draws with a fixed seed.
        """
        rng = np.random.default_rng(0)
        a, b, c = (
            rng.beta(yes + 0.5, no + 0.5, DRAWS)
            for yes, no in (
                (self.accepted, self.rejected),
                (self.accepted_right, self.accepted_wrong),
                (self.rejected_right, self.rejected_wrong),
            )
        )
        rho0 = a * (1 - b) / (a * (1 - b) + (1 - a) * (1 - c))
        rho1 = (1 - a) * c / (a * b + (1 - a) * c)
        decided = self.accepted_right + self.accepted_wrong + self.rejected_right + self.rejected_wrong
        return EstimatedRates(_interval(rho0), _interval(rho1), decided)


@dataclass(slots=True)
class RateEstimator:
    """Counts appeals per entry of a table of rates; `Learnable`, and the same state always gives the same rates."""

    table: RateTable
    counts: dict[str, AppealCounts] = field(default_factory=dict)

    def key(self, one: Trajectory) -> str | None:
        """Return the table's entry for an attempt; None if no grader was asked."""
        if one.verdict is None or one.verdict.value is None or one.verdict.grader is None:
            return None
        return self.table.find(task_id=one.task_id, grader=one.verdict.grader)[0]

    def update(self, groups: Iterable[Group]) -> dict[str, float]:
        """Count a step's attempts and return each entry's rates as metrics."""
        for one in (one for group in groups for one in group.trajectories):
            key = self.key(one)
            if key is None or one.verdict is None:
                continue
            appeal = one.verdict.appeal
            right = None if appeal is None else appeal == 1.0
            self.counts.setdefault(key, AppealCounts()).add(accepted=one.passed, right=right)
        found = {key: counts.estimate() for key, counts in self.counts.items() if counts.fewest}
        return {
            f"noise/{name}/{key}": value.value
            for key, one in found.items()
            for name, value in (("rho0", one.rho0), ("rho1", one.rho1))
        }

    def estimate(self, key: str) -> EstimatedRates:
        """Return what is known of one entry; without appeals, that is nothing: intervals from about 0 to 1."""
        return self.counts.get(key, AppealCounts()).estimate()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        names = AppealCounts.__slots__
        return {key: {name: getattr(counts, name) for name in names} for key, counts in self.counts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from saved counts.

        Raises:
            AgentgymError: if they name an entry that the table does not have.
        """
        unknown: Sequence[str] = sorted(set(state) - set(self.table.rates))
        if unknown:
            raise AgentgymError(f"the saved appeals are about {unknown[0]!r}, which the recipe no longer names")
        self.counts = {key: AppealCounts(**counts) for key, counts in state.items()}


def _interval(draws: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    value, low, high = (float(one) for one in np.quantile(draws, _QUANTILES))
    return Interval(value, low, high)
