"""Adapters, recomputed activations, bfloat16 and the memory check: each changes what it costs, not what is learned."""

from __future__ import annotations

import asyncio
import copy
import logging
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from token_rows import ADVANTAGE, BATCH, ON_POLICY
from transformers import AutoModelForCausalLM

from agentgym.errors import RecipeError
from agentgym.policy import Sampling
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.learner import Learner
from agentgym_trainers.logprobs import token_logprobs
from agentgym_trainers.memory import available_memory, least_memory, refuse_too_large
from agentgym_trainers.models import export
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.settings import ComputeSettings, LoraSettings, OptimSettings, PolicySettings, TrainerSettings

Tiny = tuple[Any, ChatFormat]


def trained(tiny: Tiny, **compute: Any) -> tuple[Learner, dict[str, float]]:
    one = Learner(copy.deepcopy(tiny[0]), ComputeSettings(**compute))
    one.begin(OptimSettings(lr=1e-3), 10)
    return one, one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())


def weights(one: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()])


@pytest.mark.parametrize("packing", ["none", "prompts"])
def test_recomputed_activations_make_the_same_step_without_dropout(tiny: Tiny, packing: Any) -> None:
    careless = copy.deepcopy(tiny[0])
    for layer in careless.model.layers:
        layer.self_attn.attention_dropout = 0.5
    plain, expected = trained(tiny, packing=packing)
    calls = []
    careless.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    one = Learner(careless, ComputeSettings(packing=packing, recompute=True))
    calls.clear()
    one.begin(OptimSettings(lr=1e-3), 10)
    calls.clear()
    found = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    assert len(calls) == 2  # once forward, once more for the gradient
    assert found == pytest.approx(expected, rel=1e-5)
    assert (weights(one) - weights(plain)).abs().max() < 1e-6
    assert not careless.model.layers[0].training


def test_bfloat16_is_arithmetic_only_and_warned_of_on_a_cpu(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one, found = trained(tiny, dtype="bfloat16")
    assert "bfloat16 on a CPU is slow" in caplog.text
    _, expected = trained(tiny)
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    assert found["entropy"] == pytest.approx(expected["entropy"], rel=1e-2)
    assert found["entropy"] != expected["entropy"]


def config(hidden: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=1000, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip


def test_the_memory_estimate_counts_every_weight_and_what_trains_it(tiny: Tiny) -> None:
    whole = sum(one.numel() for one in tiny[0].parameters())
    needs = least_memory(TrainerSettings(), tiny[0].config)
    assert needs["weights"] == 4 * whole
    assert needs["gradients and moments"] == 12 * whole
    kl = TrainerSettings(policy=PolicySettings(loss_options={"kl_weight": 0.1}))
    assert least_memory(kl, tiny[0].config)["weights"] == 8 * whole
    lora = least_memory(TrainerSettings(lora=LoraSettings(rank=2)), tiny[0].config)
    assert 0 < lora["gradients and moments"] < 12 * whole / 4
    halves = least_memory(TrainerSettings(), tiny[0].config, ranks=2)
    assert halves["gradients and moments"] == 6 * whole


def test_a_recipe_that_asks_for_more_memory_than_there_is_is_refused_in_one_sentence() -> None:
    sentence = r"needs at least \d+\.\d GiB on cpu \(.* for weights, .*\), found 0\.5 GiB free; choose a smaller model"
    with pytest.raises(RecipeError, match=sentence):
        refuse_too_large(TrainerSettings(), config(8192), available=2**29)
    refuse_too_large(TrainerSettings(), config(32), available=2**29)
    assert available_memory("cpu") > 2**20


def test_training_refuses_before_it_loads(lab: Any) -> None:
    huge = {"hidden": 65536, "layers": 80, "heads": 512, "kv_heads": 8, "intermediate": 262144}
    with pytest.raises(RecipeError, match="needs at least"):
        lab.train(trainer={"model": huge, "policy": {"steps": 1}})


LORA: dict[str, Any] = {
    "model": {
        "vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64,
        "context_length": 128,
    },
    "lora": {"rank": 4},
    "sft": {"steps": 4, "batch_size": 8, "demonstrations": 40, "optim": {"lr": 1e-2}},
    "policy": {"steps": 2, "tasks_per_step": 3, "attempts": 4, "loss_options": {"kl_weight": 0.1}},
    "checkpoint": {"every": 1, "sft_every": 2, "keep": 9},
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(lab: Any) -> Any:
    pytest.importorskip("peft", reason="peft is not installed")
    return lab.train(trainer=LORA, tasks={"train": 60, "test": 4})


def test_adapters_alone_are_trained_and_exports_are_whole(adapted: Any, tiny: Tiny, tmp_path: Any) -> None:
    from agentgym_trainers.lora import add_lora

    last = max(adapted.checkpoints.glob("step-*"))
    state = torch.load(last / "state.pt", weights_only=True)["learner"]["model"]
    early = torch.load(min(adapted.checkpoints.glob("step-*")) / "state.pt", weights_only=True)["learner"]["model"]
    moved = {name for name, one in state.items() if not torch.equal(one, early[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    names = load_file(last / "model" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in names)

    model = copy.deepcopy(tiny[0])
    add_lora(model, LoraSettings(rank=4), seed=0)
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    export(model, tiny[1].tokenizer, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    found = [
        token_logprobs(one, BATCH.ids_BL, BATCH.sampled_BL, temperature=1.0, logit_budget=1 << 24)[0].detach()
        for one in (tiny[0], model, merged)
    ]
    assert torch.allclose(found[1], found[2], atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_an_engine_with_weights_of_its_own_samples_with_new_adapters(tiny: Tiny) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from agentgym_trainers.lora import add_lora

    model = copy.deepcopy(tiny[0])
    add_lora(model, LoraSettings(rank=4), seed=0)

    async def sample() -> list[list[float]]:
        engine = HFEngine(model, weights="copied")
        found = []
        for scale in (0.0, 0.3):
            for layer in model.modules():
                if hasattr(layer, "lora_A"):
                    torch.nn.init.constant_(layer.lora_B["default"].weight, scale)
            await engine.update_weights()
            made = await engine.generate([5, 6, 7], Sampling(max_tokens=6, seed=1), "s", ())
            row = torch.tensor([[5, 6, 7, *made.ids]])
            mask = torch.tensor([[False] * 3 + [True] * 6])
            logp = token_logprobs(model, row, mask, temperature=1.0, logit_budget=1 << 24)[0]
            assert torch.allclose(logp[mask], torch.tensor(made.logprobs), atol=1e-5)
            found.append(made.logprobs)
        await engine.close()
        return found

    first, second = asyncio.run(sample())
    assert first != second


def test_a_resumed_run_with_adapters_ends_with_the_same_bits(lab: Any, adapted: Any) -> None:
    last = max(adapted.checkpoints.glob("step-*"))
    whole = torch.load(last / "state.pt", weights_only=True)["learner"]["model"]
    shutil.rmtree(last)
    NativeTrainer().train(lab.recipe(trainer=LORA, tasks={"train": 60, "test": 4}).prepare(), adapted, resume=True)
    again = torch.load(last / "state.pt", weights_only=True)["learner"]["model"]
    assert all(torch.equal(one, again[name]) for name, one in whole.items())


def test_layers_that_are_not_there_get_no_adapters(tiny: Tiny) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from agentgym_trainers.lora import add_lora

    with pytest.raises(RecipeError, match=r"has no layers \['query'\] for LoRA; it has: .*q_proj"):
        add_lora(copy.deepcopy(tiny[0]), LoraSettings(targets=["query"]), seed=0)
