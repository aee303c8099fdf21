"""A run watches its own metrics: step rewards that part ways with outcomes, and bounds that a recipe sets."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from agentgym_trainers.settings import StopRule, WatchSettings

logger = logging.getLogger(__name__)

ALARM = 2.0
"""Standard errors by which step rewards must rise and outcomes fall for an alarm."""
_BOUND = 99.0
_WARM_START = "sft/"
_SERIES = ("rollout/outcome", "rollout/step_reward")


def trend(values: Sequence[float]) -> float:
    """Return how far the second half's mean is above the first's, in standard errors of that difference.

    >>> trend([0.0, 0.1, 0.9, 1.0]) > 2
    True
    >>> trend([1.0, 1.0, 1.0, 1.0])
    0.0
    """
    half = len(values) // 2
    first, second = values[:half], values[len(values) - half :]
    change = fmean(second) - fmean(first)
    error = math.sqrt((variance(first) + variance(second)) / half)
    if error == 0:
        return math.copysign(_BOUND, change) if change else 0.0
    return max(-_BOUND, min(_BOUND, change / error))


class Watch:
    """Follows a run's metrics; part of its checkpoints."""

    def __init__(self, settings: WatchSettings) -> None:
        """Take the window and the rules."""
        self._rules = settings.stop
        self._series = {name: deque[float](maxlen=settings.window) for name in _SERIES}
        self._broken = [0] * len(self._rules)
        self._alarmed = False

    @property
    def suspicious(self) -> bool:
        """Whether a bound is exceeded at present: no good moment for a checkpoint."""
        return any(self._broken)

    def trends(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take a step's metrics, and return how outcomes and step rewards go, once there are enough of them.

        A step without a verdict says nothing of either.
        """
        if any(math.isnan(metrics[name]) for name in self._series):
            return {}
        for name, values in self._series.items():
            values.append(metrics[name])
        if any(len(values) < (values.maxlen or 0) for values in self._series.values()):
            return {}
        outcome, step = (trend(list(self._series[name])) for name in _SERIES)
        diverging = step > ALARM and outcome < -ALARM
        if diverging and not self._alarmed:
            logger.warning("step rewards rise while outcomes fall: the reward is being gamed")
        self._alarmed = diverging
        return {
            "watch/outcome_trend": outcome,
            "watch/step_trend": step,
            "watch/divergence": float(diverging),
        }

    def reason_to_stop(self, metrics: Mapping[str, float]) -> str | None:
        """Hold metrics against the rules; return which was broken often enough, if any was.

        What was not measured, or is NaN, neither breaks a rule nor keeps it.
        """
        for place, rule in enumerate(self._rules):
            value = metrics.get(rule.metric, math.nan)
            if math.isnan(value):
                continue
            self._broken[place] = self._broken[place] + 1 if _beyond(value, rule) else 0
            if self._broken[place] >= rule.steps:
                side = f"below {rule.below:g}" if rule.below is not None else f"above {rule.above:g}"
                times = f" {rule.steps} times in a row" if rule.steps > 1 else ""
                return f"{rule.metric} was {side}{times}, at last {value:.4g}"
        return None

    def end_warm_start(self) -> None:
        """Forget how the warm start's metrics stood: they are not measured again, so nothing could clear them."""
        for place, rule in enumerate(self._rules):
            if rule.metric.startswith(_WARM_START):
                self._broken[place] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen."""
        return {"series": {name: list(values) for name, values in self._series.items()}, "broken": self._counts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was seen."""
        for name, values in self._series.items():
            values.clear()
            values.extend(state["series"][name])
        known = dict(state["broken"])
        self._broken = [known.get(rule.model_dump_json(), 0) for rule in self._rules]

    def _counts(self) -> dict[str, int]:
        """Return how often each rule was broken, by the rule: a continuation may have others."""
        return {rule.model_dump_json(): count for rule, count in zip(self._rules, self._broken, strict=True)}


def _beyond(value: float, rule: StopRule) -> bool:
    return value < rule.below if rule.below is not None else rule.above is not None and value > rule.above
