"""Advantages belong to attempts and turns, count only what was scored, and ignore where tokens stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agentgym.rewards import Rewards
from agentgym_trainers.advantages import Credit, gather_rewards, grpo, rloo

Estimator = Callable[[Credit], Tensor]
ESTIMATORS: list[Any] = [
    pytest.param(grpo, id="grpo"),
    pytest.param(lambda credit: grpo(credit, std="batch"), id="grpo-batch-std"),
    pytest.param(lambda credit: grpo(credit, std="none"), id="grpo-no-std"),
    pytest.param(lambda credit: grpo(credit, per_turn="to_go"), id="grpo-to-go"),
    pytest.param(rloo, id="rloo"),
]
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS)


def credit(rewards: list[Rewards], turns: list[list[int]], sampled: list[list[bool]]) -> Credit:
    """Lay out token rows of different lengths."""
    width = max(map(len, turns))
    turn_BL = torch.tensor([[*row, *[0] * (width - len(row))] for row in turns])
    sampled_BL = torch.tensor([[*row, *[False] * (width - len(row))] for row in sampled])
    return Credit(*gather_rewards(rewards), turn_BL, sampled_BL)


def one_token(*groups: list[float | None]) -> Credit:
    """Attempts of one sampled token; None is unscored."""
    rewards = [
        Rewards([one or 0.0 for one in group], [[0.0] for _ in group], [one is not None for one in group])
        for group in groups
    ]
    count = sum(map(len, groups))
    return credit(rewards, [[0]] * count, [[True]] * count)


def test_grpo_standardises_within_the_group() -> None:
    assert grpo(one_token([1.0, 0.0, 0.0, 1.0]))[:, 0].tolist() == pytest.approx([1, -1, -1, 1], abs=1e-4)


def test_grpo_without_std_only_centres() -> None:
    assert grpo(one_token([1.0, 0.0, 0.0, 0.0]), std="none")[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25]


def test_batch_std_is_shared_by_all_groups() -> None:
    found = grpo(one_token([1.0, 0.0], [10.0, 0.0]), std="batch")[:, 0]
    assert float(found[2] / found[0]) == pytest.approx(10)


def test_rloo_compares_with_the_siblings() -> None:
    assert rloo(one_token([1.0, 0.0, 0.0]))[:, 0].tolist() == pytest.approx([1.0, -0.5, -0.5])


@every_estimator
def test_a_group_without_variance_teaches_nothing(estimate: Estimator) -> None:
    assert not estimate(one_token([0.3, 0.3, 0.3], [1.0, 1.0])).any()


@every_estimator
@pytest.mark.parametrize("worth", [0.1, 0.7, 22.4])
def test_siblings_of_one_return_teach_nothing_whatever_it_is_and_however_it_rounds(
    estimate: Estimator, worth: float
) -> None:
    assert not estimate(one_token([worth] * 8)).any()


@every_estimator
def test_unscored_attempts_change_neither_mean_nor_std(estimate: Estimator) -> None:
    scored = estimate(one_token([1.0, 0.0, 0.0]))[:, 0].tolist()
    padded = estimate(one_token([1.0, None, 0.0, None, 0.0]))[:, 0].tolist()
    assert [padded[0], padded[2], padded[4]] == pytest.approx(scored)
    assert padded[1] == padded[3] == 0.0


@every_estimator
def test_an_attempt_without_scored_siblings_teaches_nothing(estimate: Estimator) -> None:
    assert not estimate(one_token([1.0, None])).any()


def test_to_go_leaves_out_step_rewards_that_were_already_earned() -> None:
    rewards = [Rewards([0.0, 0.0], [[1.0, 0.0], [0.0, 0.0]], [True, True])]
    found = grpo(credit(rewards, [[0, 1]] * 2, [[True, True]] * 2), std="none", per_turn="to_go")
    assert found.tolist() == [[0.5, -0.5], [-0.5, -0.5]]


def test_to_go_counts_also_for_the_attempt_that_is_at_its_groups_mean() -> None:
    rewards = [Rewards([0.0, 0.5, 2.0], [[0.0, 0.0], [0.5, 0.0], [0.0, 0.0]], [True, True, True])]
    found = grpo(credit(rewards, [[0, 1]] * 3, [[True, True]] * 3), std="none", per_turn="to_go")
    assert found.tolist() == [[-1.0, -1.0], [0.0, -0.5], [1.0, 1.0]]


@every_estimator
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_siblings_whose_returns_differ_by_rounding_teach_nothing(estimate: Estimator, scale: float) -> None:
    paid = [0.7, 0.1, 0.1], [0.1, 0.7, 0.1], [0.1, 0.1, 0.7]
    step = [[scale * one for one in row] for row in paid]
    given = credit([Rewards([0.0] * 3, step, [True] * 3)], [[0, 1, 2]] * 3, [[True] * 3] * 3)
    assert len(set(given.returns_B.tolist())) == 2
    assert not estimate(given).any()


rows = st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=8), min_size=4, max_size=4)


@every_estimator
@given(rows=rows, values=st.lists(st.floats(-2, 2, width=16), min_size=16, max_size=16), places=st.randoms())
def test_inserted_observation_tokens_change_no_sampled_tokens_advantage(
    estimate: Estimator, rows: list[list[tuple[int, bool]]], values: list[float], places: Any
) -> None:
    rewards = [Rewards(values[:4], [values[4 + 3 * i : 7 + 3 * i] for i in range(4)], [True, True, True, False])]
    ordered = [sorted(row, key=lambda token: token[0]) for row in rows]
    stretched = []
    for row in ordered:
        longer = list(row)
        for _ in range(places.randint(0, 5)):
            place = places.randint(0, len(longer))
            turn = longer[place - 1][0] if place else 0
            longer.insert(place, (turn, False))
        stretched.append(longer)

    def sampled_only(tokens: list[list[tuple[int, bool]]]) -> list[list[float]]:
        made = credit(
            rewards, [[turn for turn, _ in row] for row in tokens], [[own for _, own in row] for row in tokens]
        )
        return [row[mask].tolist() for row, mask in zip(estimate(made), made.sampled_BL, strict=True)]

    assert sampled_only(stretched) == sampled_only(ordered)
    assert len(sampled_only(ordered)) == 4
