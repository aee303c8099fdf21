"""A policy loss for samples of older weights: importance weights truncated from above, never clipped away."""

from __future__ import annotations

import torch
from torch import Tensor

from agentgym_trainers.losses import Weight, clipped


def truncated(
    logp_BL: Tensor,
    logp_old_BL: Tensor,
    logp_ref_BL: Tensor | None,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    weight_BL: Tensor,
    *,
    off_policy_B: Tensor | None = None,
    cap: Weight = 2.0,
    kl_weight: Weight = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Policy gradient with truncated importance weights, min(pi / mu, cap) (IMPALA's V-trace; TIS).

    `clipped` stops at tokens that the weights have left behind already before the step began, which are the more the
    staler a sample is; here they teach with a bounded weight. mu is the distribution that was really sampled from, as
    recorded by the engine. Hinted rows choose their ratio as in `clipped`, without its bounds.

    Args:
        logp_BL: the trained model's logprobs, with gradient.
        logp_old_BL: the behaviour's, as sampled.
        logp_ref_BL: the reference's; needed when `kl_weight` is not 0.
        advantage_BL: constants.
        mask_BL: bool, the tokens that carry loss.
        weight_BL: each token's share.
        off_policy_B: codes from `off_policy_codes`; None treats every row as on-policy.
        cap: upper limit of an importance weight.
        kl_weight: weight of the KL term.

    Returns:
        The summed loss, and sums of metrics that add up over micro-batches; `clip_fraction` is the truncated share.
    """
    ratio_BL = torch.where(mask_BL, logp_BL.detach() - logp_old_BL, torch.zeros_like(logp_BL)).exp()
    bounded_BL = ratio_BL.clamp(max=cap)
    # A behaviour that is the policy itself, scaled by a constant weight, has the gradient w * A * grad logp.
    weighted_BL = advantage_BL * bounded_BL
    free_B1 = torch.zeros_like(logp_BL[:, :1], dtype=torch.bool)
    if off_policy_B is not None:
        free_B1 = (off_policy_B > 1)[:, None]
        weighted_BL = torch.where(free_B1, advantage_BL, weighted_BL)
    loss, metrics = clipped(
        logp_BL, logp_BL.detach(), logp_ref_BL, weighted_BL, mask_BL, weight_BL,
        off_policy_B=off_policy_B, clip_low=1.0, clip_high=float("inf"), kl_weight=kl_weight,
    )  # fmt: skip
    shares_BL = torch.where(mask_BL, weight_BL, torch.zeros_like(weight_BL))
    metrics["clip_fraction"] = float((((ratio_BL > cap) & ~free_B1) * shares_BL).sum())
    metrics["ratio"] = float((ratio_BL * shares_BL).sum())
    return loss, metrics
