"""The critic: what it reads, what its gradient reaches, its warm-up, its state; PPO learns with it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from token_rows import ADVANTAGE, BATCH, BUFFERS, ON_POLICY
from transformers import Qwen2ForSequenceClassification, Qwen2Model

from agentgym.errors import RecipeError
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.critic import Critic, refuse_other_vocabulary, value_loss
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.learner import Learner
from agentgym_trainers.lora import add_lora
from agentgym_trainers.models import export, load_model, new_model
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.network import Network, Scores
from agentgym_trainers.settings import (
    ComputeSettings,
    CriticSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    PolicySettings,
    TrainerSettings,
)

Tiny = tuple[Any, ChatFormat]
TARGET = torch.rand(BATCH.ids_BL.shape, generator=torch.Generator().manual_seed(1)) * BATCH.sampled_BL
KINDS: list[Any] = [
    pytest.param(CriticSettings(), id="own"),
    pytest.param(CriticSettings(trunk="policy"), id="head"),
    pytest.param(CriticSettings(trunk="policy", trunk_weight=0.5), id="shared"),
]
kinds = pytest.mark.parametrize("kind", KINDS)


def learner(tiny: Tiny, kind: CriticSettings, *, token_budget: int = 100_000) -> Learner:
    made = Learner(copy.deepcopy(tiny[0]), ComputeSettings(token_budget=token_budget))
    made.begin(OptimSettings(lr=1e-3), 10, critic=kind, critic_steps=10)
    return made


def step(one: Learner, *, advantage: torch.Tensor = ADVANTAGE, frozen: bool = False) -> dict[str, float]:
    values = ValueTargets(one.values(BATCH), TARGET, BATCH.sampled_BL)
    return one.policy_step(BATCH, advantage, ON_POLICY, PolicySettings(), values=values, frozen=frozen)


def weights(module: Any) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in module.parameters()])


def value_error(one: Learner) -> float:
    return float((one.values(BATCH) - TARGET)[BATCH.sampled_BL].square().mean())


@kinds
def test_a_critic_begins_at_0_and_approaches_its_targets(tiny: Tiny, kind: CriticSettings) -> None:
    one = learner(tiny, kind)
    assert not one.values(BATCH).any()
    before = value_error(one)
    losses = [step(one)["value_loss"] for _ in range(8)]
    assert losses[0] == pytest.approx(before / 2, rel=1e-4)
    assert value_error(one) < before * 0.9


@kinds
def test_micro_batches_change_no_value_and_no_step(tiny: Tiny, kind: CriticSettings) -> None:
    whole, parts = learner(tiny, kind), learner(tiny, kind, token_budget=60)
    for one in (whole, parts):
        first, second = step(one), step(one)
    assert second["value_loss"] < first["value_loss"]
    assert (weights(whole.model) - weights(parts.model)).abs().max() < 5e-5
    assert torch.allclose(whole.values(BATCH), parts.values(BATCH), atol=1e-4)


@kinds
def test_a_frozen_policy_stays_while_its_critic_learns(tiny: Tiny, kind: CriticSettings) -> None:
    one = learner(tiny, kind)
    before, error = weights(one.model), value_error(one)
    metrics = step(one, frozen=True)
    assert torch.equal(weights(one.model), before)
    assert value_error(one) < error
    assert one.updates == 0
    assert "loss" not in metrics


@kinds
def test_a_frozen_policy_without_a_single_verdict_changes_nothing(tiny: Tiny, kind: CriticSettings) -> None:
    one = learner(tiny, kind)
    before = weights(one.model)
    unscored = ValueTargets(one.values(BATCH), TARGET, BATCH.sampled_BL & False)
    metrics = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings(), values=unscored, frozen=True)
    assert torch.equal(weights(one.model), before)
    assert not one.values(BATCH).any()
    assert "value_loss" not in metrics


@pytest.mark.parametrize(("weight", "moves"), [(0.0, False), (0.5, True)])
def test_the_value_loss_shapes_the_policys_trunk_only_as_much_as_it_may(tiny: Tiny, weight: float, moves: bool) -> None:
    one = learner(tiny, CriticSettings(trunk="policy", trunk_weight=weight))
    step(one, frozen=True)  # a head of zeros passes no gradient on
    before = weights(one.model)
    step(one, advantage=ADVANTAGE * 0)
    assert torch.equal(weights(one.model), before) is not moves


def trunk_gradient(tiny: Tiny, weight: float) -> torch.Tensor:
    """What the sum of all values leaves in the policy's trunk."""
    model = copy.deepcopy(tiny[0])
    critic = Critic.of(CriticSettings(trunk="policy", trunk_weight=weight), model)
    torch.nn.init.constant_(critic.head.weight, 0.1)  # a head of zeros passes no gradient on
    total: Any = Scores(*Network(model, ComputeSettings(), critic)(BATCH, temperature=1.0)).value_BL.sum()
    total.backward()
    return torch.cat([one.grad.flatten() for one in model.base_model.parameters() if one.grad is not None])


def test_half_the_trunk_weight_passes_half_the_gradient_on(tiny: Tiny) -> None:
    whole, half = trunk_gradient(tiny, 1.0), trunk_gradient(tiny, 0.5)
    assert whole.abs().max() > 1e-3
    assert torch.allclose(half, whole / 2, rtol=1e-5, atol=1e-8)


def test_values_keep_the_digits_of_float32_where_all_else_is_bfloat16(tiny: Tiny) -> None:
    critic, draw = Critic(32, None), torch.Generator().manual_seed(0)
    with torch.no_grad():
        critic.head.weight.copy_(torch.randn(1, 32, generator=draw))
    states = torch.randn(64, 32, generator=draw)
    for given in (states, states.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            found = critic(given)
        expected = torch.nn.functional.linear(given.float(), critic.head.weight, critic.head.bias)[:, 0]
        assert torch.equal(found, expected)
    one = Learner(copy.deepcopy(tiny[0]), ComputeSettings(dtype="bfloat16"))
    one.begin(OptimSettings(lr=1e-3), 10, critic=CriticSettings(), critic_steps=10)
    step(one)
    values = one.values(BATCH)[BATCH.sampled_BL]
    assert not torch.equal(values, values.bfloat16().float())


def test_the_value_before_a_token_knows_nothing_of_the_token(tiny: Tiny) -> None:
    one = learner(tiny, CriticSettings())
    step(one)
    other = copy.deepcopy(BUFFERS)
    for buffer in other:  # the last sampled token, and all after it
        last = max(place for place, kind in enumerate(buffer.kinds) if kind == 1)
        buffer.ids[last:] = [11] * len(buffer.ids[last:])
    changed = type(BATCH).of(other)
    assert torch.equal(one.values(changed), one.values(BATCH))


def test_the_loss_does_not_follow_values_beyond_the_clip() -> None:
    value = torch.tensor([0.1, 0.5, 0.5], requires_grad=True)
    old, target = torch.zeros(3), torch.tensor([1.0, 1.0, 0.0])
    loss, metrics = value_loss(value, old, target, 1 / 3, clip=0.2)
    assert loss.item() == pytest.approx((0.9**2 + 0.8**2 + 0.5**2) / 6)
    assert torch.autograd.grad(loss, value)[0].tolist() == pytest.approx([-0.3, 0.0, 1 / 6])
    assert metrics["value_clip_fraction"] == pytest.approx(1 / 3)
    assert value_loss(value, old, target, 1 / 3, clip=None)[0].item() == pytest.approx((0.9**2 + 0.5**2 * 2) / 6)


@kinds
def test_a_saved_critic_goes_on_bit_for_bit(tiny: Tiny, kind: CriticSettings) -> None:
    one = learner(tiny, kind)
    step(one)
    state = copy.deepcopy(one.state())
    step(one)
    other = learner(tiny, kind)
    other.load_state(state)
    step(other)
    assert torch.equal(weights(one.model), weights(other.model))
    assert torch.equal(one.values(BATCH), other.values(BATCH))


def test_a_critic_of_its_own_can_be_any_model_with_the_same_tokenizer(tiny: Tiny, tmp_path: Path) -> None:
    shape = ModelSettings(vocab_size=300, hidden=16, layers=1, heads=2, kv_heads=1, intermediate=32)
    small, tokenizer = new_model(shape, ["12+34"] * 3, seed=1, device="cpu")
    small.resize_token_embeddings(tiny[0].config.vocab_size)
    export(small, tokenizer, tmp_path / "same")
    critic = Critic.of(CriticSettings(path=str(tmp_path / "same")), tiny[0])
    assert critic.head.in_features == 16
    small.resize_token_embeddings(100)
    export(small, tokenizer, tmp_path / "other")
    with pytest.raises(RecipeError, match=r"reads 100 token ids and the policy writes .* with the same tokenizer"):
        Critic.of(CriticSettings(path=str(tmp_path / "other")), tiny[0])


@pytest.mark.parametrize("family", [Qwen2Model, Qwen2ForSequenceClassification])
def test_a_critic_needs_no_head_where_it_is_loaded_from_but_its_whole_trunk(
    tiny: Tiny, tmp_path: Path, family: Any
) -> None:
    shape = copy.deepcopy(tiny[0].config)
    shape.tie_word_embeddings, shape.pad_token_id = False, 0
    torch.manual_seed(2)
    saved = family(shape)
    saved.save_pretrained(tmp_path)
    tiny[1].tokenizer.save_pretrained(tmp_path)
    critic = Critic.of(CriticSettings(path=str(tmp_path)), tiny[0])
    assert critic.trunk is not None
    wanted = dict(saved.base_model.named_parameters())
    assert all(torch.equal(one, wanted[name]) for name, one in critic.trunk.named_parameters())
    with pytest.raises(RecipeError, match=r"its files lack 1 of \d\d weights, lm_head\.weight first"):
        load_model(tmp_path, "cpu")
    changed = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(RecipeError, match=r"its files lack 12 of \d\d weights, model\.layers\.2\."):
        Critic.of(CriticSettings(path=str(tmp_path)), tiny[0])


def test_a_critic_that_copies_a_policy_with_adapters_trains_its_own_and_a_head(tiny: Tiny) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    model = copy.deepcopy(tiny[0])
    add_lora(model, LoraSettings(rank=4), seed=0)
    one = Learner(model, ComputeSettings())
    one.begin(OptimSettings(lr=1e-3), 10, critic=CriticSettings(), critic_steps=10)
    critic = one.critic
    assert critic is not None
    before = {name: weight.detach().clone() for name, weight in critic.named_parameters()}
    trained = {name for name, weight in critic.named_parameters() if weight.requires_grad}
    adapters = {name for name in before if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 7  # two factors for each of seven products in either layer
    assert trained == {*adapters, "head.weight", "head.bias"}
    policys = {weight.data_ptr() for weight in model.parameters()}
    assert policys.isdisjoint(weight.data_ptr() for weight in critic.parameters())
    error = value_error(one)
    for _ in range(3):  # the head moves at once, then what it reads, then what that product is made of
        step(one)
    assert {name for name, weight in critic.named_parameters() if not torch.equal(weight, before[name])} == trained
    assert value_error(one) < error


def test_a_critic_that_reads_tokens_as_others_is_refused(lab: Any, tiny: Tiny, tmp_path: Path) -> None:
    model, chat = tiny
    export(model, chat.tokenizer, tmp_path / "same")
    refuse_other_vocabulary(str(tmp_path / "same"), chat.tokenizer)
    shape = ModelSettings(vocab_size=300, hidden=16, layers=1, heads=2, kv_heads=1, intermediate=32)
    other, tokenizer = new_model(shape, ["xyz xyz xyz"] * 3, seed=1, device="cpu")
    export(other, tokenizer, tmp_path / "other")
    assert model.config.vocab_size >= other.config.vocab_size  # so that sizes tell nothing
    chosen = {"model": {"path": str(tmp_path / "other")}, "critic": {"path": str(tmp_path / "same")}}
    sentence = r"trainer\.critic\.path: wanted .* found one in which \d+ tokens .* have other ids, the first of them '"
    with pytest.raises(RecipeError, match=sentence):
        lab.train(trainer={"policy": {"steps": 1, "advantage": "gae"}, **chosen})


@pytest.mark.parametrize(
    ("policy", "critic", "sentence"),
    [
        ({"advantage": "gae"}, None, "'gae' needs a critic; add the section trainer.critic"),
        ({"advantage": "grpo"}, {}, "'grpo' uses no critic, found the section trainer.critic"),
        ({"advantage": "grpo", "attempts": 1}, None, "compares attempts at one task, found trainer.policy.attempts 1"),
        ({"advantage": "gae"}, {"trunk_weight": 0.1}, "say trunk: policy, or leave it out"),
        ({"advantage": "gae"}, {"trunk": "policy", "path": "x"}, "loads no model, found path 'x'"),
    ],
)
def test_recipes_that_cannot_mean_what_they_say_are_refused(
    lab: Any, policy: dict[str, Any], critic: dict[str, Any] | None, sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        lab.train(trainer={"policy": {"steps": 1, **policy}, "critic": critic})


SHAPE = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
PPO: dict[str, Any] = {
    "model": {**SHAPE, "context_length": 128},
    "policy": {"steps": 4, "tasks_per_step": 6, "attempts": 1, "minibatches": 2, "advantage": "gae"},
    "critic": {"warmup_steps": 1},
    "checkpoint": {"every": 2, "keep": 9},
}


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "adapters"])
def test_a_resumed_ppo_run_ends_with_the_same_weights_critic_and_all(lab: Any, lora: dict[str, Any] | None) -> None:
    if lora:
        pytest.importorskip("peft", reason="peft is not installed")
    chosen = {**PPO, "lora": lora}
    run = lab.train(trainer=chosen, tasks={"train": 60, "test": 4})
    last = max(run.checkpoints.glob("step-*"))
    whole, lines = load_file(last / "model" / "model.safetensors"), lab.column(run, "train/value_loss")
    state = torch.load(last / "state.pt", weights_only=True)["learner"]
    assert lab.column(run, "train/explained_variance")[0] == 0
    assert len(lines) == 4
    assert len(lab.column(run, "train/loss")) == 3  # the first step warmed the critic up
    shutil.rmtree(last)
    recipe = lab.recipe(trainer=chosen, tasks={"train": 60, "test": 4})
    NativeTrainer().train(recipe.prepare(), run, resume=True)
    again = torch.load(last / "state.pt", weights_only=True)["learner"]
    resumed = load_file(last / "model" / "model.safetensors")
    assert all(torch.equal(one, resumed[name]) for name, one in whole.items())
    critic = state["critic"]["critic"]
    assert any(name.startswith("trunk.") for name in critic)
    assert any(".lora_" in name for name in critic) is bool(lora)
    assert all(torch.equal(one, again["critic"]["critic"][name]) for name, one in critic.items())
    assert lab.column(run, "train/value_loss") == lines


def test_a_critic_that_cannot_be_loaded_any_more_is_not_blamed_on_the_checkpoint(
    lab: Any, tiny: Tiny, tmp_path: Path
) -> None:
    export(tiny[0], tiny[1].tokenizer, tmp_path)
    policy = {**PPO["policy"], "steps": 2, "minibatches": 1}
    own = {"model": {"path": str(tmp_path)}, "critic": {"path": str(tmp_path)}, "policy": policy}
    chosen = {**PPO, **own, "checkpoint": {"every": 1, "keep": 9}}
    run = lab.train(trainer=chosen, tasks={"train": 8, "test": 2})
    shutil.rmtree(max(run.checkpoints.glob("step-*")))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match=rf"^no model can be loaded from '{tmp_path}': "):
        NativeTrainer().train(lab.recipe(trainer=chosen, tasks={"train": 8, "test": 2}).prepare(), run, resume=True)


def test_a_warm_up_of_the_critic_that_leaves_the_policy_no_step_is_refused() -> None:
    policy = {"steps": 5, "advantage": "gae"}
    TrainerSettings.model_validate({"policy": policy, "critic": {"warmup_steps": 4}})
    with pytest.raises(ValidationError, match=r"critic\.warmup_steps below policy\.steps, 5, .*; found 5"):
        TrainerSettings.model_validate({"policy": policy, "critic": {"warmup_steps": 5}})
