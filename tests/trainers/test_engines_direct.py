"""Decoding without a model's modules: the same scores where it is used, and used only where they are the same."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
from engine_contract import PROMPTS, Subject, contract_model
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentgym_trainers.engines.direct import _factor, agrees, decode, is_plain
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.engines.slots import SlotCache, TokenPlan

SHAPE: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip
ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, tied and stretched": (
        LlamaForCausalLM,
        LlamaConfig,
        {"tie_word_embeddings": True, "rope_parameters": ROPE},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2, windows in some layers": (Qwen2ForCausalLM, Qwen2Config, WINDOWS),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_scores_as_the_model_does_whatever_the_rows_hold(family: str) -> None:
    kind, config, more = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SHAPE, **more)).eval()
    lengths = [9, 3, 14, 1]
    cache = SlotCache(model)
    assert is_plain(model)
    assert agrees(model)
    rows = [torch.randint(0, SHAPE["vocab_size"], (length + 6,)) for length in lengths]
    with torch.inference_mode():
        for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
            position_1N = torch.arange(length)[None]
            model(input_ids=ids[None, :length], use_cache=True, **cache.plan(row, position_1N, model.dtype))
        for counts in ([1, 1, 1, 1], [2, 1, 4, 3], [1, 1, 1, 1]):
            plan = TokenPlan(0, counts, lengths)
            parts = [ids[had : had + count] for ids, had, count in zip(rows, lengths, counts, strict=True)]
            lasts_BV = decode(model, cache, torch.cat(parts), plan, plan.last_B)
            found_TV = decode(model, cache, torch.cat(parts), plan)
            assert torch.equal(lasts_BV, found_TV[plan.last_B])
            every = [
                model(input_ids=ids[None, : had + count], use_cache=False).logits[0, had:]
                for ids, had, count in zip(rows, lengths, counts, strict=True)
            ]
            assert torch.allclose(found_TV, torch.cat(every), atol=1e-4)
            lengths = [had + count for had, count in zip(lengths, counts, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_it_is_no_further_from_the_weights_as_they_are_than_the_model_itself(family: str) -> None:
    kind, config, more = FAMILIES[family]
    torch.manual_seed(0)
    small = kind(config(**SHAPE | {"initializer_range": 0.1}, **more)).eval().bfloat16()
    exact = copy.deepcopy(small).float()  # of the very same weights
    ids_BN = torch.randint(0, SHAPE["vocab_size"], (8, 24))
    cache, position_BN = SlotCache(small), torch.arange(20).expand(8, -1)
    assert is_plain(small)
    assert agrees(small)
    with torch.inference_mode():
        small(input_ids=ids_BN[:, :20], use_cache=True, **cache.plan(0, position_BN, small.dtype))
        found_TV = decode(small, cache, ids_BN[:, 20:].flatten(), TokenPlan(0, [4] * 8, [20] * 8)).float()
        wanted_TV, own_TV = (one(input_ids=ids_BN).logits[:, 20:].flatten(0, 1).float() for one in (exact, small))
    assert 0 < (found_TV - wanted_TV).norm() <= 1.1 * (own_TV - wanted_TV).norm()


def test_an_engine_with_a_copy_in_bfloat16_decodes_directly_and_tells_what_it_sampled_by() -> None:
    model = contract_model(tied=True)
    engine = HFEngine(model, weights="copied", dtype="bfloat16")
    made = Subject(engine, model)
    with made.runner:
        told = [made.run(made.ask(prompt)) for prompt in PROMPTS]
        assert engine._batch is not None
        assert engine._batch._is_plain()
        made.run(engine.close())
    for prompt, one in zip(PROMPTS, told, strict=True):
        ids_1N = torch.tensor([[*prompt, *one.ids]])
        with torch.inference_mode():
            logp_NV = model(input_ids=ids_1N).logits[0].log_softmax(-1)
        expected = logp_NV[len(prompt) - 1 : -1].gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(one.logprobs), expected, atol=0.3)
        assert not torch.allclose(torch.tensor(one.logprobs), expected, atol=1e-5)


def test_products_in_bfloat16_have_few_numbers_of_rows_and_nothing_is_lost() -> None:
    numbers = set()
    for rows in range(1, 2049):
        state_TD = torch.full((rows, 2), float(rows))
        made_XD = _factor(state_TD, torch.bfloat16)
        numbers.add(len(made_XD))
        assert torch.equal(made_XD[:rows], state_TD.bfloat16())
        assert not made_XD[rows:].any()
        assert len(made_XD) < 16 + 1.25 * rows
    assert len(numbers) <= 24
    assert _factor(state_TD, torch.float32) is state_TD


def test_weights_may_change_in_place() -> None:
    model = contract_model(tied=True).eval()
    cache = SlotCache(model)
    assert is_plain(model)
    assert agrees(model)
    with torch.inference_mode():
        for factor in (1.0, 1.5):
            for weight in model.parameters():
                weight.mul_(factor)
            model(input_ids=torch.tensor([[3]]), use_cache=True, **cache.plan(0, torch.tensor([[0]]), model.dtype))
            expected_V = model(input_ids=torch.tensor([[3, 4]]), use_cache=False).logits[0, -1]
            found_BV = decode(model, cache, torch.tensor([4]), TokenPlan(0, [1], [1]))
            assert torch.allclose(found_BV[0], expected_V, atol=1e-4)


def hf(model: Any) -> Iterator[tuple[Subject, HFEngine]]:
    engine = HFEngine(model)
    made = Subject(engine, model)
    with made.runner:
        yield made, engine
        made.run(engine.close())


def shortened(model: Any) -> Any:
    model.config.num_hidden_layers -= 1
    return model


def normless(model: Any) -> Any:
    model.model.layers[0].input_layernorm = torch.nn.Identity()
    return model


def hooked(model: Any) -> Any:
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: None)
    return model


def replaced(model: Any) -> Any:
    model.model.layers[0].forward = model.model.layers[0].forward
    return model


def adapted(model: Any) -> Any:
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)
    return model


def dropping(model: Any) -> Any:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    return model.train()


def mixed(model: Any) -> Any:
    model.model.norm.bfloat16()
    return model


CHANGED: dict[str, Callable[[Any], Any]] = {
    "shortened": shortened,
    "normless": normless,
    "hooked": hooked,
    "replaced": replaced,
    "adapted": adapted,
    "dropping": dropping,
    "float16": lambda model: model.half(),
    "of two types": mixed,
}


@pytest.mark.parametrize("how", CHANGED)
def test_a_model_that_does_more_decodes_for_itself(how: str) -> None:
    changed = CHANGED[how](contract_model(tied=True))
    assert not is_plain(changed)


def test_another_family_decodes_for_itself() -> None:
    assert not is_plain(Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_that_scores_otherwise_than_its_family_is_found_out(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = contract_model(tied=True).to(dtype)
    assert agrees(model)
    family = sys.modules[type(model).__module__]
    turn = family.apply_rotary_pos_emb
    monkeypatch.setattr(family, "apply_rotary_pos_emb", lambda q, k, cos, sin: turn(q, k, cos, -sin))
    assert is_plain(model)
    assert not agrees(model)


def test_what_is_put_into_the_model_later_counts_from_the_next_turn_on() -> None:
    for subject, engine in hf(contract_model(tied=True)):
        before = subject.run(subject.ask(PROMPTS[0]))
        adapted(subject.model)
        for name, weight in subject.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        engine.prefixes.clear()
        after = subject.run(subject.ask(PROMPTS[0]))
        assert after.logprobs != before.logprobs
        subject.exact(PROMPTS[0], after)
