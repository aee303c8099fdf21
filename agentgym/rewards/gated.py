"""The outcome alone, and step rewards summed behind a gate or, for comparison, without one."""

from __future__ import annotations

from pydantic import FiniteFloat, model_validator

from agentgym.rewards.base import AttemptScheme, LadderScheme, Price, flat, level_of
from agentgym.types import Trajectory


class OutcomeOnly(AttemptScheme):
    """The verdict's value and nothing else.

    >>> from agentgym.types import Group, Trust, Verdict
    >>> verdicts = [Verdict(value=value, level="any", trust=Trust.RPC) for value in (0.5, None)]
    >>> found = OutcomeOnly()(Group("t", [Trajectory("t", "train", (), [], verdict) for verdict in verdicts]))
    >>> found.outcome, found.keep
    ([0.5, 0.0], [True, False])
    """

    def price(self, one: Trajectory) -> Price | None:
        """Return the verdict's value."""
        value = one.verdict.value if one.verdict is not None else None
        return None if value is None else flat(one, value)


class GatedRewards(LadderScheme, AttemptScheme):
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

    threshold: FiniteFloat
    """The outcome reward from which step rewards count (G-RA's delta)."""
    step_weights: dict[str, FiniteFloat]
    """The weight of each step signal; signals not named here weigh nothing."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The weighted signals."""
        return tuple(self.step_weights)

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
        outcome = self.rung(level)
        if not self.opens(outcome):
            return outcome, [0.0] * len(signals)
        return outcome, [
            sum(weight * turn.get(name, 0.0) for name, weight in self.step_weights.items()) for turn in signals
        ]

    def price(self, one: Trajectory) -> Price:
        """Return rung and step rewards."""
        turns = [{signal.name: signal.value for signal in turn.signals} for turn in one.turns]
        return Price(*self.settle(level_of(one), turns))


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
