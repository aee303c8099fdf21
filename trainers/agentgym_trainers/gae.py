"""Generalised advantage estimation over what the policy decided: sampled tokens, or turns; never raw positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from agentgym_trainers.advantages import EPSILON, Credit
from agentgym_trainers.batch import Rows

Level = Literal["token", "turn"]
Share = Annotated[float, Field(ge=0, le=1)]


def gae(
    credit: Credit,
    value_BL: Tensor,
    *,
    gamma: Share = 1.0,
    lam: Share = 0.95,
    level: Level = "token",
    whiten: bool = True,
) -> Tensor:
    """Weigh temporal differences of a critic's values (Schulman et al. 2016, PPO's estimator).

    A decision is a sampled token, or a whole turn whose value is the one before its first token. Discounts count
    decisions: what an environment prints in between costs nothing. A turn's step reward comes with its last decision,
    the outcome with the attempt's last one, after which the value is 0: running out of a budget ends an episode too.

    Args:
        credit: rewards and masks.
        value_BL: the critic's value of the state in which each token was sampled.
        gamma: discount per decision.
        lam: 0 trusts the next value alone, 1 the rewards alone.
        level: what a decision is.
        whiten: centre and scale over all sampled tokens that count.

    Returns:
        Advantage [B, L], float32, 0 where nothing was sampled and for attempts that do not count.
    """
    _, advantage_BL = _estimate(credit, value_BL, gamma, lam, level)
    kept_BL = credit.sampled_BL & credit.keep_B[:, None]
    if whiten and bool(kept_BL.any()):
        kept_N = advantage_BL[kept_BL].double()
        mean, deviation = kept_N.mean(), kept_N.std(correction=0)
        differ = deviation > EPSILON * (1 + mean.abs())  # by more than rounding
        advantage_BL = (advantage_BL - mean).float() / (deviation.float() + EPSILON) * differ
    return torch.where(kept_BL, advantage_BL, torch.zeros_like(advantage_BL))


@dataclass(frozen=True, slots=True)
class ValueTargets:
    """What a critic is fitted to."""

    old_BL: Tensor
    """float32: its values before the update."""
    target_BL: Tensor
    """float32: what they should be."""
    mask_BL: Tensor
    """bool: the tokens whose value is used: one per decision of the attempts that count."""

    @property
    def explained_variance(self) -> float:
        """Return 1 - Var(target - value) / Var(target): 1 foresees all, 0 is as good as a constant.

        0 where the targets do not vary.
        """
        target_N, old_N = self.target_BL[self.mask_BL], self.old_BL[self.mask_BL]
        variance = float(target_N.var(correction=0)) if len(target_N) else 0.0
        return 1 - float((target_N - old_N).var(correction=0)) / variance if variance > EPSILON else 0.0

    def cut(self, rows: Rows, width: int) -> ValueTargets:
        """Return the same for the rows of forked attempts, [R, width]."""
        return ValueTargets(*(rows.cut(one, width) for one in (self.old_BL, self.target_BL, self.mask_BL)))


def value_targets(
    credit: Credit, value_BL: Tensor, *, gamma: float = 1.0, lam: float = 1.0, level: Level = "token"
) -> ValueTargets:
    """Return the lambda-returns of each decision: with `lam` 1, the rewards that followed it.

    Args:
        credit: rewards and masks.
        value_BL: as in `gae`.
        gamma: as in `gae`.
        lam: the critic's own; a policy's lower one would pass on the critic's bias (decoupled GAE, VC-PPO).
        level: as in `gae`.
    """
    decision_BL, advantage_BL = _estimate(credit, value_BL, gamma, lam, level)
    return ValueTargets(value_BL, advantage_BL + value_BL, decision_BL & credit.keep_B[:, None])


def _estimate(credit: Credit, value_BL: Tensor, gamma: float, lam: float, level: Level) -> tuple[Tensor, Tensor]:
    """Return which tokens begin a decision, and at each sampled token the advantage of its decision."""
    decision_BL = _decisions(credit, level)
    count_B = decision_BL.sum(1)
    width = max(1, int(count_B.max())) if len(count_B) else 1
    # A stable sort brings the decisions to the front, in order.
    place_BN = (~decision_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    valid_BN = torch.arange(width) < count_B[:, None]
    value_BN = torch.where(valid_BN, value_BL.gather(1, place_BN), torch.zeros(()))
    reward_BN = _rewards(credit, place_BN, valid_BN)
    advantage_BN = torch.zeros_like(value_BN)
    later_B, next_value_B = torch.zeros(len(count_B)), torch.zeros(len(count_B))
    for n in reversed(range(width)):
        difference_B = reward_BN[:, n] + gamma * next_value_B - value_BN[:, n]
        later_B = torch.where(valid_BN[:, n], difference_B + gamma * lam * later_B, torch.zeros(()))
        advantage_BN[:, n], next_value_B = later_B, value_BN[:, n]
    number_BL = (decision_BL.cumsum(1) - 1).clamp(min=0)
    return decision_BL, advantage_BN.gather(1, number_BL) * credit.sampled_BL


def _decisions(credit: Credit, level: Level) -> Tensor:
    if level == "token":
        return credit.sampled_BL
    if level != "turn":
        raise ValueError(f"wanted level token or turn, found {level!r}")
    # Turns never decrease, so a turn is new where it is larger than all that were sampled before.
    turn_BL = (credit.turn_BL + 1) * credit.sampled_BL
    before_BL = torch.nn.functional.pad(turn_BL.cummax(1).values[:, :-1], (1, 0))
    return turn_BL > before_BL


def _rewards(credit: Credit, place_BN: Tensor, valid_BN: Tensor) -> Tensor:
    """Return [B, N] what each decision is paid; a turn without tokens pays the decision before it, or the first."""
    turn_BN = torch.where(valid_BN, credit.turn_BL.gather(1, place_BN), torch.iinfo(torch.long).max)
    turns = credit.step_BT.shape[1]
    turn_BT = torch.arange(turns).expand(len(turn_BN), turns).contiguous()
    paid_BT = (torch.searchsorted(turn_BN, turn_BT, right=True) - 1).clamp(min=0)
    reward_BN = torch.zeros(turn_BN.shape).scatter_add(1, paid_BT, credit.step_BT)
    last_B1 = (valid_BN.sum(1, keepdim=True) - 1).clamp(min=0)
    return reward_BN.scatter_add(1, last_B1, credit.outcome_B[:, None])
