"""The policy phase's update: rewards become advantages, advantages become optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.rewards import Rewards
from agentgym.types import Group
from agentgym_trainers.advantages import Credit, gather_rewards
from agentgym_trainers.batch import Rows, TokenBatch
from agentgym_trainers.corrections import refuse_cancellation, refuse_loneliness
from agentgym_trainers.demonstrations import train_context
from agentgym_trainers.gae import ValueTargets, value_targets
from agentgym_trainers.learner import Learner
from agentgym_trainers.losses import off_policy_codes
from agentgym_trainers.optimizer import refuse_collapse
from agentgym_trainers.options import checked_options
from agentgym_trainers.settings import TrainerSettings


class Update:
    """Trains on groups with the recipe's advantage, loss and critic."""

    def __init__(self, settings: TrainerSettings, scheme: object) -> None:
        """Look up what the recipe names.

        Raises:
            RecipeError: the advantage or the loss does not take one of its options; the advantage cancels what the
                reward scheme corrects, compares siblings where there are none, needs a critic and has none, or has
                one and needs none.
        """
        policy, where = settings.policy, "trainer.policy"
        estimate = registry.lookup("advantages", policy.advantage)
        self._loss = registry.lookup("losses", policy.loss)
        policy = self._policy = policy.model_copy(
            update={
                "advantage_options": checked_options(
                    f"{where}.advantage_options", policy.advantage, estimate, policy.advantage_options
                ),
                "loss_options": checked_options(f"{where}.loss_options", policy.loss, self._loss, policy.loss_options),
            }
        )
        self._critic = settings.critic
        self._valued = "value_BL" in signature(estimate).parameters
        _match(policy.advantage, self._valued, settings)
        self._estimate = partial(estimate, **policy.advantage_options)
        tried: Callable[[Credit], Tensor] = self._try if self._valued else self._estimate
        refuse_cancellation(scheme, policy.advantage, tried)
        if policy.attempts == 1:
            refuse_loneliness(policy.advantage, tried)

    def begin(self, learner: Learner) -> None:
        """Start the phase with fresh optimizers, with a frozen reference where a KL term needs one, and a critic."""
        policy, critic = self._policy, self._critic
        per_step = policy.epochs * policy.minibatches
        warmup = critic.warmup_steps if critic else 0
        learner.begin(
            policy.optim,
            max(0, policy.steps - warmup) * per_step,
            keep_reference=bool(policy.loss_options.get("kl_weight")),
            critic=critic,
            critic_steps=policy.steps * per_step,
        )

    def __call__(
        self, learner: Learner, groups: Sequence[Group], rewards: Sequence[Rewards], *, seed: int, done: int
    ) -> dict[str, float]:
        """Take the optimizer steps of one batch.

        Advantages belong to turns and sampled tokens: they are estimated over whole attempts, and then cut into the
        rows in which these were read.

        Args:
            learner: holds the weights.
            groups: what was sampled, train tasks only.
            rewards: of each group.
            seed: shuffles rows into minibatches.
            done: steps of the policy phase before this one.

        Raises:
            CollapseError: the loss is no number, or no attempt counts because the model says nothing any more.
        """
        if not any(keep for one in rewards for keep in one.keep):
            refuse_collapse(learner.model)
        attempts = [one for group in groups for one in group.trajectories]
        contexts = [train_context(one) for one in attempts]
        whole = TokenBatch.of(contexts)
        batch, rows = Rows.of(contexts)
        credit = Credit(*gather_rewards(rewards), whole.turn_BL, whole.sampled_BL)
        if self._valued:
            value_BL = rows.join(learner.values(batch), whole.ids_BL)
            advantage_BL, targets = self._estimate(credit, value_BL), self._targets(credit, value_BL)
            metrics = {"explained_variance": targets.explained_variance}
            values = targets.cut(rows, batch.ids_BL.shape[1])
        else:
            advantage_BL, values, metrics = self._estimate(credit), None, {}
        advantage_RL = rows.cut(advantage_BL, batch.ids_BL.shape[1]) * batch.sampled_BL
        off_policy_R = off_policy_codes([one.off_policy for one in attempts])[rows.attempt_R]
        metrics |= learner.policy_step(
            batch, advantage_RL, off_policy_R, self._policy, self._loss,
            values=values, frozen=self._critic is not None and done < self._critic.warmup_steps,
            generator=torch.Generator().manual_seed(seed), counts_B=credit.keep_B[rows.attempt_R],
        )  # fmt: skip
        return {f"train/{name}": value for name, value in metrics.items()}

    def _targets(self, credit: Credit, value_BL: Tensor) -> ValueTargets:
        """Return what the critic is fitted to: returns under the advantage's own discount and decisions."""
        options = self._policy.advantage_options
        shared: dict[str, Any] = {name: options[name] for name in ("gamma", "level") if name in options}
        return value_targets(credit, value_BL, lam=self._critic.lam if self._critic else 1.0, **shared)

    def _try(self, credit: Credit) -> Tensor:
        """Return the advantages under a critic that knows nothing."""
        advantage_BL: Tensor = self._estimate(credit, torch.zeros(credit.turn_BL.shape))
        return advantage_BL


def _match(advantage: str, valued: bool, settings: TrainerSettings) -> None:
    if valued and settings.critic is None:
        raise RecipeError(f"the advantage {advantage!r} needs a critic; add the section trainer.critic, such as {{}}")
    if settings.critic is not None and not valued:
        raise RecipeError(
            f"the advantage {advantage!r} uses no critic, found the section trainer.critic; remove it, or choose gae"
        )
