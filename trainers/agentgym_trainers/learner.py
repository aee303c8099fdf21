"""A model and its optimizer: supervised steps and policy-gradient steps on token buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import AgentgymError
from agentgym.tokens import TokenBuffer
from agentgym_trainers.batch import TokenBatch, cut
from agentgym_trainers.logprobs import check_head, token_logprobs
from agentgym_trainers.losses import clipped
from agentgym_trainers.optimizer import Optimizer
from agentgym_trainers.settings import ComputeSettings, OptimSettings, PolicySettings

Metrics = dict[str, float]
Loss = Callable[..., tuple[Tensor, dict[str, float]]]


class Learner:
    """Trains one model through phases; each phase has its own optimizer and learning-rate schedule."""

    def __init__(self, model: Any, compute: ComputeSettings) -> None:
        check_head(model)
        self.model = model
        self.reference: Any | None = None
        """A frozen copy for the KL term, where a phase asks for one."""
        self._compute = compute
        self._optimizer: Optimizer | None = None

    def begin(self, optim: OptimSettings, steps: int, *, keep_reference: bool = False) -> None:
        """Start a phase of `steps` optimizer steps with a fresh optimizer."""
        self._optimizer = Optimizer(self.model.parameters(), optim, steps)
        self.reference = copy.deepcopy(self.model).eval().requires_grad_(False) if keep_reference else None

    def sft_step(self, buffers: Sequence[TokenBuffer]) -> Metrics:
        """Take one step towards the sampled tokens of demonstrations."""
        batch = TokenBatch.of(buffers)
        total = int(batch.sampled_BL.sum())
        metrics: Metrics = {"loss": 0.0, "entropy": 0.0, "tokens": float(total)}
        for index_R in batch.micro_batches(torch.arange(len(buffers)), self._compute.token_budget):
            part = self._to_device(batch.rows(index_R))
            logp_BL, entropy_BL = self._logprobs(self.model, part, temperature=1.0)
            loss = -logp_BL.sum() / total
            loss.backward()  # type: ignore[no-untyped-call]
            metrics["loss"] += float(loss.detach())
            metrics["entropy"] += float(entropy_BL.sum()) / total
        return metrics | self._phase.step(metrics["loss"])

    def policy_step(
        self,
        batch: TokenBatch,
        advantage_BL: Tensor,
        off_policy_B: Tensor,
        policy: PolicySettings,
        loss: Loss = clipped,
        *,
        generator: torch.Generator | None = None,
    ) -> Metrics:
        """Train on one batch of attempts: `epochs` passes of `minibatches` optimizer steps.

        Args:
            batch: train contexts with their behaviour's logprobs.
            advantage_BL: per token; rows that are zero throughout are left out, unless a KL term needs them.
            off_policy_B: codes from `off_policy_codes`.
            policy: temperature, epochs, minibatches and loss options.
            loss: the policy loss.
            generator: shuffles rows into minibatches.

        Returns:
            Means over the optimizer steps taken; only `tokens` (0) if no row teaches anything.
        """
        useful_B = (advantage_BL != 0).any(1) | torch.tensor(self.reference is not None)
        index_R = (useful_B & batch.sampled_BL.any(1)).nonzero()[:, 0]
        history: list[Metrics] = []
        for _ in range(policy.epochs if len(index_R) else 0):
            if policy.minibatches > 1:
                index_R = index_R[torch.randperm(len(index_R), generator=generator)]
            parts = index_R.tensor_split(min(policy.minibatches, len(index_R)))
            history += [self._mini_step(batch, advantage_BL, off_policy_B, mini_R, policy, loss) for mini_R in parts]
        if not history:
            return {"tokens": 0.0}
        return {name: sum(one[name] for one in history) / len(history) for name in history[0]} | {
            "tokens": sum(one["tokens"] for one in history)
        }

    @property
    def updates(self) -> int:
        """Optimizer steps taken in this phase."""
        return self._phase.updates

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "reference": None if self.reference is None else self.reference.state_dict(),
            "optimizer": self._phase.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue a phase that was begun with the same settings."""
        self._phase.load_state_dict(state["optimizer"])
        self.model.load_state_dict(state["model"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])

    @property
    def _phase(self) -> Optimizer:
        if self._optimizer is None:
            raise AgentgymError("the learner has no phase yet; call begin() first")
        return self._optimizer

    def _mini_step(
        self,
        batch: TokenBatch,
        advantage_BL: Tensor,
        off_policy_B: Tensor,
        mini_R: Tensor,
        policy: PolicySettings,
        loss: Loss,
    ) -> Metrics:
        total = int(batch.sampled_BL[mini_R].sum())
        sums: Metrics = {"loss": 0.0, "entropy": 0.0, "drift": 0.0, "tokens": float(total)}
        for index_R in batch.micro_batches(mini_R, self._compute.token_budget):
            part = self._to_device(batch.rows(index_R))
            width, device = part.ids_BL.shape[1], part.ids_BL.device
            part_advantage_BL = cut(advantage_BL, index_R, width).to(device)
            logp_BL, entropy_BL = self._logprobs(self.model, part, policy.temperature)
            reference_BL = self._reference_logprobs(part, policy.temperature)
            weight_BL = torch.full_like(logp_BL, 1 / total)
            value, metrics = loss(
                logp_BL, part.logp_old_BL, reference_BL, part_advantage_BL, part.sampled_BL, weight_BL,
                off_policy_B=off_policy_B[index_R].to(device), **policy.loss_options,
            )  # fmt: skip
            value.backward()  # type: ignore[no-untyped-call]
            drift_BL = (logp_BL.detach() - part.logp_old_BL).abs() * part.sampled_BL
            drift_B = drift_BL.sum(1) * (off_policy_B[index_R] == 0).to(device)  # a hinted row's context differs
            metrics |= {"loss": float(value.detach()), "entropy": float(entropy_BL.sum()) / total}
            metrics["drift"] = float(drift_B.sum()) / total
            for name, one in metrics.items():
                sums[name] = sums.get(name, 0.0) + one
        return sums | self._phase.step(sums["loss"])

    def _logprobs(self, model: Any, part: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            model, part.ids_BL, part.sampled_BL, temperature=temperature, logit_budget=self._compute.logit_budget
        )

    def _reference_logprobs(self, part: TokenBatch, temperature: float) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return self._logprobs(self.reference, part, temperature)[0]

    def _to_device(self, part: TokenBatch) -> TokenBatch:
        device = self.model.device
        moved = (part.ids_BL, part.turn_BL, part.sampled_BL, part.logp_old_BL, part.length_B)
        return TokenBatch(*(one.to(device) for one in moved))
