"""What an update makes of rewards before the learner sees them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from token_rows import BUFFERS

from agentgym.rewards import Rewards
from agentgym.types import Group, Trajectory
from agentgym_trainers.advantages import Credit, gather_rewards
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.gae import ValueTargets, value_targets
from agentgym_trainers.learner import Learner
from agentgym_trainers.settings import TrainerSettings
from agentgym_trainers.update import Update

PRICED = [
    Rewards([1.0, 0.0], [[0.25, 0.5], [0.0, 0.1]], [True, True]),
    Rewards([0.5, 1.0], [[0.0, 0.0], [0.3, 0.0]], [True, False]),
]


class Listener(Learner):
    """Keeps what its critic was to be fitted to."""

    told: ValueTargets

    def policy_step(self, *given: Any, **more: Any) -> dict[str, float]:
        """Listen, and take the step."""
        self.told = more["values"]
        return super().policy_step(*given, **more)


def test_a_critic_is_fitted_to_returns_of_its_own_lambda_and_the_advantages_discount_and_decisions(
    tiny: tuple[Any, ChatFormat],
) -> None:
    options = {"gamma": 0.9, "lam": 0.8, "level": "turn"}
    policy = {"advantage": "gae", "advantage_options": options, "attempts": 2}
    settings = TrainerSettings.model_validate({"policy": policy, "critic": {"lam": 0.5}})
    update, one = Update(settings, None), Listener(copy.deepcopy(tiny[0]), settings.compute)
    update.begin(one)
    assert one.critic is not None
    torch.nn.init.constant_(one.critic.head.weight, 0.1)
    whole = TokenBatch.of(BUFFERS[:4])
    credit = Credit(*gather_rewards(PRICED), whole.turn_BL, whole.sampled_BL)
    value_BL = one.values(whole)
    attempts = [Trajectory("t", "train", (), [], tokens=buffer) for buffer in BUFFERS[:4]]
    update(one, [Group("t", attempts[:2]), Group("u", attempts[2:])], PRICED, seed=0, done=0)
    expected = value_targets(credit, value_BL, gamma=0.9, lam=0.5, level="turn")
    assert torch.allclose(one.told.old_BL, value_BL)
    assert torch.equal(one.told.mask_BL, expected.mask_BL)
    assert torch.allclose(one.told.target_BL, expected.target_BL, atol=1e-5)
    for other in ({"gamma": 1.0}, {"lam": 1.0}, {"lam": 0.8}, {"level": "token"}):
        given: dict[str, Any] = {"gamma": 0.9, "lam": 0.5, "level": "turn", **other}
        assert not torch.allclose(one.told.target_BL, value_targets(credit, value_BL, **given).target_BL, atol=1e-3)
