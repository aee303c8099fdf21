"""One token for each row, computed from a model's weights without its modules, whose calls cost small models most.

The arithmetic is that of transformers' Llama and what was built like it: normalise, attend, normalise, gate. It is used
only for models that are known to be no more than that, and only after it has agreed with the model itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from agentgym_trainers.engines.slots import PIECES, SlotCache

logger = logging.getLogger(__name__)

_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList)
_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_TOLERANCE = 1e-5

Decode = Callable[[Tensor, Tensor], Tensor]
"""Takes the last token of rows [0, B) of a cache and its position, both [B, 1]; returns scores [B, V]."""


def is_plain(model: Any) -> bool:
    """Whether a model is, at this moment, one of those families and no more than that.

    What is hooked into modules, adapters, dropout, other types than float32 and other devices than the CPU are left to
    the model itself. All of that may be added later, so ask again.
    """
    if type(model) not in _FAMILIES or model.config._attn_implementation not in ("sdpa", PIECES):
        return False
    layers, family = model.model.layers, type(model).__module__
    return (
        len(layers) == model.config.num_hidden_layers
        and all({name for name, _ in one.named_children()} == _PARTS for one in layers)
        and all(_is_as_written(name, one, family) for name, one in model.named_modules())
        and all(type(one) is nn.Parameter and one.dtype == torch.float32 for one in model.parameters())
        and all(one.device.type == "cpu" for one in model.parameters())
    )


def agrees(model: Any) -> bool:
    """Whether a plain model gives the token after two others, in two rows, the same scores as `decode` does."""
    ids_B3 = torch.tensor([[0, 1, 0], [1, 0, 1]]) % model.get_input_embeddings().weight.shape[0]
    cache, position_B2 = SlotCache(model), torch.arange(2).expand(2, -1)
    with torch.inference_mode():
        expected_BV = model(input_ids=ids_B3, use_cache=False).logits[:, -1]
        model(input_ids=ids_B3[:, :2], use_cache=True, **cache.plan(0, position_B2, model.dtype))
        found_BV = decode(model, cache, ids_B3[:, 2:], torch.full((2, 1), 2))
    if bool((found_BV - expected_BV).abs().max() <= _TOLERANCE * (1 + expected_BV.abs().max())):
        return True
    logger.warning("%s does not score as its family does; it decodes for itself, more slowly", type(model).__name__)
    return False


def _is_as_written(name: str, module: nn.Module, family: str) -> bool:
    """Whether a module is the family's own, PyTorch's or an activation, and its call does what its class says."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    if module.training and getattr(module, "attention_dropout", False):
        return False
    return type(module) in _PLAIN or type(module).__module__ == family or name.endswith(".mlp.act_fn")


def decode(model: Any, cache: SlotCache, ids_B1: Tensor, position_B1: Tensor) -> Tensor:
    """Return the scores [B, V] of a plain model after the tokens in rows [0, B) of its cache and one more in each.

    It reads the model's weights at every call, so they may change in place.
    """
    plan, trunk = cache.plan(0, position_B1, model.dtype), model.model
    masks = plan["attention_mask"]
    state_BD = embedding(ids_B1[:, 0], trunk.embed_tokens.weight)
    cos_B1E, sin_B1E = trunk.rotary_emb(state_BD, position_B1)
    half = cos_B1E.shape[-1] // 2
    turn_B1E = torch.cat([-sin_B1E[..., :half], sin_B1E[..., half:]], -1)
    for index, layer in enumerate(trunk.layers):
        attention, mlp = layer.self_attn, layer.mlp
        mask = masks[trunk.config.layer_types[index]] if isinstance(masks, dict) else masks
        normed_BD = _normalised(layer.input_layernorm, state_BD)
        query_BHE = _heads(attention, "q", normed_BD)
        key_BHE = _heads(attention, "k", normed_BD)
        value_BHE = _heads(attention, "v", normed_BD)
        query_BHE, key_BHE = (
            torch.addcmul(one * cos_B1E, one.roll(half, -1), turn_B1E) for one in (query_BHE, key_BHE)
        )
        keys_BHWE, values_BHWE = cache.cache.layers[index].update(key_BHE[:, :, None], value_BHE[:, :, None])
        # The query heads of a group stand in the place of queries: they read the same keys, all of them.
        heard_BHGE = scaled_dot_product_attention(
            query_BHE.view(len(state_BD), keys_BHWE.shape[1], -1, attention.head_dim),
            keys_BHWE,
            values_BHWE,
            attn_mask=mask,
            scale=attention.scaling,
        )
        state_BD = state_BD + _linear(attention.o_proj, heard_BHGE.flatten(1))
        normed_BD = _normalised(layer.post_attention_layernorm, state_BD)
        gate_BF = mlp.act_fn(_linear(mlp.gate_proj, normed_BD)) * _linear(mlp.up_proj, normed_BD)
        state_BD = state_BD + _linear(mlp.down_proj, gate_BF)
    return _linear(model.lm_head, _normalised(trunk.norm, state_BD))


def _heads(attention: Any, name: str, state_BD: Tensor) -> Tensor:
    made_BHE = _linear(getattr(attention, f"{name}_proj"), state_BD).view(len(state_BD), -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return made_BHE if norm is None else _normalised(norm, made_BHE)


def _linear(module: Any, state: Tensor) -> Tensor:
    return linear(state, module.weight, module.bias)


def _normalised(module: Any, state: Tensor) -> Tensor:
    return rms_norm(state, module.weight.shape, module.weight, module.variance_epsilon)
