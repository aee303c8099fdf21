"""Policy losses: pure functions on [B, L] float32 tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

OffPolicy = Literal["none", "true", "shaped", "reset"]
Weight = Annotated[float, Field(ge=0)]
SHAPE = 0.1
_CODES: Mapping[OffPolicy, int] = {"none": 0, "true": 1, "shaped": 2, "reset": 3}


def off_policy_codes(treatments: Sequence[OffPolicy]) -> Tensor:
    """Return [B] int64 for `clipped`: 0 none, 1 true, 2 shaped, 3 reset."""
    return torch.tensor([_CODES[one] for one in treatments], dtype=torch.long)


def clipped(
    logp_BL: Tensor,
    logp_old_BL: Tensor,
    logp_ref_BL: Tensor | None,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    weight_BL: Tensor,
    *,
    off_policy_B: Tensor | None = None,
    clip_low: Weight = 0.2,
    clip_high: Weight = 0.28,
    kl_weight: Weight = 0.0,
    level: Literal["token", "sequence"] = "token",
) -> tuple[Tensor, dict[str, float]]:
    """PPO's clipped objective with its own bound on each side (DAPO), and an optional k3 KL to a reference.

    Rows sampled under a hint and trained without it choose their ratio by `off_policy_B`: 1 is exp(logp - logp_old),
    clipped, the same as for on-policy rows because logp_old is the hinted behaviour's (Guide); 2 is p / (p + 0.1)
    with p the token's probability now (AMPO's shaping); 3 takes the row as on-policy.

    Args:
        logp_BL: the trained model's logprobs, with gradient.
        logp_old_BL: the behaviour's, as sampled.
        logp_ref_BL: the reference's; needed when `kl_weight` is not 0.
        advantage_BL: constants.
        mask_BL: bool, the tokens that carry loss.
        weight_BL: each token's share; with 1 / (tokens of the whole batch) the losses of micro-batches add up exactly.
        off_policy_B: codes from `off_policy_codes`; None treats every row as on-policy.
        clip_low: the ratio is not followed below 1 - clip_low.
        clip_high: nor above 1 + clip_high.
        kl_weight: weight of the KL term.
        level: `sequence` gives every token the geometric mean of its row's ratios, with the gradient of its own
            (GSPO-token, Zheng et al. 2025); such ratios stay so near 1 that clips of 3e-4 and 4e-4 suit them.

    Returns:
        The summed loss, and sums of metrics that add up over micro-batches.
    """
    if kl_weight and logp_ref_BL is None:
        raise ValueError(
            "wanted reference logprobs for kl_weight > 0, found none; keep a reference model or set it to 0"
        )
    weight_BL = torch.where(mask_BL, weight_BL, torch.zeros_like(weight_BL))
    # Differences at unmasked tokens may overflow exp, and 0 * inf is not 0.
    log_ratio_BL = torch.where(mask_BL, logp_BL - logp_old_BL, torch.zeros_like(logp_BL))
    if level == "sequence":
        mean_B1 = log_ratio_BL.sum(1, keepdim=True) / mask_BL.sum(1, keepdim=True).clamp(min=1)
        log_ratio_BL = torch.where(mask_BL, mean_B1.detach() + logp_BL - logp_BL.detach(), torch.zeros_like(logp_BL))
    ratio_BL = log_ratio_BL.exp()
    bounded_BL = ratio_BL.clamp(1 - clip_low, 1 + clip_high)
    gain_BL = torch.minimum(ratio_BL * advantage_BL, bounded_BL * advantage_BL)
    cut_BL = (gain_BL < ratio_BL * advantage_BL) & mask_BL
    if off_policy_B is not None and bool((off_policy_B > 1).any()):
        free_BL = _free_ratio(logp_BL, off_policy_B)
        chosen_B1 = (off_policy_B > 1)[:, None]
        gain_BL = torch.where(chosen_B1, free_BL * advantage_BL, gain_BL)
        cut_BL = cut_BL & ~chosen_B1
    loss = -(weight_BL * gain_BL).sum()
    metrics = {
        "clip_fraction": float((cut_BL * weight_BL).sum()),
        "ratio": float((ratio_BL.detach() * weight_BL).sum()),
    }
    if logp_ref_BL is not None:
        kl = _k3(logp_BL, logp_ref_BL, weight_BL)
        loss = loss + kl_weight * kl
        metrics["kl_ref"] = float(kl.detach())
    return loss, metrics


def _k3(logp_BL: Tensor, logp_ref_BL: Tensor, weight_BL: Tensor) -> Tensor:
    """Return Schulman's k3 estimate of KL(policy || reference), weighted."""
    back_BL = torch.where(weight_BL > 0, logp_ref_BL - logp_BL, torch.zeros_like(logp_BL))
    return (weight_BL * (back_BL.exp() - back_BL - 1)).sum()


def _free_ratio(logp_BL: Tensor, off_policy_B: Tensor) -> Tensor:
    """Return ratios that need no behaviour: shaped probabilities, or 1 with the gradient of the logprob."""
    probability_BL = logp_BL.exp()
    shaped_BL = probability_BL / (probability_BL + SHAPE)
    reset_BL = (logp_BL - logp_BL.detach()).exp()
    return torch.where((off_policy_B == 2)[:, None], shaped_BL, reset_BL)
