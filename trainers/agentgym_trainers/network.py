"""One forward pass: what a model says of the sampled tokens of a batch, and what a critic says of their states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.critic import Critic
from agentgym_trainers.flops import Cost
from agentgym_trainers.logprobs import predicting_states, score
from agentgym_trainers.packing import allow_packing, micro_batches, pack, packed_states, runs
from agentgym_trainers.recompute import check_recomputing, lean, recomputing
from agentgym_trainers.settings import ComputeSettings


@dataclass(frozen=True, slots=True)
class Scores:
    """What a forward pass gives; tensors are float32 [B, L], 0 where nothing was sampled."""

    logp_BL: Tensor
    """With gradient."""
    entropy_BL: Tensor
    """In nats, without gradient."""
    value_BL: Tensor
    """With gradient; 0 without a critic."""
    flops: float
    """Of the pass, and of the gradients of what has some."""


@dataclass(frozen=True, slots=True)
class _Costs:
    """Of the parts of a network."""

    trunk: Cost
    head: Cost
    critic_trunk: Cost
    critic_head: Cost

    @classmethod
    def of(cls, model: Any, critic: Critic | None) -> Self:
        trunk, head = Cost.of_trunk(model.base_model), Cost.of(model.get_output_embeddings().parameters())
        own = Cost.of([]) if critic is None or critic.trunk is None else Cost.of_trunk(critic.trunk)
        return cls(trunk, head, own, Cost.of(() if critic is None else critic.head.parameters()))


def portions(batch: TokenBatch, index_R: Tensor, compute: ComputeSettings) -> Iterator[Tensor]:
    """Split rows into micro-batches within the token budget."""
    if compute.packing == "none":
        return batch.micro_batches(index_R, compute.token_budget)
    return micro_batches(batch, index_R, compute.token_budget, share=compute.packing == "prefixes")


def deal(batch: TokenBatch, index_R: Tensor, compute: ComputeSettings, ranks: int) -> list[Tensor]:
    """Divide rows among processes: rows of all lengths to each, or what begins alike to one, if it is shared there."""
    if compute.packing == "prefixes":
        return runs(batch, index_R, ranks)
    order_R = index_R[batch.length_B[index_R].argsort(stable=True)]
    return [order_R[one::ranks] for one in range(ranks)]


class Network(nn.Module):
    """A policy's model, and a critic where the recipe has one."""

    def __init__(self, model: Any, compute: ComputeSettings, critic: Critic | None = None) -> None:
        """Take a causal language model, already on its device, and prepare it for what the settings ask.

        Raises:
            AgentgymError: it cannot be packed, or cannot recompute its layers.
        """
        super().__init__()
        self.model = model
        self.critic = critic
        self._compute = compute
        self._costs = _Costs.of(model, critic)
        for trunk in [model] if critic is None or critic.trunk is None else [model, critic.trunk]:
            if compute.packing != "none":
                allow_packing(trunk)
            if compute.recompute:
                check_recomputing(trunk)

    def forward(
        self, part: TokenBatch, *, temperature: float, policy: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Return the fields of `Scores` for a micro-batch; a plain tuple, because FSDP looks for tensors in it.

        Args:
            part: on the model's device.
            temperature: the logprobs are those of the distribution sampled at this temperature.
            policy: also give logprobs and entropies; otherwise the policy's weights get no gradient.
        """
        device = part.ids_BL.device.type
        with torch.autocast(device, torch.bfloat16) if self._compute.dtype == "bfloat16" else nullcontext():
            return self._score(part, temperature, policy=policy)

    def _score(self, part: TokenBatch, temperature: float, *, policy: bool) -> tuple[Tensor, Tensor, Tensor, float]:
        gradient, done = torch.is_grad_enabled(), 0.0
        zeros_BL = torch.zeros(part.ids_BL.shape, device=part.ids_BL.device)
        logp_BL = entropy_BL = value_BL = zeros_BL
        shared = self.critic is not None and self.critic.trunk is None
        if policy or shared:
            with nullcontext() if policy else torch.no_grad():
                states_ND, laid = self._states(self.model.base_model, part)
            done += self._costs.trunk.times(laid, gradient=gradient and policy)
        if policy:
            target_N = part.ids_BL[part.sampled_BL]
            head, budget = self.model.get_output_embeddings(), self._compute.logit_budget
            logp_N, entropy_N = score(head, states_ND, target_N, temperature=temperature, logit_budget=budget)
            done += self._costs.head.times(len(target_N), gradient=gradient)
            logp_BL = zeros_BL.masked_scatter(part.sampled_BL, logp_N)
            entropy_BL = zeros_BL.masked_scatter(part.sampled_BL, entropy_N)
        if self.critic is not None:
            if not shared:
                states_ND, laid = self._states(self.critic.trunk, part)
                done += self._costs.critic_trunk.times(laid, gradient=gradient)
            done += self._costs.critic_head.times(len(states_ND), gradient=gradient)
            value_BL = zeros_BL.masked_scatter(part.sampled_BL, self.critic(states_ND))
        return logp_BL, entropy_BL, value_BL, done

    def _states(self, trunk: Any, part: TokenBatch) -> tuple[Tensor, int]:
        """Return [N, D] the hidden states from which sampled tokens are predicted, and how many tokens were laid."""
        saving = recomputing if self._compute.recompute else lean
        with saving(trunk) if torch.is_grad_enabled() else nullcontext():
            if self._compute.packing == "none":
                return predicting_states(trunk, part.ids_BL, part.sampled_BL), int(part.length_B.sum())
            layout = pack(part, share=self._compute.packing == "prefixes")
            return packed_states(trunk, layout), layout.ids_1P.shape[1]
