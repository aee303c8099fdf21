"""Generalised advantages count decisions, not positions, and pay each reward where it was earned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentgym.rewards import Rewards
from agentgym_trainers.advantages import Credit, gather_rewards
from agentgym_trainers.gae import ValueTargets, gae, value_targets

levels = pytest.mark.parametrize("level", ["token", "turn"])
Row = list[tuple[int, bool, float]]
"""A token's turn, whether it was sampled, and the value before it."""


def lay_out(rows: list[Row], rewards: Rewards) -> tuple[Credit, torch.Tensor]:
    width = max(map(len, rows))
    padded = [row + [(0, False, 0.0)] * (width - len(row)) for row in rows]
    turn_BL, sampled_BL, value_BL = (torch.tensor([[token[i] for token in row] for row in padded]) for i in range(3))
    return Credit(*gather_rewards([rewards]), turn_BL, sampled_BL), value_BL * sampled_BL


def by_hand(values: list[float], rewards: list[float], gamma: float, lam: float) -> list[float]:
    """The definition: a discounted sum of temporal differences, for one attempt."""
    differences = [
        reward + gamma * after - value for reward, value, after in zip(rewards, values, [*values[1:], 0.0], strict=True)
    ]
    return [
        sum((gamma * lam) ** k * one for k, one in enumerate(differences[start:])) for start in range(len(differences))
    ]


TWO_TURNS: Row = [(0, False, 9.0), (0, True, 0.3), (0, True, 0.4), (0, False, 9.0), (1, True, 0.5), (1, True, 0.7)]
PAID = Rewards([1.0], [[0.25, 0.5]], [True])


def test_token_level_advantages_are_the_definition_over_sampled_tokens() -> None:
    found = gae(*lay_out([TWO_TURNS], PAID), gamma=0.9, lam=0.8, whiten=False)[0]
    expected = by_hand([0.3, 0.4, 0.5, 0.7], [0.0, 0.25, 0.0, 1.5], 0.9, 0.8)
    assert found[[1, 2, 4, 5]].tolist() == pytest.approx(expected)
    assert found[[0, 3]].tolist() == [0, 0]


def test_turn_level_advantages_are_shared_by_a_turns_tokens() -> None:
    found = gae(*lay_out([TWO_TURNS], PAID), gamma=0.9, lam=0.8, level="turn", whiten=False)[0]
    first, second = by_hand([0.3, 0.5], [0.25, 1.5], 0.9, 0.8)
    assert found.tolist() == pytest.approx([0, first, first, 0, second, second])


def test_a_long_observation_does_not_turn_a_good_first_turn_into_a_bad_one() -> None:
    row: Row = [(0, True, 0.3)] * 20 + [(0, False, 0.0)] * 100 + [(1, True, 0.3)] * 20
    found = gae(*lay_out([row], Rewards([1.0], [[0.0, 0.0]], [True])), lam=0.95, whiten=False)[0]
    assert float(found[19]) == pytest.approx(0.7 * 0.95**20, abs=1e-5)  # 0.251, whatever was read in between


def test_a_turn_without_tokens_pays_the_decision_before_it() -> None:
    row: Row = [(0, True, 0.0), (2, True, 0.0)]
    found = gae(*lay_out([row], Rewards([0.0], [[0.0, 1.0, 0.0]], [True])), lam=0.0, whiten=False)[0]
    assert found.tolist() == [1.0, 0.0]


@levels
def test_unscored_attempts_have_no_advantage_no_target_and_no_part_in_the_scale(level: Any) -> None:
    rewards = Rewards([1.0, 0.0, 50.0], [[], [], []], [True, True, False])
    three, value_BL = lay_out([TWO_TURNS] * 3, rewards)
    two = Credit(
        *gather_rewards([Rewards([1.0, 0.0], [[], []], [True, True])]), three.turn_BL[:2], three.sampled_BL[:2]
    )
    found = gae(three, value_BL, level=level)
    assert torch.allclose(found[:2], gae(two, value_BL[:2], level=level))
    assert not found[2].any()
    assert not value_targets(three, value_BL, level=level).mask_BL[2].any()


@levels
def test_whitened_advantages_have_mean_0_and_deviation_1_over_sampled_tokens(level: Any) -> None:
    made, value_BL = lay_out([TWO_TURNS, TWO_TURNS[:3]], Rewards([1.0, 0.0], [[], []], [True, True]))
    found = gae(made, value_BL, level=level)[made.sampled_BL]
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-4)


@levels
def test_with_lambda_1_a_critic_is_fitted_to_the_rewards_that_followed(level: Any) -> None:
    targets = value_targets(*lay_out([TWO_TURNS], PAID), level=level)
    expected = {"token": {1: 1.75, 2: 1.75, 4: 1.5, 5: 1.5}, "turn": {1: 1.75, 4: 1.5}}[level]
    assert targets.mask_BL[0].nonzero()[:, 0].tolist() == list(expected)
    assert targets.target_BL[0][targets.mask_BL[0]].tolist() == pytest.approx(list(expected.values()))


def test_explained_variance_is_1_for_a_seer_and_0_for_a_constant() -> None:
    target, mask = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[True, True, False]])
    assert ValueTargets(target, target, mask).explained_variance == 1
    assert ValueTargets(torch.full((1, 3), 0.7), target, mask).explained_variance == pytest.approx(0)
    assert ValueTargets(target, torch.ones(1, 3), mask).explained_variance == 0


tokens = st.tuples(st.integers(0, 2), st.booleans(), st.floats(-2, 2, width=16))


@levels
@given(
    rows=st.lists(st.lists(tokens, min_size=1, max_size=8), min_size=3, max_size=3),
    rewards=st.lists(st.floats(-2, 2, width=16), min_size=12, max_size=12),
    gamma=st.sampled_from([1.0, 0.9]),
    lam=st.sampled_from([0.0, 0.5, 1.0]),
    places=st.randoms(),
)
def test_inserted_observation_tokens_change_no_advantage_and_no_target(
    level: Any, rows: list[Row], rewards: list[float], gamma: float, lam: float, places: Any
) -> None:
    priced = Rewards(rewards[:3], [rewards[3 + 3 * i : 6 + 3 * i] for i in range(3)], [True, True, False])
    ordered = [sorted(row, key=lambda token: token[0]) for row in rows]
    stretched = [list(row) for row in ordered]
    for row in stretched:
        for _ in range(places.randint(0, 5)):
            place = places.randint(0, len(row))
            row.insert(place, (row[place - 1][0] if place else 0, False, places.random()))

    def of_sampled(made: list[Row]) -> tuple[torch.Tensor, ...]:
        credit, value_BL = lay_out(made, priced)
        targets = value_targets(credit, value_BL, gamma=gamma, lam=lam, level=level)
        found = gae(credit, value_BL, gamma=gamma, lam=lam, level=level)
        return tuple(one[credit.sampled_BL] for one in (found, targets.target_BL, targets.mask_BL))

    assert all(torch.equal(one, other) for one, other in zip(of_sampled(ordered), of_sampled(stretched), strict=True))


@pytest.mark.parametrize("paid", [[0.1] * 8, [22.4] * 8, [22.4, 22.400002] * 4])
def test_attempts_that_end_alike_but_for_rounding_teach_nothing_to_a_critic_of_zeros(paid: list[float]) -> None:
    rewards = Rewards(paid, [[0.0]] * 8, [True] * 8)
    assert not gae(*lay_out([[(0, True, 0.0)]] * 8, rewards)).any()
