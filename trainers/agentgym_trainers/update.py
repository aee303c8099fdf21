"""One policy update: rewards become advantages, advantages become optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from agentgym import registry
from agentgym.rewards import Rewards
from agentgym.types import Group
from agentgym_trainers.advantages import Credit, gather_rewards
from agentgym_trainers.batch import TokenBatch, split_rows
from agentgym_trainers.corrections import refuse_cancellation
from agentgym_trainers.demonstrations import train_context
from agentgym_trainers.learner import Learner
from agentgym_trainers.losses import off_policy_codes
from agentgym_trainers.settings import PolicySettings


class Update:
    """Trains on groups with the recipe's advantage and loss."""

    def __init__(self, policy: PolicySettings, scheme: object) -> None:
        """Look up what the recipe names.

        Raises:
            RecipeError: the advantage cancels what the reward scheme corrects.
        """
        self._policy = policy
        self._estimate = partial(registry.lookup("advantages", policy.advantage), **policy.advantage_options)
        refuse_cancellation(scheme, policy.advantage, self._estimate)

    def __call__(
        self, learner: Learner, groups: Sequence[Group], rewards: Sequence[Rewards], *, seed: int
    ) -> dict[str, float]:
        """Take the optimizer steps of one batch; the seed shuffles it into minibatches."""
        attempts = [one for group in groups for one in group.trajectories]
        contexts = [train_context(one) for one in attempts]
        whole = TokenBatch.of(contexts)
        credit = Credit(*gather_rewards(rewards), whole.turn_BL, whole.sampled_BL)
        batch, advantage_BL, attempt_B = split_rows(contexts, whole, self._estimate(credit))
        metrics = learner.policy_step(
            batch, advantage_BL, off_policy_codes([one.off_policy for one in attempts])[attempt_B], self._policy,
            registry.lookup("losses", self._policy.loss), generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return {f"train/{name}": value for name, value in metrics.items()}
