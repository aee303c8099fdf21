"""Low-rank adapters by peft, put into a model in place: engines and exports see what base and adapters add up to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentgym.errors import RecipeError
from agentgym_trainers.settings import LoraSettings

_ADAPTER = "default"


def add_lora(model: Any, settings: LoraSettings, seed: int) -> None:
    """Freeze a model and give its linear layers trainable adapters, which at first change nothing.

    Raises:
        RecipeError: peft is missing, or the model has no layers of the given names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError('LoRA needs peft; run `pip install "agentgym-rlvr[lora]"`') from error
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.targets, task_type="CAUSAL_LM"
    )
    model.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, one in model.named_modules() if _is_linear(one)})
        raise RecipeError(
            f"{type(model).__name__} has no layers {settings.targets!r} for LoRA; it has: {', '.join(linear)}"
        ) from error
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.to(model.device)


def has_lora(model: Any) -> bool:
    """Return whether a model has adapters."""
    return any(hasattr(one, "lora_A") for one in model.modules())


def merged_state(model: Any) -> dict[str, Tensor]:
    """Return a model's state as if it had been trained whole: adapters added to their layers, under plain names."""
    state: dict[str, Tensor] = model.state_dict()
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        with torch.no_grad():
            state[f"{name}.base_layer.weight"] = layer.base_layer.weight + layer.get_delta_weight(_ADAPTER)
        for key in [one for one in state if one.startswith(f"{name}.lora_")]:
            del state[key]
        for key in [one for one in state if one.startswith(f"{name}.base_layer.")]:
            state[key.replace(".base_layer.", ".")] = state.pop(key)
    return state


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)
