"""What a recipe needs at least of a device's memory, known before anything is loaded."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from math import ceil
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym_trainers.devices import available_memory
from agentgym_trainers.models import load_config
from agentgym_trainers.recompute import lean
from agentgym_trainers.settings import LoraSettings, TrainerSettings

logger = logging.getLogger(__name__)

_FLOAT = 4
_BFLOAT = 2
_SURE = 0.9
"""Share of what the meta device keeps of a forward pass that real attention kernels keep at least."""
_PROBE = 8
_VLLM = "vLLM's share of the GPU"


@dataclass(frozen=True, slots=True)
class _Network:
    """What one of the networks that a recipe trains consists of."""

    weights: int = 0
    trained: int = 0
    """Weights that get gradients and moments."""
    kept: int = 0
    """Bytes per token that a forward pass keeps for its gradient."""

    @classmethod
    def of(cls, config: Any, settings: TrainerSettings, lora: LoraSettings | None, *, head: bool = True) -> Self:
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise RecipeError(
                f"wanted a causal language model, found a {config.model_type} at {config.name_or_path!r}; name another"
            ) from error
        weights = sum(one.numel() for one in (model if head else model.base_model).parameters())
        trained = weights if lora is None else _adapters(model, lora)
        return cls(weights, trained, _activations(model, settings, config.get_text_config(), frozen=lora is not None))


def least_memory(settings: TrainerSettings, config: Any, *, ranks: int = 1, total: int | None = None) -> dict[str, int]:
    """Return the bytes that training a model needs at least on one device, by what needs them.

    Weights, gradients and both moments of AdamW are float32. Activations are those of one full micro-batch; of the
    engine only a copy of the weights is counted, no keys and values, so that what is refused could not have run. But
    vLLM takes a share of its GPU as it starts, and fills the rest of it with room for keys and values.

    Args:
        settings: of the trainer.
        config: the model's transformers configuration.
        ranks: processes that share weights, gradients, moments and rows.
        total: bytes of the device, used or not; None asks it, where that matters.

    Raises:
        RecipeError: the critic's own model has no configuration.
    """
    policy, critic = _Network.of(config, settings, settings.lora), _own_critic(settings, config)
    copies = 1 + bool(settings.policy.loss_options.get("kl_weight"))
    compute = settings.compute
    tokens = min(compute.token_budget, ceil(_rows(settings) / ranks) * settings.model.context_length)
    logits = min(compute.logit_budget, tokens * config.get_text_config().vocab_size)
    needs = {
        "weights": _FLOAT * (policy.weights * copies + critic.weights) // ranks,
        "gradients and moments": 3 * _FLOAT * (policy.trained + critic.trained) // ranks,
        "activations": tokens * (policy.kept + critic.kept),
        "logits": 2 * _FLOAT * logits,
    }
    share = _vllm_share(settings) if ranks == 1 else 0.0
    if ranks > 1:
        needs["a whole copy for the sampler"] = _FLOAT * policy.weights
    elif share:
        needs[_VLLM] = int(share * (_total_memory(compute.device) if total is None else total))
    if not share and (size := _copy(settings, ranks)):
        needs["the sampler's weights"] = size * policy.weights
    return needs


def _rows(settings: TrainerSettings) -> int:
    """Return the most rows that an optimizer step trains on."""
    policy, sft = settings.policy, settings.sft
    attempts = ceil(policy.tasks_per_step * policy.attempts / policy.minibatches)
    return max(attempts * (policy.steps > 0), sft.batch_size * (sft.steps > 0))


def _own_critic(settings: TrainerSettings, config: Any) -> _Network:
    """Return the critic's trunk: the policy's copied, adapters and all, or one of its own, which is trained whole."""
    critic = settings.critic
    if critic is None or critic.trunk != "own":
        return _Network()
    if critic.path is None:
        return _Network.of(config, settings, settings.lora, head=False)
    return _Network.of(load_config(critic.path), settings, None, head=False)


def _vllm_share(settings: TrainerSettings) -> float:
    """Return the share of the learner's own GPU that vLLM takes: it begins with the first GPU."""
    engine = settings.engine
    if engine.name != "vllm" or settings.compute.device not in ("cuda", "cuda:0"):
        return 0.0
    default = signature(registry.lookup("engines", "vllm")).parameters["memory_share"].default
    share = engine.options.get("memory_share", default)
    return float((engine.options.get("options") or {}).get("gpu_memory_utilization", share))


def _copy(settings: TrainerSettings, ranks: int) -> int:
    """Return the bytes per weight that engines keep on the learner's device, beside what the learner hands over."""
    engine, compute = settings.engine, settings.compute
    if engine.name == "hf" and not settings.schedule.max_staleness:
        here = 2 * (engine.options.get("weights") == "copied")  # evaluations make one of their own
    elif engine.name == "hf":
        here = 1
    else:  # several processes of vLLM share its weights
        here = engine.name == "vllm" and compute.device == "cpu" and ranks == 1
        here = here and (engine.options.get("options") or {}).get("tensor_parallel_size", 1) == 1
    dtype = engine.options.get("dtype") or compute.dtype
    return here * (_BFLOAT if dtype in ("bfloat16", "float16") else _FLOAT)


def _total_memory(device: str) -> int:
    return int(torch.cuda.mem_get_info(torch.device(device))[1])


def refuse_too_large(
    settings: TrainerSettings, config: Any, *, ranks: int = 1, available: int | None = None, total: int | None = None
) -> None:
    """Refuse a recipe that needs more memory than its device has free.

    Args:
        settings: of the trainer.
        config: the model's transformers configuration.
        ranks: processes that share the weights; on a CPU they share its memory too.
        available: bytes; None asks the device.
        total: bytes, used or not; None asks the device, where that matters.

    Raises:
        RecipeError: saying what needs how much, and what would need less; or the critic's model has no configuration.
    """
    device = settings.compute.device
    needs = least_memory(settings, config, ranks=ranks, total=total)
    free = available_memory(device) if available is None else available
    if torch.device(device).type == "cpu":
        free //= ranks
    if sum(needs.values()) <= free:
        return
    lower = "trainer.compute.token_budget" + (" or trainer.engine.options.memory_share" if _VLLM in needs else "")
    listed = ", ".join(f"{_gib(value)} for {name}" for name, value in needs.items())
    raise RecipeError(
        f"training this model needs at least {_gib(sum(needs.values()))} GiB on {device} ({listed}), found "
        f"{_gib(free)} GiB free; choose a smaller model or trainer.lora, set trainer.compute.recompute, or lower "
        f"{lower}"
    )


def _activations(model: Any, settings: TrainerSettings, text: Any, *, frozen: bool) -> int:
    """Return the bytes per token that a model's forward pass keeps for its gradient."""
    with nullcontext() if settings.compute.recompute else lean(model):
        kept = _SURE * _kept(model, frozen=frozen)
    if settings.compute.dtype == "bfloat16":
        kept *= _BFLOAT / _FLOAT
    inputs = _FLOAT * text.hidden_size * text.num_hidden_layers
    return int(inputs + kept / text.num_hidden_layers if settings.compute.recompute else max(inputs, kept))


def _kept(model: Any, *, frozen: bool) -> float:
    """Return the float32 bytes per token that a forward pass on the meta device keeps; 0 of what it cannot compute.

    Args:
        model: on the meta device.
        frozen: its weights get no gradients.
    """
    own = {one.untyped_storage()._cdata for one in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in own and tensor.is_floating_point():
            seen[place] = tensor
        return tensor

    model.requires_grad_(not frozen)
    model.get_input_embeddings().weight.requires_grad = True  # or no gradient would reach the layers
    places = torch.zeros(1, _PROBE, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(input_ids=places, position_ids=places, attention_mask=mask, use_cache=False)
    except (RuntimeError, TypeError) as error:  # kernels and families that the meta device does not know
        logger.debug("%s keeps an unknown amount of activations: %s", type(model).__name__, error)
        return 0.0
    return sum(one.untyped_storage().nbytes() for one in seen.values()) / _PROBE


def _adapters(model: Any, lora: LoraSettings) -> int:
    """Return how many weights peft's adapters for the targets have at least: those of linear layers."""
    head = model.get_output_embeddings()
    linear = [(name, one) for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)]
    if isinstance(lora.targets, list):
        named = [one for name, one in linear if any(f".{name}".endswith(f".{target}") for target in lora.targets)]
    elif lora.targets.lower() == "all-linear":
        named = [one for _, one in linear if one is not head]
    else:
        named = [one for name, one in linear if re.fullmatch(lora.targets, name)]
    return sum(lora.rank * (one.in_features + one.out_features) for one in named)


def _gib(value: int) -> str:
    return f"{value / 2**30:.1f}"
