"""Advantages: pure functions from rewards to one number per token, defined over attempts and turns, never positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agentgym.rewards import Rewards

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Credit:
    """What an estimator may use, for B attempts of at most T turns and L tokens."""

    outcome_B: Tensor
    """float32: the outcome reward of each attempt."""
    step_BT: Tensor
    """float32: step rewards settled on their turns, padded with zeros."""
    keep_B: Tensor
    """bool: False for unscored attempts; they count in no statistic and get advantage 0."""
    group_B: Tensor
    """int64: attempts with the same number are siblings."""
    turn_BL: Tensor
    """int64: the turn of each token."""
    sampled_BL: Tensor
    """bool: the tokens that the policy sampled; all others get advantage 0."""

    @property
    def returns_B(self) -> Tensor:
        """Outcome plus all step rewards."""
        return self.outcome_B + self.step_BT.sum(1)


def gather_rewards(rewards: Sequence[Rewards]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay out the rewards of groups, one after another, as `outcome_B`, `step_BT`, `keep_B` and `group_B`."""
    turns = max((len(step) for one in rewards for step in one.step), default=0)
    steps = [[*step, *[0.0] * (turns - len(step))] for one in rewards for step in one.step]
    sizes = torch.tensor([len(one.outcome) for one in rewards])
    return (
        torch.tensor([value for one in rewards for value in one.outcome], dtype=torch.float32),
        torch.tensor(steps, dtype=torch.float32).reshape(len(steps), turns),
        torch.tensor([value for one in rewards for value in one.keep], dtype=torch.bool),
        torch.arange(len(rewards)).repeat_interleave(sizes),
    )


def grpo(
    credit: Credit, *, std: Literal["group", "batch", "none"] = "group", per_turn: Literal["return", "to_go"] = "return"
) -> Tensor:
    """Centre each attempt's return on its group's mean, and scale it (DeepSeekMath's GRPO).

    Groups without variance, and attempts without siblings that count, get 0. Rounding is no variance.

    Args:
        credit: rewards and masks.
        std: divide by the group's standard deviation, by the batch's over centred returns (REINFORCE++), or not at
            all (Dr. GRPO).
        per_turn: `return` gives every turn of an attempt the same advantage; `to_go` takes away, from each turn, the
            step rewards that were earned before it.

    Returns:
        Advantage [B, L], float32, 0 where nothing was sampled.
    """
    centred_B, differ_B, _ = _centre(credit)
    scale_B = _scale(centred_B, credit, std)
    turn_BT = centred_B[:, None].expand(-1, max(credit.step_BT.shape[1], 1))
    if per_turn == "to_go" and credit.step_BT.shape[1]:
        turn_BT = turn_BT - (credit.step_BT.cumsum(1) - credit.step_BT) * differ_B[:, None]
    return _to_tokens(turn_BT * scale_B[:, None], credit)


def rloo(credit: Credit) -> Tensor:
    """Subtract from each return the mean of its siblings' (REINFORCE leave-one-out).

    Returns:
        Advantage [B, L], float32, 0 where nothing was sampled.
    """
    centred_B, _, count_B = _centre(credit)
    scaled_B = centred_B * (count_B / (count_B - 1).clamp(min=1))
    return _to_tokens(scaled_B[:, None].expand(-1, max(credit.step_BT.shape[1], 1)), credit)


def reinforce(credit: Credit) -> Tensor:
    """Take each return as it is, without a baseline (Williams' REINFORCE).

    For rewards that are weights of the score function already, such as forward-corrected ones.

    Returns:
        Advantage [B, L], float32, 0 where nothing was sampled.
    """
    kept_B = torch.where(credit.keep_B, credit.returns_B, torch.zeros_like(credit.returns_B))
    return _to_tokens(kept_B[:, None].expand(-1, max(credit.step_BT.shape[1], 1)), credit)


def _centre(credit: Credit) -> tuple[Tensor, Tensor, Tensor]:
    """Return [B] float64 returns less their group's mean, whether siblings differ by more than rounding, group sizes.

    An attempt at its group's mean differs from its siblings too.
    """
    mean_B, count_B = _group_mean(credit.returns_B.double(), credit)
    centred_B = torch.where(credit.keep_B & (count_B > 1), credit.returns_B - mean_B, torch.zeros_like(mean_B))
    differ_B = credit.keep_B & (_group_deviation(centred_B, credit) > EPSILON * (1 + mean_B.abs()))
    return centred_B * differ_B, differ_B, count_B


def _group_mean(values_B: Tensor, credit: Credit) -> tuple[Tensor, Tensor]:
    """Return each attempt's group mean and size, over the attempts that count."""
    keep_B = credit.keep_B.to(values_B.dtype)
    groups = int(credit.group_B.max()) + 1 if len(credit.group_B) else 0
    sum_G = values_B.new_zeros(groups).index_add(0, credit.group_B, values_B * keep_B)
    count_G = values_B.new_zeros(groups).index_add(0, credit.group_B, keep_B)
    return (sum_G / count_G.clamp(min=1))[credit.group_B], count_G[credit.group_B]


def _group_deviation(centred_B: Tensor, credit: Credit) -> Tensor:
    return _group_mean(centred_B.square(), credit)[0].sqrt()


def _scale(centred_B: Tensor, credit: Credit, std: Literal["group", "batch", "none"]) -> Tensor:
    if std == "none":
        return torch.ones_like(centred_B)
    if std == "batch":
        counted = centred_B[credit.keep_B]
        deviation_B = (
            counted.square().mean().sqrt().expand_as(centred_B) if len(counted) else torch.zeros_like(centred_B)
        )
    else:
        deviation_B = _group_deviation(centred_B, credit)
    return torch.where(deviation_B > EPSILON, 1 / (deviation_B + EPSILON), torch.zeros_like(deviation_B))


def _to_tokens(turn_BT: Tensor, credit: Credit) -> Tensor:
    index_BL = credit.turn_BL.clamp(max=turn_BT.shape[1] - 1)
    return turn_BT.gather(1, index_BL).float() * credit.sampled_BL
