"""The optimizer is AdamW, of gradients that are no longer than they may be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from token_rows import ADVANTAGE, BATCH, ON_POLICY
from torch import Tensor

from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.learner import Learner
from agentgym_trainers.optimizer import Optimizer
from agentgym_trainers.settings import ComputeSettings, CriticSettings, OptimSettings, PolicySettings

START = torch.tensor([1.0, -2.0, 3.0])
GRADIENTS = torch.tensor([[3.0, -4.0, 0.5], [0.3, 0.2, -0.1], [-1.0, 2.0, 2.0]])
"""Of three updates, longer and shorter than the limits: of the first alone AdamW takes little more than the signs."""
EACH = [{"grad_clip": 0.2}, {"grad_clip": 9.0}, {"weight_decay": 0.3}, {"beta1": 0.5}, {"beta2": 0.5}]
each = pytest.mark.parametrize("changed", EACH, ids=str)


def by_hand(optim: OptimSettings) -> Tensor:
    """What the paper's formulas make of the weights (Loshchilov and Hutter 2019, algorithm 2)."""
    weight, first, second = START.double(), torch.zeros(3).double(), torch.zeros(3).double()
    for update, gradient in enumerate(GRADIENTS.double(), 1):
        clipped = gradient * min(1.0, optim.grad_clip / float(gradient.norm()))
        first = optim.beta1 * first + (1 - optim.beta1) * clipped
        second = optim.beta2 * second + (1 - optim.beta2) * clipped.square()
        step = (first / (1 - optim.beta1**update)) / ((second / (1 - optim.beta2**update)).sqrt() + 1e-8)
        weight = weight - optim.lr * (step + optim.weight_decay * weight)
    return weight.float()


@pytest.mark.parametrize("changed", [{}, *EACH], ids=str)
def test_updates_are_those_of_the_paper(changed: dict[str, float]) -> None:
    optim = OptimSettings.model_validate({"lr": 0.1, **changed})
    weights = [START[:1].clone().requires_grad_(), START[1:].clone().requires_grad_()]  # the limit is of both together
    one = Optimizer(weights, optim, steps=len(GRADIENTS))
    for gradient in GRADIENTS:
        weights[0].grad, weights[1].grad = gradient[:1].clone(), gradient[1:].clone()
        assert one.step(0.0)["grad_norm"] == pytest.approx(float(gradient.norm()))
    assert torch.allclose(torch.cat(weights), by_hand(optim), atol=1e-5)
    usual = by_hand(OptimSettings(lr=0.1))
    assert not changed or (by_hand(optim) - usual).abs().max() > 1e-3  # else nothing was tested


@each
def test_each_setting_reaches_the_policy_and_its_critic(
    tiny: tuple[Any, ChatFormat], changed: dict[str, float]
) -> None:
    def trained(policy: dict[str, float], critic: dict[str, float]) -> list[Tensor]:
        one = Learner(copy.deepcopy(tiny[0]), ComputeSettings())
        settings = CriticSettings(optim=OptimSettings.model_validate({"lr": 1e-3, **critic}))
        one.begin(OptimSettings.model_validate({"lr": 1e-3, **policy}), 9, critic=settings, critic_steps=9)
        targets = ValueTargets(one.values(BATCH), BATCH.sampled_BL * 5.0, BATCH.sampled_BL)
        for scale in (0.1, 100.0):
            one.policy_step(BATCH, scale * ADVANTAGE, ON_POLICY, PolicySettings(), values=targets)
        assert one.critic is not None
        return [torch.nn.utils.parameters_to_vector(made.parameters()) for made in (one.model, one.critic)]

    usual, other, alone = trained({}, {}), trained(changed, changed), trained(changed, {})
    assert not any(torch.allclose(*pair, atol=1e-7) for pair in zip(usual, other, strict=True))
    assert torch.equal(alone[0], other[0])
    assert torch.equal(alone[1], usual[1])
