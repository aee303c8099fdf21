"""The clipped loss: bounds, masks, normalisation, and the ways of treating hinted attempts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agentgym_trainers.losses import OffPolicy, clipped, off_policy_codes
from agentgym_trainers.losses_truncated import truncated

LOGP = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -3.0, -1.5]])
OLD = torch.tensor([[-1.2, -1.5, -0.5], [-0.1, -2.0, -9.0]])
ADVANTAGE = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
MASK = torch.tensor([[True, True, False], [True, True, False]])
WEIGHT = torch.full((2, 3), 1 / 4)


def gradient(*treatments: OffPolicy, old: Tensor = OLD, advantage: Tensor = ADVANTAGE) -> Tensor:
    logp = LOGP.clone().requires_grad_()
    codes = off_policy_codes(treatments) if treatments else None
    loss = clipped(logp, old, None, advantage, MASK, WEIGHT, off_policy_B=codes)[0]
    return torch.autograd.grad(loss, logp)[0]


def test_on_policy_the_gradient_is_the_advantage() -> None:
    assert torch.allclose(gradient(old=LOGP), -ADVANTAGE * WEIGHT * MASK)


def test_each_side_has_its_own_bound() -> None:
    old = torch.zeros(1, 4)
    logp = torch.tensor([1.27, 1.29, 0.81, 0.79]).log()[None].requires_grad_()
    ones = torch.ones(1, 4)
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    loss, metrics = clipped(logp, old, None, advantage, ones.bool(), ones / 4)
    found = torch.autograd.grad(loss, logp)[0]
    assert (found[0] != 0).tolist() == [True, False, True, False]
    assert metrics["clip_fraction"] == 0.5


def test_masked_tokens_carry_no_gradient_however_far_they_drifted() -> None:
    old = OLD.clone()
    old[:, 2] = -1e4
    assert torch.equal(gradient(old=old)[:, 2], torch.zeros(2))
    assert gradient(old=old).isfinite().all()


def test_an_empty_hint_with_the_true_ratio_is_grpo_bit_for_bit() -> None:
    assert torch.equal(gradient("true", "true"), gradient())
    assert torch.equal(gradient("true", "none"), gradient("none", "none"))


def test_reset_takes_the_row_as_on_policy() -> None:
    assert torch.allclose(gradient("reset", "none")[0], (-ADVANTAGE * WEIGHT * MASK)[0])
    assert torch.equal(gradient("reset", "none")[1], gradient()[1])


def test_shaped_uses_the_probability_itself() -> None:
    logp = LOGP.clone().requires_grad_()
    probability = logp.exp()
    loss = -(ADVANTAGE * WEIGHT * MASK * probability / (probability + 0.1)).sum()
    found = torch.autograd.grad(loss, logp)[0]
    assert torch.allclose(gradient("shaped", "shaped"), found)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    whole, metrics = clipped(LOGP, OLD, None, ADVANTAGE, MASK, WEIGHT)
    parts = [
        clipped(LOGP[row], OLD[row], None, ADVANTAGE[row], MASK[row], WEIGHT[row]) for row in (slice(0, 1), slice(1, 2))
    ]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), abs=1e-6)
    for name, value in metrics.items():
        assert sum(one[name] for _, one in parts) == pytest.approx(value, abs=1e-6)


def test_the_kl_term_is_zero_at_the_reference_and_pulls_towards_it() -> None:
    at_home = clipped(LOGP, LOGP, LOGP, ADVANTAGE * 0, MASK, WEIGHT, kl_weight=1.0)[0]
    assert float(at_home) == 0.0
    logp = LOGP.clone().requires_grad_()
    loss, metrics = clipped(logp, LOGP, LOGP + 0.5, ADVANTAGE * 0, MASK, WEIGHT, kl_weight=1.0)
    found = torch.autograd.grad(loss, logp)[0]
    assert metrics["kl_ref"] > 0
    assert (found[MASK] < 0).all()


@pytest.mark.parametrize("loss", [clipped, truncated])
def test_only_where_there_is_a_reference_is_it_told_how_far_away_it_is(loss: Any) -> None:
    assert "kl_ref" not in loss(LOGP, OLD, None, ADVANTAGE, MASK, WEIGHT)[1]
    assert loss(LOGP, OLD, LOGP + 0.5, ADVANTAGE, MASK, WEIGHT, kl_weight=0.1)[1]["kl_ref"] > 0


def test_a_kl_term_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="wanted reference logprobs"):
        clipped(LOGP, OLD, None, ADVANTAGE, MASK, WEIGHT, kl_weight=0.1)


def test_truncated_weights_bound_what_a_stale_token_teaches_and_never_silence_it() -> None:
    behind = torch.tensor([[0.0, 0.5, 3.0, -3.0]])  # how much likelier each token is now than when it was sampled
    logp = (torch.full_like(behind, -1.0)).requires_grad_()
    ones, mask = torch.ones_like(behind), torch.ones_like(behind, dtype=torch.bool)
    loss, metrics = truncated(logp, logp.detach() - behind, None, ones, mask, ones, cap=2.0)
    loss.backward()  # type: ignore[no-untyped-call]
    expected = -behind.exp().clamp(max=2.0)
    assert logp.grad is not None
    assert torch.allclose(logp.grad, expected)
    assert metrics["clip_fraction"] == 1.0
    clip = torch.full_like(behind, -1.0).requires_grad_()
    clipped(clip, clip.detach() - behind, None, ones, mask, ones)[0].backward()  # type: ignore[no-untyped-call]
    assert clip.grad is not None
    assert clip.grad[0, 2] == 0  # clipping is silent where the weights moved already


def test_on_policy_truncated_and_clipped_agree() -> None:
    logp = torch.tensor([[-1.0, -2.0, -0.5]])
    advantage, mask = torch.tensor([[1.0, -0.5, 2.0]]), torch.tensor([[True, True, False]])
    gradients = []
    for loss in (truncated, clipped):
        leaf = logp.clone().requires_grad_()
        value, _ = loss(leaf, logp, None, advantage, mask, torch.full_like(logp, 0.5))
        value.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.zeros(0) if leaf.grad is None else leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].any()


def test_at_sequence_level_a_rows_tokens_share_the_geometric_mean_of_their_ratios() -> None:
    logp = LOGP.clone().requires_grad_()
    loss = clipped(logp, OLD, None, ADVANTAGE, MASK, WEIGHT, level="sequence", clip_low=10, clip_high=10)[0]
    found = torch.autograd.grad(loss, logp)[0]
    shared = torch.tensor([[(0.2 - 0.5) / 2], [(0.0 - 1.0) / 2]]).exp()
    assert torch.allclose(found, -shared * ADVANTAGE * WEIGHT * MASK)
    assert float(loss.detach()) == pytest.approx(float(-(shared * ADVANTAGE * WEIGHT * MASK).sum()))


def test_at_sequence_level_a_row_is_followed_or_not_as_a_whole() -> None:
    logp = LOGP.clone().requires_grad_()
    # The first row lost likelihood and is to gain it; the second lost it and is to lose more: beyond the bound.
    loss, metrics = clipped(logp, OLD, None, ADVANTAGE, MASK, WEIGHT, level="sequence", clip_low=0.3, clip_high=0.3)
    found = torch.autograd.grad(loss, logp)[0]
    assert (found != 0).tolist() == [[True, True, False], [False, False, False]]
    assert metrics["clip_fraction"] == 0.5
