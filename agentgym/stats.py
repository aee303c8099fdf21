"""pass@k, intervals and paired tests over tasks: pure functions that refuse to turn a missing score into a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
RESAMPLES = 20_000


@dataclass(frozen=True, slots=True)
class Count:
    """The scored attempts at one task."""

    scored: int
    passed: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks with its 95% interval; NaN where no task could be counted."""

    value: float
    low: float
    high: float
    tasks: int
    """How many tasks it rests on."""
    left_out: int = 0
    """Tasks without enough scored attempts."""

    def __str__(self) -> str:
        if not self.tasks:
            return "unknown (no scored task)"
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second evaluation minus the first, on the tasks that both scored."""

    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided; exact McNemar if each task has one attempt, else a sign-flip permutation test over tasks."""
    tasks: int
    left_out: int
    """Tasks that only one of the two has scored."""


def pass_at_k(scored: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that at least one of k attempts passes.

    `1 - C(n - c, k) / C(n, k)` (Chen et al. 2021, Evaluating Large Language Models Trained on Code).

    >>> pass_at_k(scored=4, passed=1, k=1)
    0.25
    >>> round(pass_at_k(scored=4, passed=1, k=2), 6)
    0.5
    >>> pass_at_k(scored=4, passed=2, k=3)
    1.0
    """
    if not 0 <= passed <= scored:
        raise ValueError(f"wanted between 0 and {scored} passed attempts, found {passed}")
    if not 1 <= k <= scored:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} scored attempts, found {scored}")
    return 1.0 - math.comb(scored - passed, k) / math.comb(scored, k)


def mean_pass_at_k(counts: Sequence[Count], k: int) -> Estimate:
    """Return the mean pass@k over tasks with its 95% interval.

    Tasks are the independent units; attempts at one task are not. A task with fewer than k scored attempts is left
    out and counted.

    >>> print(mean_pass_at_k([Count(2, 2), Count(2, 1), Count(2, 0), Count(0, 0)], k=1))
    50.0% [12.5, 87.5]
    """
    usable = [one for one in counts if one.scored >= k]
    values = [pass_at_k(one.scored, one.passed, k) for one in usable]
    low, high = interval(values, attempts=sum(one.scored // k for one in usable))
    value = float(np.mean(values)) if values else math.nan
    return Estimate(value, low, high, len(values), len(counts) - len(values))


def interval(values: Sequence[float], *, attempts: int | None = None) -> tuple[float, float]:
    """Return a 95% interval for the mean of independent per-task values between 0 and 1.

    Wilson's score interval on the effective sample size `n* = m p(1-p) / var`: m tasks whose values vary as little
    as `var` tell as much as n* single attempts. With one attempt per task n* is m, and this is Wilson's interval; if
    every value is the same 0 or 1 it stays m, so the interval never collapses to a point. Where n* exceeds m, the
    variance was itself estimated, so Student's quantile replaces the normal one.

    >>> [round(bound, 3) for bound in interval([1.0] * 8 + [0.0] * 2)]
    [0.49, 0.943]
    >>> [round(bound, 3) for bound in interval([1.0] * 10)]
    [0.722, 1.0]
    """
    tasks = len(values)
    if tasks == 0:
        return math.nan, math.nan
    p, spread = float(np.mean(values)), float(np.var(values))
    ceiling = float(max(attempts or tasks, tasks))
    size = ceiling if spread == 0.0 and 0.0 < p < 1.0 else float(tasks)
    if spread > 0.0:
        size = min(max(p * (1.0 - p) / spread, 1.0) * tasks, ceiling)
    z = float(ndtri(0.5 + LEVEL / 2))
    if size > tasks > 1:
        size = max(tasks, size * (z / float(stdtrit(tasks - 1, 0.5 + LEVEL / 2))) ** 2)
    return wilson(p, size)


def wilson(p: float, size: float) -> tuple[float, float]:
    """Return Wilson's 95% score interval for a proportion p of `size` observations.

    >>> [round(bound, 4) for bound in wilson(0.5, 100)]
    [0.4038, 0.5962]
    """
    z2 = float(ndtri(0.5 + LEVEL / 2)) ** 2
    centre = (p + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / size + z2 / (4 * size**2)) / (1 + z2 / size)
    return (0.0 if p == 0.0 else max(0.0, centre - half)), (1.0 if p == 1.0 else min(1.0, centre + half))


def compare(first: Mapping[str, Count], second: Mapping[str, Count]) -> Comparison:
    """Compare the pass@1 of two evaluations on the tasks that both have scored.

    The interval is Agresti and Min's for paired proportions (half a task added to each of the four outcomes), with
    per-task differences in place of single ones, so it does not collapse when the two agree everywhere.

    >>> before = {f"t{i}": Count(1, 0) for i in range(20)}
    >>> after = {f"t{i}": Count(1, int(i < 10)) for i in range(20)}
    >>> result = compare(before, after)
    >>> result.difference, round(result.p_value, 4)
    (0.5, 0.002)
    """
    names = sorted(name for name in first.keys() & second.keys() if first[name].scored and second[name].scored)
    left_out = len(first.keys() | second.keys()) - len(names)
    deltas = np.array([_rate(second[name]) - _rate(first[name]) for name in names])
    if not names:
        return Comparison(math.nan, math.nan, math.nan, math.nan, 0, left_out)
    low, high = _paired_interval(deltas)
    return Comparison(float(deltas.mean()), low, high, _paired_p(deltas), len(names), left_out)


def _rate(count: Count) -> float:
    return count.passed / count.scored


def _paired_interval(deltas: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    size = len(deltas) + 2
    centre = float(deltas.sum()) / size
    variance = (float((deltas**2).sum()) + 1.0) / size - centre**2
    half = float(ndtri(0.5 + LEVEL / 2)) * math.sqrt(variance / size)
    return max(-1.0, centre - half), min(1.0, centre + half)


def _paired_p(deltas: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    moved = deltas[deltas != 0.0]
    if not len(moved):
        return 1.0
    from scipy import stats  # 30 MB that training has no use for

    if np.all(np.abs(moved) == 1.0):
        return float(stats.binomtest(int((moved > 0).sum()), len(moved)).pvalue)
    found = stats.permutation_test(
        (moved,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, rng=0
    )
    return float(found.pvalue)
