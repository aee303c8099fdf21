"""A model and its optimizer: supervised steps and policy-gradient steps on token buffers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import AgentgymError
from agentgym.tokens import TokenBuffer
from agentgym_trainers.batch import TokenBatch, cut
from agentgym_trainers.critic import Critic, CriticPhase
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.heap import give_back
from agentgym_trainers.logprobs import check_head
from agentgym_trainers.losses import clipped
from agentgym_trainers.network import Network, Scores, deal, portions
from agentgym_trainers.optimizer import Optimizer, refuse_collapse
from agentgym_trainers.settings import ComputeSettings, CriticSettings, OptimSettings, PolicySettings
from agentgym_trainers.sharding import load_whole_state, shard, whole_state
from agentgym_trainers.world import World

logger = logging.getLogger(__name__)
Metrics = dict[str, float]
Loss = Callable[..., tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A batch of rows and what they teach; without a loss only the critic learns."""

    batch: TokenBatch
    advantage_BL: Tensor
    off_policy_B: Tensor
    values: ValueTargets | None
    loss: Loss | None


_FAR = 20.0
"""Log-ratios beyond which a KL estimate only says: very far."""


class Learner:
    """Trains one model through phases; each phase has its own optimizer and learning-rate schedule."""

    def __init__(self, model: Any, compute: ComputeSettings, world: World | None = None) -> None:
        """Take a causal language model, already on its device.

        Args:
            model: what engines sample from and checkpoints hold; always whole, and up to date after policy steps.
            compute: where and in what portions to compute.
            world: processes among which rows and weights are divided; all of them call the same methods alike.
        """
        check_head(model)
        if compute.dtype == "bfloat16" and model.device.type == "cpu":
            logger.warning("bfloat16 on a CPU is slow and less exact; set trainer.compute.dtype to float32")
        self.model = model
        self.reference: Network | None = None
        """A frozen copy for the KL term, where a phase asks for one."""
        self._compute = compute
        self._world = world or World()
        self._network = Network(model, compute)
        self._optimizer: Optimizer | None = None
        self._critic: CriticPhase | None = None
        self._flops = 0.0

    def begin(
        self,
        optim: OptimSettings,
        steps: int,
        *,
        keep_reference: bool = False,
        critic: CriticSettings | None = None,
        critic_steps: int = 0,
    ) -> None:
        """Start a phase with fresh optimizers.

        Args:
            optim: of the policy.
            steps: optimizer steps that the policy's schedule spans.
            keep_reference: keep a frozen copy of the model as it is now.
            critic: build a critic, which starts from the model as it is now.
            critic_steps: optimizer steps that the critic's schedule spans.
        """
        self._gather()
        built = None if critic is None else Critic.of(critic, self.model)
        self._network = self._divide(Network(self.model, self._compute, built))
        self._optimizer = Optimizer(self._network.model.parameters(), optim, steps)
        self._critic = None if critic is None or built is None else CriticPhase(built, critic, critic_steps)
        self.reference = None
        if keep_reference:
            frozen = copy.deepcopy(self.model).eval().requires_grad_(False)
            self.reference = self._divide(Network(frozen, self._compute))

    def sft_step(self, buffers: Sequence[TokenBuffer]) -> Metrics:
        """Take one step towards the sampled tokens of demonstrations."""
        batch = TokenBatch.of(buffers)
        total = int(batch.sampled_BL.sum())
        sums: Metrics = {"loss": 0.0, "entropy": 0.0, "flops": 0.0}
        for index_R, counts in self._shares(batch, torch.arange(len(buffers))):
            part = self._to_device(batch.rows(index_R))
            scores = Scores(*self._network(part, temperature=1.0))
            loss = -scores.logp_BL.sum() / total
            self._backward(loss, counts=counts)
            sums["loss"] += float(loss.detach()) * counts
            sums["entropy"] += float(scores.entropy_BL.sum()) / total * counts
            sums["flops"] += scores.flops * counts
        sums = self._world.total(sums)
        self._flops += sums.pop("flops")
        return {**sums, "tokens": float(total)} | self._phase.step(sums["loss"])

    def policy_step(
        self,
        batch: TokenBatch,
        advantage_BL: Tensor,
        off_policy_B: Tensor,
        policy: PolicySettings,
        loss: Loss = clipped,
        *,
        values: ValueTargets | None = None,
        frozen: bool = False,
        generator: torch.Generator | None = None,
        counts_B: Tensor | None = None,
    ) -> Metrics:
        """Train on one batch of attempts: `epochs` passes of `minibatches` optimizer steps.

        Args:
            batch: train contexts with their behaviour's logprobs.
            advantage_BL: per token; rows that are zero throughout are left out, unless a KL term needs them.
            off_policy_B: codes from `off_policy_codes`.
            policy: temperature, epochs, minibatches and loss options.
            loss: the policy loss.
            values: what the critic is fitted to.
            frozen: train the critic alone.
            generator: shuffles rows into minibatches.
            counts_B: bool; rows that do not count are outside every term and every mean. None counts all.

        Returns:
            Means over the optimizer steps taken, but for `drift`, the first one's; only `tokens` (0) if no row teaches
            anything.
        """
        useful_B = (advantage_BL != 0).any(1) | torch.tensor(self.reference is not None)
        if values is not None:
            useful_B = useful_B | values.mask_BL.any(1)
        if counts_B is not None:
            useful_B = useful_B & counts_B
        index_R = (useful_B & batch.sampled_BL.any(1)).nonzero()[:, 0]
        lesson = _Lesson(batch, advantage_BL, off_policy_B, values, None if frozen else loss)
        history: list[Metrics] = []
        for _ in range(policy.epochs if len(index_R) else 0):
            if policy.minibatches > 1:
                index_R = index_R[torch.randperm(len(index_R), generator=generator)]
            parts = index_R.tensor_split(min(policy.minibatches, len(index_R)))
            history += [self._mini_step(lesson, mini_R, policy) for mini_R in parts]
        self._gather()
        if not history:
            return {"tokens": 0.0}
        for one in history[1:]:  # by then it is also how far the policy itself has moved
            one.pop("drift", None)
        names = dict.fromkeys(name for one in history for name in one)
        means = {name: fmean(one[name] for one in history if name in one) for name in names}
        return means | {"tokens": sum(one["tokens"] for one in history)}

    @property
    def critic(self) -> Critic | None:
        """The critic of this phase, if it has one."""
        return self._network.critic

    @property
    def updates(self) -> int:
        """Optimizer steps taken in this phase."""
        return self._phase.updates

    def values(self, batch: TokenBatch) -> Tensor:
        """Return float32 [B, L] the critic's value of the state in which each token was sampled; 0 elsewhere."""
        value_BL, done = torch.zeros(batch.ids_BL.shape), 0.0
        for index_R, counts in self._shares(batch, batch.sampled_BL.any(1).nonzero()[:, 0]):
            with torch.no_grad():
                scores = Scores(*self._network(self._to_device(batch.rows(index_R)), temperature=1.0, policy=False))
            if counts:
                value_BL[index_R, : scores.value_BL.shape[1]] = scores.value_BL.cpu()
                done += scores.flops
        self._flops += self._world.total({"flops": done})["flops"]
        return self._world.sum(value_BL)

    def take_flops(self) -> float:
        """Return the floating-point operations of all processes since this was last asked; NaN if not known."""
        done, self._flops = self._flops, 0.0
        return done

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, whole.

        Raises:
            CollapseError: the model is none to go on from.
        """
        self._gather()
        refuse_collapse(self.model)
        return {
            "model": self.model.state_dict(),
            "reference": None if self.reference is None else whole_state(self.reference.model),
            "critic": None if self._critic is None else self._critic.state_dict(),
            "optimizer": self._phase.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue a phase that was begun with the same settings, by any number of processes."""
        self._phase.load_state_dict(state["optimizer"])
        self.model.load_state_dict(state["model"])
        if self._network.model is not self.model:
            load_whole_state(self._network.model, state["model"])
        if self.reference is not None:
            load_whole_state(self.reference.model, state["reference"])
        if self._critic is not None:
            self._critic.load_state_dict(state["critic"])

    @property
    def _phase(self) -> Optimizer:
        if self._optimizer is None:
            raise AgentgymError("the learner has no phase yet; call begin() first")
        return self._optimizer

    def _mini_step(self, lesson: _Lesson, mini_R: Tensor, policy: PolicySettings) -> Metrics:
        tokens = int(lesson.batch.sampled_BL[mini_R].sum())
        own = int(lesson.batch.sampled_BL[mini_R[lesson.off_policy_B[mini_R] == 0]].sum())
        valued = 0 if lesson.values is None else int(lesson.values.mask_BL[mini_R].sum())
        sums: Metrics = {}
        self._tidy()
        for index_R, counts in self._shares(lesson.batch, mini_R):
            part = self._to_device(lesson.batch.rows(index_R))
            learns = lesson.loss is not None
            scores = Scores(*self._network(part, temperature=policy.temperature, policy=learns))
            total, metrics = torch.zeros((), device=part.ids_BL.device), Metrics()
            if lesson.loss is not None:
                total, metrics = self._policy_loss(lesson.loss, lesson, index_R, part, scores, policy, tokens, own)
            if self._critic is not None and lesson.values is not None and valued:
                value, more = self._critic.loss(scores.value_BL, lesson.values, index_R, 1 / valued)
                total, metrics = total + value, metrics | more
            self._backward(total, counts=counts)
            metrics["flops"] = metrics.get("flops", 0.0) + scores.flops
            for name, one in metrics.items():
                sums[name] = sums.get(name, 0.0) + one * counts
        sums = self._world.total(sums) | {"tokens": float(tokens)}
        self._flops += sums.pop("flops")
        if lesson.loss is not None:
            sums |= self._phase.step(sums["loss"])
        if self._critic is not None and valued:
            sums |= self._critic.step(sums["value_loss"])
        return sums

    def _divide(self, network: Network) -> Network:
        """Return a network that computes the same; with several processes, a copy that is sharded among them."""
        if self._world.size == 1:
            return network
        if network.model is self.model:
            network = Network(copy.deepcopy(self.model), self._compute, network.critic)
        shard(network, self._world, self.model.device.type)
        return network

    def _gather(self) -> None:
        """Bring the whole model up to date."""
        if self._network.model is not self.model:
            self.model.load_state_dict(whole_state(self._network.model))

    def _shares(self, batch: TokenBatch, index_R: Tensor) -> list[tuple[Tensor, bool]]:
        """Return this process's micro-batches, and which of them count.

        Processes compute layers together, so each of them runs as often as the one with most micro-batches.
        """
        size, rank = self._world.size, self._world.rank
        if size == 1:
            return [(part_R, True) for part_R in portions(batch, index_R, self._compute)]
        dealt = deal(batch, index_R, self._compute, size)
        shares = [list(portions(batch, part_R, self._compute)) for part_R in dealt]
        idle = max(map(len, shares)) - len(shares[rank])
        shortest_R = index_R[batch.length_B[index_R].argsort(stable=True)[:1]]
        return [(part_R, True) for part_R in shares[rank]] + [(shortest_R, False)] * idle

    def _backward(self, loss: Tensor, *, counts: bool) -> None:
        """Accumulate the gradients of a share of the loss; sharded ones are averaged, and should be summed."""
        if loss.requires_grad:  # not where a frozen policy's attempts have no verdict to fit a critic to
            self._tidy()
            (loss * (self._world.size if counts else 0)).backward()  # type: ignore[no-untyped-call]
        self._tidy()

    def _tidy(self) -> None:
        """Give back what forward and backward passes have left between what they keep: half as much as they need."""
        if self.model.device.type == "cpu":
            give_back()

    def _policy_loss(
        self,
        loss: Loss,
        lesson: _Lesson,
        index_R: Tensor,
        part: TokenBatch,
        scores: Scores,
        policy: PolicySettings,
        tokens: int,
        own: int,
    ) -> tuple[Tensor, Metrics]:
        """Return one micro-batch's share of the loss and of the metrics, for so many tokens in all.

        Of them `own` were sampled in the context that is trained: only there the sampler's logprobs can be held
        against the trainer's.
        """
        width, device = part.ids_BL.shape[1], part.ids_BL.device
        logp_BL, off_policy_R = scores.logp_BL, lesson.off_policy_B[index_R].to(device)
        advantage_BL = cut(lesson.advantage_BL, index_R, width).to(device)
        reference = self._reference_scores(part, policy.temperature)
        reference_BL = None if reference is None else reference.logp_BL
        weight_BL = torch.full_like(logp_BL, 1 / tokens)
        value, metrics = loss(
            logp_BL, part.logp_old_BL, reference_BL, advantage_BL, part.sampled_BL, weight_BL,
            off_policy_B=off_policy_R, **policy.loss_options,
        )  # fmt: skip
        metrics |= {"loss": float(value.detach()), "entropy": float(scores.entropy_BL.sum()) / tokens}
        metrics["flops"] = 0.0 if reference is None else reference.flops
        if not own:
            return value, metrics
        moved_BL = (logp_BL.detach() - part.logp_old_BL) * part.sampled_BL * (off_policy_R == 0)[:, None]
        kl_BL = moved_BL.clamp(max=_FAR).exp() - 1 - moved_BL
        return value, metrics | {"drift": float(moved_BL.abs().sum()) / own, "kl": float(kl_BL.sum()) / own}

    def _reference_scores(self, part: TokenBatch, temperature: float) -> Scores | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return Scores(*self.reference(part, temperature=temperature))

    def _to_device(self, part: TokenBatch) -> TokenBatch:
        device = self.model.device
        moved = (part.ids_BL, part.turn_BL, part.sampled_BL, part.logp_old_BL, part.length_B)
        return TokenBatch(*(one.to(device) for one in moved))
