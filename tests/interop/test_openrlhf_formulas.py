"""Our advantages and losses beside OpenRLHF's own code: what is the same, and exactly how the rest differs."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from openrlhf_wheel import advantages
from torch import Tensor

from agentgym_trainers.advantages import Credit, grpo, reinforce, rloo
from agentgym_trainers.gae import gae
from agentgym_trainers.losses import clipped
from agentgym_trainers.losses_truncated import truncated

pytestmark = [
    pytest.mark.skipif(find_spec("openrlhf") is None, reason="needs OpenRLHF; `make test-openrlhf` installs it"),
    pytest.mark.filterwarnings("default"),  # of OpenRLHF and what it imports
    pytest.mark.timeout(600),
]

G, N, L = 3, 4, 24


def batch(seed: int, *, even: bool = False) -> tuple[Tensor, Credit]:
    """Return rewards [G, N] and the credit of groups whose attempts take two turns with an observation in between."""
    draw = torch.Generator().manual_seed(seed)
    reward_GN = torch.randn(G, N, generator=draw)
    sampled_BL, turn_BL = torch.zeros(G * N, L, dtype=torch.bool), torch.zeros(G * N, L, dtype=torch.long)
    for row in range(G * N):
        first, gap, second = (3, 5, 4) if even else (int(torch.randint(1, 6, (), generator=draw)) for _ in range(3))
        start = 3
        sampled_BL[row, start : start + first] = True
        sampled_BL[row, start + first + gap : start + first + gap + second] = True
        turn_BL[row, start + first + gap :] = 1
    credit = Credit(
        outcome_B=reward_GN.flatten(),
        step_BT=torch.zeros(G * N, 2),
        keep_B=torch.ones(G * N, dtype=torch.bool),
        group_B=torch.arange(G).repeat_interleave(N),
        turn_BL=turn_BL,
        sampled_BL=sampled_BL,
    )
    return reward_GN, credit


def theirs(estimator: str, reward_GN: Tensor, credit: Credit, value_BL: Tensor | None = None, **options: Any) -> Tensor:
    """Return OpenRLHF's advantages [B, L]; its tensors leave out the first place of each row."""
    masks = list(credit.sampled_BL[:, 1:].reshape(G, N, L - 1))
    values = list(value_BL[:, 1:].reshape(G, N, L - 1)) if value_BL is not None else None
    found = torch.cat(advantages(estimator, reward_GN, masks, values, **options))
    return torch.nn.functional.pad(found, (1, 0))


@pytest.mark.parametrize("seed", range(3))
def test_rloo_and_dr_grpo_are_the_same(seed: int) -> None:
    reward_GN, credit = batch(seed)
    torch.testing.assert_close(rloo(credit), theirs("rloo", reward_GN, credit), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grpo(credit, std="none"), theirs("dr_grpo", reward_GN, credit), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_grpo_divides_by_the_deviation_of_the_group_and_openrlhf_by_its_unbiased_estimate(seed: int) -> None:
    reward_GN, credit = batch(seed)
    factor = math.sqrt(N / (N - 1))
    torch.testing.assert_close(grpo(credit), factor * theirs("group_norm", reward_GN, credit), atol=1e-5, rtol=1e-5)


def test_siblings_that_differ_by_rounding_alone_teach_nothing_here_and_much_there() -> None:
    _, credit = batch(0)
    reward_GN = torch.full((G, N), 0.1)
    reward_GN[:, 0] += 1e-8  # one unit in the last place of a 32-bit 0.1
    credit.outcome_B.copy_(reward_GN.flatten())
    assert (reward_GN[:, 0] != reward_GN[:, 1]).all()
    assert not grpo(credit).any()
    assert theirs("group_norm", reward_GN, credit).abs().max() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_reinforce_is_whitened_over_tokens_by_openrlhf_and_left_as_it_is_by_us(seed: int) -> None:
    reward_GN, credit = batch(seed)
    plain_N = reinforce(credit)[credit.sampled_BL]
    white_N = (plain_N - plain_N.mean()) / plain_N.std(correction=0)
    torch.testing.assert_close(white_N, theirs("reinforce", reward_GN, credit)[credit.sampled_BL], atol=1e-5, rtol=1e-5)


def test_reinforce_plus_plus_with_a_baseline_is_the_same_where_attempts_have_equally_many_tokens() -> None:
    reward_GN, credit = batch(0, even=True)
    torch.testing.assert_close(
        grpo(credit, std="batch"), theirs("reinforce_baseline", reward_GN, credit), atol=1e-5, rtol=1e-5
    )
    reward_GN, credit = batch(0)
    assert (grpo(credit, std="batch") - theirs("reinforce_baseline", reward_GN, credit)).abs().max() > 1e-2


@pytest.mark.parametrize("seed", range(3))
def test_gae_is_the_same_where_lambda_and_gamma_are_one(seed: int) -> None:
    reward_GN, credit = batch(seed)
    value_BL = torch.randn(G * N, L, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        gae(credit, value_BL, lam=1.0), theirs("gae", reward_GN, credit, value_BL), atol=1e-5, rtol=1e-5
    )


def test_with_a_smaller_lambda_an_observation_turns_the_sign_of_openrlhfs_advantage() -> None:
    turn, gap = 20, 100
    sampled_BL = torch.zeros(1, 1 + 2 * turn + gap, dtype=torch.bool)
    sampled_BL[0, 1 : 1 + turn] = True
    sampled_BL[0, 1 + turn + gap :] = True
    turn_BL = (torch.arange(sampled_BL.shape[1]) > turn).long()[None]
    one_B = torch.ones(1)
    credit = Credit(one_B, torch.zeros(1, 2), one_B.bool(), one_B.long() * 0, turn_BL, sampled_BL)
    value_BL = 0.3 * sampled_BL
    from openrlhf_wheel import maker

    reward_1A = torch.zeros(1, sampled_BL.shape[1] - 1)
    reward_1A[0, -1] = 1.0
    there_1A, _ = maker("gae", 1).get_advantages_and_returns(value_BL[:, 1:], reward_1A, sampled_BL[:, 1:], 1.0, 0.95)
    here_BL = gae(credit, value_BL, lam=0.95, whiten=False)
    assert float(there_1A[0, turn - 1]) == pytest.approx(-0.297, abs=1e-3)
    assert float(here_BL[0, turn]) == pytest.approx(0.251, abs=1e-3)


def policies(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return logprobs now, old ones, those of the rollout and of a reference, and advantages: each [B, L]."""
    draw = torch.Generator().manual_seed(seed)
    old, *steps = (torch.randn(G * N, L, generator=draw) for _ in range(5))
    return -old.abs() + 0.4 * steps[0], -old.abs(), -old.abs() + 0.4 * steps[1], -old.abs() + steps[2], steps[3]


def shares(mask_BL: Tensor, *, by_sequence: bool) -> Tensor:
    """Return each token's weight, so that the weighted sum is a mean over tokens, or over sequences of their means."""
    if by_sequence:
        return mask_BL / mask_BL.sum(1, keepdim=True) / len(mask_BL)
    return mask_BL / mask_BL.sum()


def graded(loss: Any, logp_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value of a loss and its gradient."""
    leaf = logp_BL.clone().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def same(ours: Any, theirs: Any, logp_BL: Tensor) -> None:
    for here, there in zip(graded(ours, logp_BL), graded(theirs, logp_BL), strict=True):
        torch.testing.assert_close(here, there, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("by_sequence", [False, True], ids=["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("clips", [(0.2, 0.2), (0.2, 0.28)])
def test_the_clipped_loss_and_its_gradient_are_the_same(by_sequence: bool, clips: tuple[float, float]) -> None:
    from openrlhf.models.loss import PolicyLoss

    mask_BL = batch(1)[1].sampled_BL
    logp_BL, old_BL, _, _, advantage_BL = policies(1)
    weight_BL = shares(mask_BL, by_sequence=by_sequence)
    low, high = clips
    loss = PolicyLoss(low, high, token_level_loss=not by_sequence)
    same(
        lambda x: clipped(x, old_BL, None, advantage_BL, mask_BL, weight_BL, clip_low=low, clip_high=high)[0],
        lambda x: loss(x, old_BL, advantage_BL, action_mask=mask_BL.float())[0],
        logp_BL,
    )


def test_the_dual_clip_is_openrlhfs_alone() -> None:
    from openrlhf.models.loss import PolicyLoss

    mask_BL = batch(1)[1].sampled_BL
    logp_BL, old_BL, _, _, advantage_BL = policies(1)
    given = (logp_BL + 3 * mask_BL, old_BL, advantage_BL)
    plain, dual = (PolicyLoss(dual_clip=one)(*given, action_mask=mask_BL.float())[0] for one in (None, 3.0))
    assert dual < plain


def test_the_sequence_ratio_of_gspo_has_the_same_value_and_gradient() -> None:
    from openrlhf.models.loss import PolicyLoss

    mask_BL = batch(1)[1].sampled_BL
    logp_BL, old_BL, _, _, advantage_BL = policies(1)
    advantage_BL = advantage_BL[:, :1].expand_as(logp_BL)
    weight_BL = shares(mask_BL, by_sequence=True)
    loss = PolicyLoss(0.2, 0.2, policy_loss_type="gspo")
    same(
        lambda x: clipped(
            x, old_BL, None, advantage_BL, mask_BL, weight_BL, clip_low=0.2, clip_high=0.2, level="sequence"
        )[0],
        lambda x: loss(x, old_BL, advantage_BL, action_mask=mask_BL.float())[0],
        logp_BL,
    )


def test_truncated_weights_are_openrlhfs_importance_correction_in_the_first_update_of_a_step() -> None:
    from openrlhf.models.loss import PolicyLoss

    mask_BL = batch(1)[1].sampled_BL
    logp_BL, _, rollout_BL, _, advantage_BL = policies(1)
    weight_BL, cap = shares(mask_BL, by_sequence=False), 1.5
    assert ((logp_BL - rollout_BL).exp() > cap)[mask_BL].any()
    loss = PolicyLoss(
        is_correction_level="token", is_correction_mode="clip", is_correction_threshold=[0.0, cap]
    )  # fmt: skip
    same(
        lambda x: truncated(x, rollout_BL, None, advantage_BL, mask_BL, weight_BL, cap=cap)[0],
        lambda x: loss(x, logp_BL, advantage_BL, action_mask=mask_BL.float(), rollout_log_probs=rollout_BL)[0],
        logp_BL,
    )


def test_the_penalty_for_leaving_the_reference_is_the_k3_estimate_up_to_openrlhfs_bound_of_ten() -> None:
    from openrlhf.models.utils import compute_approx_kl

    mask_BL = batch(1)[1].sampled_BL
    logp_BL, _, _, reference_BL, _ = policies(1)
    reference_BL = logp_BL + 0.4 * (reference_BL - logp_BL)  # within the bound
    weight_BL, zero_BL = shares(mask_BL, by_sequence=False), torch.zeros(G * N, L)

    def ours(x: Tensor) -> Tensor:
        return clipped(x, logp_BL, reference_BL, zero_BL, mask_BL, weight_BL, kl_weight=1.0)[0]

    def k3(x: Tensor) -> Tensor:
        found_BL: Tensor = compute_approx_kl(x, reference_BL, kl_estimator="k3")
        return (found_BL * weight_BL).sum()

    same(ours, k3, logp_BL)
    far_BL = reference_BL - 5
    assert k3(far_BL) == pytest.approx(10.0)
    assert ours(far_BL) > 100.0


@pytest.mark.parametrize(("name", "formula"), [("k1", lambda x: x), ("k2", lambda x: x.square() / 2)])
def test_the_other_estimates_are_openrlhfs_alone_and_what_their_names_say(name: str, formula: Any) -> None:
    from openrlhf.models.utils import compute_approx_kl

    logp_BL, _, _, reference_BL, _ = policies(1)
    found = compute_approx_kl(logp_BL, reference_BL, kl_estimator=name)
    torch.testing.assert_close(found, formula(logp_BL - reference_BL).clamp(-10, 10))


@pytest.mark.parametrize("lost", [1, 2])
def test_an_attempt_that_does_not_count_leaves_its_siblings_advantages_as_they_are_but_for_their_scale(
    lost: int,
) -> None:
    """Its reward is the mean of the others, see `samples.prices`."""
    reward_GN, credit = batch(0)
    keep_GN = torch.ones(G, N, dtype=torch.bool)
    keep_GN[:, :lost] = False
    mean_G1 = (reward_GN * keep_GN).sum(1, keepdim=True) / (N - lost)
    filled_GN = torch.where(keep_GN, reward_GN, mean_G1)
    counted = Credit(
        reward_GN.flatten(), credit.step_BT, keep_GN.flatten(), credit.group_B, credit.turn_BL, credit.sampled_BL
    )
    kept = N - lost
    ours = {"dr_grpo": grpo(counted, std="none"), "rloo": rloo(counted), "group_norm": grpo(counted)}
    factors = {"dr_grpo": 1.0, "rloo": (kept - 1) / kept * N / (N - 1), "group_norm": math.sqrt((N - 1) / kept)}
    for name, factor in factors.items():
        found_BL = theirs(name, filled_GN, credit)
        assert found_BL[~counted.keep_B].abs().max() < 1e-6
        torch.testing.assert_close(factor * ours[name], found_BL, atol=1e-5, rtol=1e-5)
