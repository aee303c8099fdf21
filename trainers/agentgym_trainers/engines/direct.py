"""Some tokens for each row, computed from a model's weights without its modules, whose calls cost small models most.

The arithmetic is that of transformers' Llama and what was built like it: normalise, attend, normalise, gate. It is used
only for models that are known to be no more than that, and only after it has agreed with the model itself. With weights
in bfloat16, products are computed in it; what adds up over layers, and rotations, are float32.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from agentgym_trainers.engines.slots import PIECES, SlotCache, TokenPlan

logger = logging.getLogger(__name__)

_FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList)
_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""How far scores may lie apart, as a share of how much they differ: in bfloat16 a model's layers add up rounding."""


def is_plain(model: Any) -> bool:
    """Whether a model is, at this moment, one of those families and no more than that.

    What is hooked into modules, adapters, dropout, types other than float32 and bfloat16, mixtures of both, and devices
    other than the CPU are left to the model itself. All of that may be added later, so ask again.
    """
    if type(model) not in _FAMILIES or model.config._attn_implementation not in ("sdpa", PIECES):
        return False
    layers, family = model.model.layers, type(model).__module__
    return (
        len(layers) == model.config.num_hidden_layers
        and all({name for name, _ in one.named_children()} == _PARTS for one in layers)
        and all(_is_as_written(name, one, family) for name, one in model.named_modules())
        and len({one.dtype for one in model.parameters()}) == 1
    )


def agrees(model: Any) -> bool:
    """Whether a plain model gives the tokens after two others, in two rows, the same scores as `decode` does."""
    ids_B4 = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]) % model.get_input_embeddings().weight.shape[0]
    cache, position_B2 = SlotCache(model), torch.arange(2).expand(2, -1)
    with torch.inference_mode():
        every_B4V = model(input_ids=ids_B4, use_cache=False).logits
        model(input_ids=ids_B4[:, :2], use_cache=True, **cache.plan(0, position_B2, model.dtype))
        found_TV = decode(model, cache, ids_B4.flatten()[[2, 6, 7]], TokenPlan(0, [1, 2], [2, 2]))
    expected_TV = every_B4V.flatten(0, 1)[[2, 6, 7]]
    apart, spread = (found_TV - expected_TV).float().norm(), (expected_TV.float() - expected_TV.float().mean()).norm()
    if bool(apart <= _TOLERANCE[model.dtype] * spread):
        return True
    logger.warning("%s does not score as its family does; it decodes for itself, more slowly", type(model).__name__)
    return False


def _is_as_written(name: str, module: nn.Module, family: str) -> bool:
    """Whether a module is the family's own, PyTorch's or an activation, and its call does what its class says."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    if module.training and getattr(module, "attention_dropout", False):
        return False
    if not all(one is None or _is_plain_parameter(one) for one in module._parameters.values()):
        return False
    return type(module) in _PLAIN or type(module).__module__ == family or name.endswith(".mlp.act_fn")


def _is_plain_parameter(one: nn.Parameter) -> bool:
    return type(one) is nn.Parameter and one.dtype in _TOLERANCE and one.device.type == "cpu"


def decode(model: Any, cache: SlotCache, ids_T: Tensor, plan: TokenPlan, wanted_N: Tensor | None = None) -> Tensor:
    """Return the scores of a plain model after new tokens in rows of its cache.

    It reads the model's weights at every call, so they may change in place.

    Args:
        model: a plain one.
        cache: of that model.
        ids_T: the new tokens of all rows, end to end.
        plan: where they lie.
        wanted_N: which of them; all by default.

    Returns:
        Scores [N, V], or [T, V].
    """
    trunk, longest = model.model, plan.longest
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    own_type = model.dtype
    mask_L = cache.plan_tokens(plan, own_type, 1 if longest == 1 else group)
    state_TD = embedding(ids_T, trunk.embed_tokens.weight).float()
    cos_T1E, sin_T1E = (one[0, :, None] for one in trunk.rotary_emb(state_TD, plan.column[None]))
    half = cos_T1E.shape[-1] // 2
    turn_T1E = torch.cat([-sin_T1E[..., :half], sin_T1E[..., half:]], -1)
    for layer, slots, mask in zip(trunk.layers, cache.cache.layers, mask_L, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        normed_XD = _factor(_normalised(layer.input_layernorm, state_TD), own_type)
        query_THE, key_THE, value_THE = (_heads(attention, name, normed_XD, len(ids_T)) for name in "qkv")
        query_THE, key_THE = (
            torch.addcmul(one * cos_T1E, one.roll(half, -1), turn_T1E).to(own_type)
            for one in (query_THE.float(), key_THE.float())
        )
        keys_BHWE, values_BHWE = slots.write(key_THE, value_THE)
        # The query heads of a group stand in the place of queries: they read the same keys, all of them.
        query_BHQE = query_THE[:, :, None] if longest == 1 else query_THE[plan.token_BQ].transpose(1, 2)
        heard_BHXE = scaled_dot_product_attention(
            query_BHQE.reshape(len(keys_BHWE), keys_BHWE.shape[1], -1, attention.head_dim),
            keys_BHWE,
            values_BHWE,
            attn_mask=mask,
            scale=attention.scaling,
        )
        heard_BHQE = heard_BHXE.reshape(query_BHQE.shape)
        heard_THE = heard_BHQE[:, :, 0] if longest == 1 else heard_BHQE[plan.row, :, plan.place_T]
        state_TD = state_TD + _linear(attention.o_proj, _factor(heard_THE.flatten(1), own_type))[: len(ids_T)]
        normed_XD = _factor(_normalised(layer.post_attention_layernorm, state_TD), own_type)
        gate_XF = mlp.act_fn(_linear(mlp.gate_proj, normed_XD)) * _linear(mlp.up_proj, normed_XD)
        state_TD = state_TD + _linear(mlp.down_proj, gate_XF)[: len(ids_T)]
    state_ND = state_TD if wanted_N is None else state_TD[wanted_N]
    return _linear(model.lm_head, _factor(_normalised(trunk.norm, state_ND), own_type))[: len(state_ND)]


def _factor(state_TD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what weights of a type are multiplied with; in bfloat16 rows of zeros are added to it.

    For each number of rows that a product in bfloat16 has, oneDNN builds a kernel, which takes milliseconds, and keeps
    it, which takes half a megabyte. So products have few numbers of rows: up to four from a power of two to the next.
    """
    if dtype == torch.float32:
        return state_TD
    rows = len(state_TD)
    step = max(16, 1 << max(0, rows.bit_length() - 3))
    made_XD = state_TD.new_zeros(-(-rows // step) * step, state_TD.shape[1], dtype=dtype)
    made_XD[:rows] = state_TD
    return made_XD


def _heads(attention: Any, name: str, state_XD: Tensor, rows: int) -> Tensor:
    made_THE = _linear(getattr(attention, f"{name}_proj"), state_XD)[:rows].view(rows, -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return made_THE if norm is None else _normalised(norm, made_THE)


def _linear(module: Any, state: Tensor) -> Tensor:
    return linear(state, module.weight, module.bias)


def _normalised(module: Any, state: Tensor) -> Tensor:
    return rms_norm(state, module.weight.shape, module.weight.to(state.dtype), module.variance_epsilon)
