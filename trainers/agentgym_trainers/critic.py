"""What a state is worth: a linear value head on the policy's hidden states, or on those of a model of its own."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from agentgym.errors import RecipeError
from agentgym_trainers.batch import cut
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.models import load_tokenizer, load_trunk
from agentgym_trainers.optimizer import Optimizer
from agentgym_trainers.settings import CriticSettings
from agentgym_trainers.sharding import load_whole_state, whole_state


class Critic(nn.Module):
    """A value head, and the trunk that it reads if that is not the policy's."""

    def __init__(self, hidden: int, trunk: nn.Module | None, trunk_weight: float = 1.0) -> None:
        """Start with the value 0 everywhere, so that first advantages are the rewards themselves.

        Args:
            hidden: width of the hidden states.
            trunk: a transformers base model; None reads the policy's states.
            trunk_weight: share of the value loss's gradient that goes on into the states.
        """
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._trunk_weight = trunk_weight

    @classmethod
    def of(cls, settings: CriticSettings, model: Any) -> Critic:
        """Build a recipe's critic for a policy's model, on its device.

        Raises:
            RecipeError: the critic's own model cannot be loaded, or reads fewer token ids than the policy writes.
        """
        trunk: Any = None
        if settings.trunk == "own":
            trunk = copy.deepcopy(model.base_model) if settings.path is None else _load(settings.path, model)
        config = model.config if trunk is None else trunk.config
        weight = settings.trunk_weight if trunk is None else 1.0
        return cls(config.hidden_size, trunk, weight).to(model.device)

    def forward(self, states_ND: Tensor) -> Tensor:
        """Return float32 [N]: the value of each state."""
        if self._trunk_weight == 0:
            states_ND = states_ND.detach()
        elif self._trunk_weight != 1 and states_ND.requires_grad:
            states_ND = states_ND.clone()
            states_ND.register_hook(lambda gradient: gradient * self._trunk_weight)  # type: ignore[no-untyped-call]
        # Values are compared with their own small changes, of which bfloat16's three digits would keep little.
        device = states_ND.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            value_N1: Tensor = self.head(states_ND.float())
        return value_N1[:, 0]


def value_loss(
    value_N: Tensor, old_N: Tensor, target_N: Tensor, weight: float, clip: float | None
) -> tuple[Tensor, dict[str, float]]:
    """PPO's squared error, half of it, which does not follow values further than `clip` away from the old ones.

    Args:
        value_N: with gradient.
        old_N: before the update.
        target_N: constants.
        weight: of each value; with 1 / (values of the whole batch) the losses of micro-batches add up exactly.
        clip: in units of reward; None sets no bound.

    Returns:
        The summed loss, and sums of metrics that add up over micro-batches.
    """
    error_N = (value_N - target_N).square()
    cut_N = torch.zeros_like(error_N)
    if clip is not None:
        bounded_N = (old_N + (value_N - old_N).clamp(-clip, clip) - target_N).square()
        cut_N = (bounded_N > error_N).float()
        error_N = torch.maximum(error_N, bounded_N)
    loss = 0.5 * weight * error_N.sum()
    return loss, {"value_loss": float(loss.detach()), "value_clip_fraction": weight * float(cut_N.sum())}


class CriticPhase:
    """A critic that is fitted over one phase of training, by an optimizer of its own."""

    def __init__(self, critic: Critic, settings: CriticSettings, steps: int) -> None:
        """Start with a fresh optimizer whose schedule spans `steps`."""
        self.critic = critic
        self._clip = settings.clip
        self._optimizer = Optimizer(critic.parameters(), settings.optim, steps)

    def loss(
        self, value_BL: Tensor, targets: ValueTargets, index_R: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Return `value_loss` of some rows of a batch, and its metrics.

        Args:
            value_BL: of these rows, with gradient.
            targets: of the whole batch.
            index_R: which rows they are.
            weight: of each value.
        """
        width, device = value_BL.shape[1], value_BL.device
        mask_BL, old_BL, target_BL = (
            cut(one, index_R, width).to(device) for one in (targets.mask_BL, targets.old_BL, targets.target_BL)
        )
        return value_loss(value_BL[mask_BL], old_BL[mask_BL], target_BL[mask_BL], weight, self._clip)

    def step(self, loss: float) -> dict[str, float]:
        """Follow the accumulated gradients once."""
        return {f"value_{name}": one for name, one in self._optimizer.step(loss).items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {"critic": whole_state(self.critic), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        load_whole_state(self.critic, state["critic"])
        self._optimizer.load_state_dict(state["optimizer"])


def refuse_other_vocabulary(path: str, tokenizer: Any) -> None:
    """Refuse a critic that would read the policy's tokens as others.

    Args:
        path: of the critic's model.
        tokenizer: the policy's.

    Raises:
        RecipeError: its tokenizer lacks a token of the policy's, or has another number for it.
    """
    theirs = load_tokenizer(path).get_vocab()
    wrong = sorted((number, token) for token, number in tokenizer.get_vocab().items() if theirs.get(token) != number)
    if wrong:
        number, token = wrong[0]
        raise RecipeError(
            f"trainer.critic.path: wanted a model with the policy's vocabulary, found one in which {len(wrong)} tokens "
            f"are missing or have other ids, the first of them {token!r}, {number} to the policy; "
            "name a model with the same tokenizer, or leave the path out"
        )


def _load(path: str, model: Any) -> Any:
    trunk = load_trunk(path, str(model.device))
    if trunk.config.vocab_size < model.config.vocab_size:
        raise RecipeError(
            f"the critic {path!r} reads {trunk.config.vocab_size} token ids and the policy writes "
            f"{model.config.vocab_size}; wanted a model with the same tokenizer"
        )
    return trunk
