"""Rewards of graders that err, corrected so that the policy gradient is that of a grader that does not."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from agentgym.noise import EstimatedRates, RateEstimator, Rates, RateTable
from agentgym.rewards.base import AttemptScheme, Price, flat
from agentgym.types import Group, Trajectory

logger = logging.getLogger(__name__)


class _Corrected(RateTable, AttemptScheme):
    """Base: the rates of each attempt's grader or task, given in the recipe and, if wanted, learned from appeals.

    Where no grader was asked because nothing was handed in, there is no noise and the attempt is simply wrong.
    """

    learn_after: Annotated[int, Field(ge=1)] | None
    """Decided appeals of accepted and of rejected answers, each, from which the estimate replaces the given rates;
    None keeps the given ones."""
    _estimator: RateEstimator = PrivateAttr()
    _learned: dict[str, Rates] = PrivateAttr()

    def model_post_init(self, _: Any, /) -> None:
        """Begin without appeals."""
        self._estimator, self._learned = RateEstimator(self), {}

    @abstractmethod
    def worth(self, rates: Rates, *, accepted: bool) -> float:
        """Return the corrected reward of a graded attempt."""

    @abstractmethod
    def surely_wrong(self) -> float:
        """Return the corrected reward of an attempt that handed in nothing."""

    def rates_of(self, key: str) -> Rates:
        """Return the rates in force for an entry of the table: given, or estimated."""
        return self._learned.get(key, self.rates[key])

    def price(self, one: Trajectory) -> Price:
        """Return the corrected reward."""
        key = self._estimator.key(one)
        value = self.surely_wrong() if key is None else self.worth(self.rates_of(key), accepted=one.passed)
        return flat(one, value)

    def update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Count a step's appeals."""
        metrics = self._estimator.update(groups)
        self._learn()
        return metrics

    def estimate(self, key: str) -> EstimatedRates:
        """Return what the appeals so far say about an entry, with intervals."""
        return self._estimator.estimate(key)

    def state_dict(self) -> dict[str, Any]:
        """Return the appeals so far."""
        return self._estimator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from saved appeals."""
        self._estimator.load_state_dict(state)
        self._learn()

    def _learn(self) -> None:
        self._learned = {}
        for key, counts in self._estimator.counts.items():
            if self.learn_after is None or counts.fewest < self.learn_after:
                continue
            found = counts.estimate().rates()
            if found is None:
                logger.warning("appeals say that %s tells nothing; its given rates are kept", key)
            else:
                self._learned[key] = found


class BackwardCorrection(_Corrected):
    """The reward whose mean over the grader's errors is the clean reward: `(R - rho0) / (1 - rho0 - rho1)`.

    R is 1 for accepted answers and 0 for others. With rates that differ between graders or tasks this restores their
    true weights; an advantage that divides by the group's standard deviation would undo it, and is refused
    (Reinforcement Learning with Verifiable yet Noisy Rewards under Imperfect Verifiers).

    >>> scheme = BackwardCorrection(by="grader", rates={"judge": {"rho0": 0.25, "rho1": 0.25}}, learn_after=None)
    >>> scheme.worth(scheme.rates["judge"], accepted=True), scheme.worth(scheme.rates["judge"], accepted=False)
    (1.5, -0.5)
    """

    cancelled_by: ClassVar[Literal["scale", "shift"]] = "scale"

    def worth(self, rates: Rates, *, accepted: bool) -> float:
        """Return the corrected reward of a graded attempt."""
        return rates.backward(accepted=accepted)

    def surely_wrong(self) -> float:
        """Return 0."""
        return 0.0


class ForwardCorrection(_Corrected):
    """Weights of the score function, `rho1` for accepted answers and `rho1 - 1` for others; only rho1 matters.

    They are no rewards to be compared with siblings: an advantage that subtracts a mean would leave the uncorrected
    reward, and is refused; `reinforce` takes them as they are. Right answers get 0 on average and wrong ones
    `rho0 + rho1 - 1`; with rho1 = 0 this trains on failures only
    (Reinforcement Learning with Verifiable yet Noisy Rewards under Imperfect Verifiers).

    >>> scheme = ForwardCorrection(
    ...     by="grader", rates={"judge": {"rho0": 0.0, "rho1": 0.25}}, learn_after=None, rescale=False
    ... )
    >>> scheme.worth(scheme.rates["judge"], accepted=True), scheme.worth(scheme.rates["judge"], accepted=False)
    (0.25, -0.75)
    """

    rescale: bool
    """Divide by `1 - rho0 - rho1`, which needs rho0 too: without it, noisy graders count less than good ones."""
    cancelled_by: ClassVar[Literal["scale", "shift"]] = "shift"

    @model_validator(mode="after")
    def _comparable(self) -> ForwardCorrection:
        left = {round(one.signal, 9) for one in self.rates.values()}
        if not self.rescale and (len(left) > 1 or (self.learn_after is not None and len(self.rates) > 1)):
            raise ValueError(
                "the rates may differ in rho0 + rho1, so that noisier ones would count less; set rescale: true"
            )
        return self

    def worth(self, rates: Rates, *, accepted: bool) -> float:
        """Return the weight of a graded attempt."""
        return rates.forward(accepted=accepted) / (rates.signal if self.rescale else 1.0)

    def surely_wrong(self) -> float:
        """Return the mean weight of wrong answers."""
        return -1.0 if self.rescale else -self.rates_of(next(iter(self.rates))).signal
