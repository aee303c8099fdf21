"""What a recipe needs at least of a device's memory, known before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from agentgym.errors import RecipeError
from agentgym_trainers.devices import available_memory
from agentgym_trainers.settings import TrainerSettings

_FLOAT = 4
_BFLOAT = 2


def least_memory(settings: TrainerSettings, config: Any, *, ranks: int = 1) -> dict[str, int]:
    """Return the bytes that training a model needs at least on one device, by what needs them.

    Weights, gradients and both moments of AdamW are float32. Of activations only what each layer must keep of its
    input is counted, and of the engine nothing, so that what is refused could not have run.

    Args:
        settings: of the trainer.
        config: the model's transformers configuration.
        ranks: processes that share weights, gradients and moments.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    whole = sum(one.numel() for one in model.parameters())
    trained = whole if settings.lora is None else _adapters(model, settings.lora.rank)
    copies = 1 + bool(settings.policy.loss_options.get("kl_weight"))
    own_critic = settings.critic is not None and settings.critic.trunk == "own" and settings.critic.path is None
    compute = settings.compute
    text = config.get_text_config()
    tokens = compute.token_budget
    logits = min(compute.logit_budget, tokens * text.vocab_size)
    needs = {
        "weights": _FLOAT * whole * (copies + own_critic) // ranks,
        "gradients and moments": 3 * _FLOAT * trained * (1 + own_critic) // ranks,
        "activations": _FLOAT * tokens * text.hidden_size * text.num_hidden_layers,
        "logits": 2 * _FLOAT * logits,
    }
    if ranks > 1:
        needs["the sampler's weights"] = _FLOAT * whole
    elif settings.schedule.max_staleness:
        needs["the sampler's weights"] = (_BFLOAT if compute.dtype == "bfloat16" else _FLOAT) * whole
    return needs


def refuse_too_large(settings: TrainerSettings, config: Any, *, ranks: int = 1, available: int | None = None) -> None:
    """Refuse a recipe that needs more memory than its device has free.

    Args:
        settings: of the trainer.
        config: the model's transformers configuration.
        ranks: processes that share the weights; on a CPU they share its memory too.
        available: bytes; None asks the device.

    Raises:
        RecipeError: saying what needs how much, and what would need less.
    """
    device = settings.compute.device
    needs = least_memory(settings, config, ranks=ranks)
    free = available_memory(device) if available is None else available
    if torch.device(device).type == "cpu":
        free //= ranks
    if sum(needs.values()) <= free:
        return
    listed = ", ".join(f"{_gib(value)} for {name}" for name, value in needs.items())
    raise RecipeError(
        f"training this model needs at least {_gib(sum(needs.values()))} GiB on {device} ({listed}), found "
        f"{_gib(free)} GiB free; choose a smaller model or trainer.lora, or lower trainer.compute.token_budget"
    )


def _adapters(model: Any, rank: int) -> int:
    head = model.get_output_embeddings()
    linear = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not head]
    return sum(rank * (one.in_features + one.out_features) for one in linear)


def _gib(value: int) -> str:
    return f"{value / 2**30:.1f}"
