"""The policy phase's update: rewards become advantages, advantages become optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from agentgym import registry
from agentgym.rewards import Rewards
from agentgym.types import Group
from agentgym_trainers.advantages import Credit, gather_rewards
from agentgym_trainers.batch import Rows, TokenBatch
from agentgym_trainers.corrections import refuse_cancellation
from agentgym_trainers.demonstrations import train_context
from agentgym_trainers.learner import Learner
from agentgym_trainers.losses import off_policy_codes
from agentgym_trainers.settings import TrainerSettings


class Update:
    """Trains on groups with the recipe's advantage and loss."""

    def __init__(self, settings: TrainerSettings, scheme: object) -> None:
        """Look up what the recipe names.

        Raises:
            RecipeError: the advantage cancels what the reward scheme corrects.
        """
        policy = self._policy = settings.policy
        self._estimate = partial(registry.lookup("advantages", policy.advantage), **policy.advantage_options)
        refuse_cancellation(scheme, policy.advantage, self._estimate)
        self._loss = registry.lookup("losses", policy.loss)

    def begin(self, learner: Learner) -> None:
        """Start the phase with a fresh optimizer, and with a frozen reference where a KL term needs one."""
        policy = self._policy
        steps = policy.steps * policy.epochs * policy.minibatches
        learner.begin(policy.optim, steps, keep_reference=bool(policy.loss_options.get("kl_weight")))

    def __call__(
        self, learner: Learner, groups: Sequence[Group], rewards: Sequence[Rewards], *, seed: int
    ) -> dict[str, float]:
        """Take the optimizer steps of one batch; the seed shuffles it into minibatches.

        Advantages belong to turns and sampled tokens: they are estimated over whole attempts, and then cut into the
        rows in which these were read.
        """
        attempts = [one for group in groups for one in group.trajectories]
        contexts = [train_context(one) for one in attempts]
        whole = TokenBatch.of(contexts)
        batch, rows = Rows.of(contexts)
        credit = Credit(*gather_rewards(rewards), whole.turn_BL, whole.sampled_BL)
        advantage_RL = rows.cut(self._estimate(credit), batch.ids_BL.shape[1]) * batch.sampled_BL
        off_policy_R = off_policy_codes([one.off_policy for one in attempts])[rows.attempt_R]
        generator = torch.Generator().manual_seed(seed)
        metrics = learner.policy_step(batch, advantage_RL, off_policy_R, self._policy, self._loss, generator=generator)
        return {f"train/{name}": value for name, value in metrics.items()}
