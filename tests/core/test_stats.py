"""Estimates and intervals say no more than the attempts support."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from agentgym.stats import Comparison, Count, compare, interval, mean_pass_at_k, pass_at_k


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_passed_attempt(sizes: tuple[int, int, int]) -> None:
    scored, passed, k = sizes
    attempts = [True] * passed + [False] * (scored - passed)
    subsets = list(combinations(attempts, k))
    assert pass_at_k(scored, passed, k) == pytest.approx(sum(any(one) for one in subsets) / len(subsets))


def test_pass_at_k_refuses_more_draws_than_attempts() -> None:
    with pytest.raises(ValueError, match="pass@3 needs at least 3 scored attempts, found 2"):
        pass_at_k(2, 1, 3)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_single_attempts_get_wilsons_interval(outcomes: list[bool]) -> None:
    wanted = scipy_stats.binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
    assert interval([float(one) for one in outcomes]) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@given(st.lists(st.integers(1, 6).flatmap(lambda n: st.builds(Count, st.just(n), st.integers(0, n))), min_size=1))
def test_an_interval_holds_its_estimate_and_is_never_a_point(counts: list[Count]) -> None:
    found = mean_pass_at_k(counts, 1)
    assert 0.0 <= found.low <= found.value + 1e-12
    assert found.value <= found.high + 1e-12 <= 1.0 + 1e-9
    assert found.high - found.low > 0.01


def test_unscored_attempts_are_left_out_and_never_count_as_zeros() -> None:
    found = mean_pass_at_k([Count(2, 2), Count(0, 0)], 1)
    assert (found.value, found.tasks, found.left_out) == (1.0, 1, 1)
    assert mean_pass_at_k([Count(3, 3), Count(1, 0)], 2).left_out == 1


def test_nothing_scored_is_unknown_and_not_zero() -> None:
    found = mean_pass_at_k([Count(0, 0)], 1)
    assert math.isnan(found.value)
    assert str(found) == "unknown (no scored task)"


@pytest.mark.parametrize(
    ("tasks", "attempts", "k", "shape"),
    [
        pytest.param(30, 1, 1, (2.0, 2.0), id="one-attempt"),
        pytest.param(30, 4, 1, (0.3, 0.3), id="tasks-easy-or-impossible"),
        pytest.param(10, 8, 1, (9.0, 0.5), id="few-tasks-nearly-all-solved"),
        pytest.param(50, 8, 4, (1.0, 9.0), id="pass-at-4-of-hard-tasks"),
    ],
)
def test_the_interval_covers_the_truth_in_about_95_of_100_evaluations(
    tasks: int, attempts: int, k: int, shape: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    truth = float(np.mean(1 - (1 - rng.beta(*shape, 200_000)) ** k))
    covered = 0
    for _ in range(400):
        passed = rng.binomial(attempts, rng.beta(*shape, tasks))
        found = mean_pass_at_k([Count(attempts, int(one)) for one in passed], k)
        covered += found.low <= truth <= found.high
    assert covered / 400 >= 0.92


def test_treating_attempts_as_independent_would_not_cover() -> None:
    """The clustered interval is wider than the naive one exactly where attempts at a task agree."""
    agreeing = [Count(8, 8)] * 10 + [Count(8, 0)] * 10
    found = mean_pass_at_k(agreeing, 1)
    naive = scipy_stats.binomtest(80, 160).proportion_ci(method="wilson")
    assert found.high - found.low > 2 * (naive.high - naive.low)


def _evaluations(rng: np.random.Generator, tasks: int, attempts: int, gain: float) -> Comparison:
    chance = rng.beta(1.5, 1.5, tasks)
    first, second = rng.binomial(attempts, chance), rng.binomial(attempts, chance * (1 - gain) + gain)
    return compare(
        {str(index): Count(attempts, int(one)) for index, one in enumerate(first)},
        {str(index): Count(attempts, int(one)) for index, one in enumerate(second)},
    )


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_comparison_of_equals_is_seldom_significant_and_its_interval_holds_zero(attempts: int) -> None:
    rng = np.random.default_rng(1)
    found = [_evaluations(rng, 25, attempts, gain=0.0) for _ in range(60)]
    assert sum(one.p_value < 0.05 for one in found) <= 7
    assert sum(one.low <= 0.0 <= one.high for one in found) >= 53


def test_a_comparison_finds_a_large_gain() -> None:
    found = _evaluations(np.random.default_rng(2), 60, 4, gain=0.5)
    assert found.p_value < 0.001
    assert found.low > 0.0


def test_a_comparison_uses_only_tasks_that_both_scored() -> None:
    found = compare({"a": Count(1, 0), "b": Count(0, 0)}, {"a": Count(1, 1), "b": Count(1, 1), "c": Count(1, 1)})
    assert (found.difference, found.tasks, found.left_out) == (1.0, 1, 2)


def test_two_evaluations_that_agree_everywhere_still_have_an_interval() -> None:
    same = {str(index): Count(1, 1) for index in range(30)}
    found = compare(same, same)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low < 0.0 < found.high
