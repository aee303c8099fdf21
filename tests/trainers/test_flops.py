"""Operations of an update are those of the tokens that it lays and the weights that they meet, counted by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from token_rows import ADVANTAGE, BATCH, BUFFERS, ON_POLICY
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.flops import Cost, peak_flops
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.learner import Learner
from agentgym_trainers.lora import add_lora
from agentgym_trainers.settings import ComputeSettings, CriticSettings, LoraSettings, OptimSettings, PolicySettings

Tiny = tuple[Any, ChatFormat]
HIDDEN = 32
LAYER = (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32 + 3 * 32 * 64 + 2 * 32
"""Queries, keys and values, output, the three of the feed-forward part, and two norms."""
TRUNK = 2 * LAYER + 32
LAID, SAMPLED = int(BATCH.length_B.sum()), int(BATCH.sampled_BL.sum())
TARGETS = ValueTargets(torch.zeros(BATCH.ids_BL.shape), BATCH.sampled_BL.float(), BATCH.sampled_BL)


def learner(tiny: Tiny, *, rank: int = 0, critic: CriticSettings | None = None, **options: Any) -> Learner:
    model, keep = copy.deepcopy(tiny[0]), options.pop("keep_reference", False)
    if rank:
        add_lora(model, LoraSettings(rank=rank), seed=0)
    one = Learner(model, ComputeSettings(**options))
    one.begin(OptimSettings(), 10, keep_reference=keep, critic=critic, critic_steps=10)
    return one


def head(tiny: Tiny) -> int:
    return HIDDEN * int(tiny[0].config.vocab_size)


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("packing", ["none", "rows"])
def test_an_update_costs_six_operations_per_laid_token_and_weight_and_logits_those_of_sampled_ones(
    tiny: Tiny, packing: str, budget: int
) -> None:
    one = learner(tiny, packing=packing, token_budget=budget)
    expected = 6 * (LAID * TRUNK + SAMPLED * head(tiny))
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    assert one.take_flops() == expected
    assert one.take_flops() == 0
    assert SAMPLED < LAID < min(BATCH.ids_BL.numel(), sum(map(len, BUFFERS)))  # no padding, nothing that none reads
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings(epochs=2, minibatches=3))
    assert one.take_flops() == 2 * expected
    one.sft_step(BUFFERS)
    assert one.take_flops() == expected
    one.policy_step(BATCH, ADVANTAGE * 0, ON_POLICY, PolicySettings())
    assert one.take_flops() == 0


def test_a_beginning_that_is_computed_once_is_counted_once(tiny: Tiny) -> None:
    twice = torch.zeros(2, dtype=torch.long)
    sampled, laid = int(BATCH.sampled_BL[0].sum()), int(BATCH.length_B[0])
    for packing, times in (("rows", 2), ("prefixes", 1)):
        one = learner(tiny, packing=packing)
        one.policy_step(BATCH.rows(twice), ADVANTAGE[twice], ON_POLICY[twice], PolicySettings())
        assert one.take_flops() == 6 * (times * laid * TRUNK + 2 * sampled * head(tiny))


def test_what_is_computed_anew_is_not_counted_and_a_reference_only_forwards(tiny: Tiny) -> None:
    one = learner(tiny, recompute=True, keep_reference=True)
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings(loss_options={"kl_weight": 0.1}))
    assert one.take_flops() == (6 + 2) * (LAID * TRUNK + SAMPLED * head(tiny))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("trunk", ["own", "policy"])
def test_a_critic_costs_what_it_computes(tiny: Tiny, trunk: Any, frozen: bool) -> None:
    one = learner(tiny, critic=CriticSettings(trunk=trunk))
    one.values(BATCH)
    assert one.take_flops() == 2 * (LAID * TRUNK + SAMPLED * (HIDDEN + 1))
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings(), values=TARGETS, frozen=frozen)
    policy = 0 if frozen else 6 * (LAID * TRUNK + SAMPLED * head(tiny))
    states = 6 * LAID * TRUNK if trunk == "own" else 2 * LAID * TRUNK * frozen
    assert one.take_flops() == policy + states + 6 * SAMPLED * (HIDDEN + 1)


def test_frozen_weights_beside_adapters_cost_four(tiny: Tiny) -> None:
    pytest.importorskip("peft")
    rank = 4
    widths = [32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 64, 32 + 64, 64 + 32]
    one = learner(tiny, rank=rank)
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    assert one.take_flops() == 4 * (LAID * TRUNK + SAMPLED * head(tiny)) + 6 * LAID * 2 * rank * sum(widths)


def test_a_mixture_of_experts_is_not_counted() -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    assert math.isnan(Cost.of_trunk(Qwen3MoeForCausalLM(config).base_model).forward)


def test_a_peak_is_the_recipes_or_that_of_a_gpu_whose_whole_name_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cuda:0": "NVIDIA H100 80GB HBM3", "cuda:1": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"}
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    assert peak_flops(ComputeSettings(), 1) is None
    assert peak_flops(ComputeSettings(peak_tflops=0.5), 1) == 0.5e12
    assert peak_flops(ComputeSettings(device="cuda:0"), 2) == 2 * 989e12
    assert peak_flops(ComputeSettings(device="cuda:0", peak_tflops=500.0), 1) == 500e12
    assert peak_flops(ComputeSettings(device="cuda:1"), 1) is None
