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


def plain_state(model: Any) -> dict[str, tuple[Tensor, Any]]:
    """Return what a model stores under the names of one without adapters, each with the layer to add up, if any."""
    layers = {name: one for name, one in model.named_modules() if hasattr(one, "lora_A")}
    state: dict[str, tuple[Tensor, Any]] = {}
    for key, stored in model.state_dict().items():
        owner, _, rest = key.rpartition(".base_layer.")
        if owner in layers:
            state[f"{owner}.{rest}"] = stored, layers[owner] if rest == "weight" else None
        elif key.rpartition(".lora_")[0] not in layers:
            state[key] = stored, None
    return state


def added_up(stored: Tensor, layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a layer's weight as if it had been trained whole, by default in its own type."""
    with torch.no_grad():
        whole: Tensor = stored + layer.get_delta_weight(_ADAPTER)
        return whole.to(dtype or stored.dtype)


def merged_state(model: Any) -> dict[str, Tensor]:
    """Return on the CPU a model's state as if it had been trained whole; its device holds one whole layer at a time."""
    state: dict[str, Tensor] = {}
    moved: dict[tuple[int, torch.Size], Tensor] = {}
    for name, (stored, layer) in plain_state(model).items():
        if layer is not None:
            state[name] = added_up(stored, layer).cpu()
            continue
        # What is tied must stay so, or it is saved twice.
        state[name] = moved.setdefault((stored.data_ptr(), stored.shape), stored.cpu())
    return state


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)
