"""AdamW with a schedule, a limit on the gradient's norm, and a refusal to step on what is not a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import AgentgymError
from agentgym_trainers.settings import OptimSettings
from agentgym_trainers.sharding import like, whole

_ADVICE = (
    "begin a new run from the last good checkpoint (trainer.model.path=CHECKPOINT trainer.sft.steps=0) with a lower "
    "learning rate"
)


class CollapseError(AgentgymError):
    """A loss or a gradient is no longer a number; the last checkpoint is the last good state."""


_SQUARABLE = torch.finfo(torch.float32).max ** 0.5


def refuse_collapse(model: Any) -> None:
    """See whether a causal language model, whole and up to date, still gives numbers.

    A loss cannot tell where there is none: what samples from a model that gives none loses every attempt.

    Raises:
        CollapseError: it gives none, or its weights are so large that their squares, which norms need, are none.
    """
    ids_BL = torch.tensor([[1, 2, 3]], device=model.device)
    with torch.no_grad():
        ends = (torch.stack(torch.aminmax(one)).abs().max() for one in model.parameters())
        sound = all(bool(one < _SQUARABLE) for one in ends)  # NaN is less than nothing
        sound = sound and bool(model(input_ids=ids_BL, use_cache=False).logits.isfinite().all())
    if not sound:
        raise CollapseError(f"the model gives no numbers any more; {_ADVICE}")


def learning_rate(optim: OptimSettings, step: int, steps: int) -> float:
    """Return the rate of optimizer step 0..steps-1.

    >>> optim = OptimSettings(lr=1.0, schedule="cosine", warmup_steps=2)
    >>> [round(learning_rate(optim, step, 6), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Optimizer:
    """Updates some parameters over one phase of training."""

    def __init__(self, parameters: Iterable[Tensor], optim: OptimSettings, steps: int) -> None:
        """Take those of the parameters that are trained, and how many steps the schedule spans."""
        self.updates = 0
        """Steps taken."""
        self._parameters = [one for one in parameters if one.requires_grad]
        self._optim = optim
        self._steps = steps
        self._adamw = torch.optim.AdamW(
            self._parameters, optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay
        )

    def step(self, loss: float) -> dict[str, float]:
        """Follow the accumulated gradients once, and forget them.

        Args:
            loss: their loss, only to be checked.

        Returns:
            `grad_norm` before clipping, and `lr`.

        Raises:
            CollapseError: the loss or the gradient's norm is no finite number; no weight was changed.
        """
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._optim.grad_clip)))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise CollapseError(
                f"the loss is {loss} and the gradient's norm {norm} at update {self.updates}; {_ADVICE}"
            )
        rate = learning_rate(self._optim, self.updates, self._steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad()
        self.updates += 1
        return {"grad_norm": norm, "lr": rate}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, whole."""
        adamw = self._adamw.state_dict()
        moments = {place: {name: whole(one) for name, one in kept.items()} for place, kept in adamw["state"].items()}
        return {"adamw": {**adamw, "state": moments}, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state of the same parameters."""
        adamw = state["adamw"]
        moments = {
            place: {name: like(one, self._parameters[place]) for name, one in kept.items()}
            for place, kept in adamw["state"].items()
        }
        self._adamw.load_state_dict({**adamw, "state": moments})
        self.updates = state["updates"]
