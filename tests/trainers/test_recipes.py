"""Every bundled recipe runs from beginning to end on a CPU with a model made from nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import Qwen2Config

from agentgym import registry
from agentgym.errors import RecipeError, SandboxError, UnknownNameError
from agentgym.recipe import Recipe, bundled
from agentgym.run import RunDirectory
from agentgym_trainers.memory import least_memory, refuse_too_large
from agentgym_trainers.models import new_config
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.settings import ModelSettings

WRITTEN = sorted(bundled())
FOR_GPUS = [name for name in WRITTEN if name != "demo"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_bundled_recipe_is_valid_as_written(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.trainer_settings().policy.steps > 0


@pytest.mark.parametrize("name", WRITTEN)
def test_a_bundled_recipe_trains_a_tiny_model_on_a_cpu(name: str, tmp_path: Path) -> None:
    written, recipe = Recipe.load(name).trainer_settings(), Recipe.load(name, profile="tiny")
    tiny = recipe.trainer_settings()
    assert (tiny.compute.packing, tiny.schedule) == (written.compute.packing, written.schedule)
    backend = registry.create("sandboxes", recipe.sandbox.name)
    try:
        backend.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    run = RunDirectory.create(tmp_path, recipe, name="run")
    NativeTrainer().train(recipe.prepare(), run, resume=False)
    lines = run.metrics()
    assert sum("rollout/reward" in line for line in lines) == recipe.trainer_settings().policy.steps
    assert "eval/pass@1" in lines[-1]
    assert all(line["rollout/unscored"] == 0 for line in lines if "rollout/unscored" in line)
    assert all(line["rollout/sampled_tokens"] > 0 for line in lines if "rollout/sampled_tokens" in line)
    assert all(line["train/tokens"] > 0 for line in lines if "train/tokens" in line)
    assert any("train/value_loss" in line for line in lines) == (tiny.critic is not None)
    assert any("schedule/staleness" in line for line in lines) == (tiny.schedule.max_staleness > 0)
    assert any(line.get("rollout/groups_guided", 0) > 0 for line in lines) == (recipe.guidance.name != "none")


def shape(model: ModelSettings) -> Qwen2Config:
    """What the model of a recipe is, by its published configuration where it has one."""
    if model.path is None:
        return new_config(model, model.vocab_size)
    path = model.path
    wide = "3B" in path
    assert wide or "1.5B" in path
    return Qwen2Config(
        vocab_size=151936, hidden_size=2048 if wide else 1536, num_hidden_layers=36 if wide else 28,
        num_attention_heads=16 if wide else 12, num_key_value_heads=2, intermediate_size=11008 if wide else 8960,
        tie_word_embeddings=True,
    )  # fmt: skip


def gpu(name: str) -> int:
    """The bytes of the GPU that a recipe names."""
    named = re.search(r"One GPU with (\d+) GB as written", bundled()[name].read_text())
    assert named is not None
    return int(named[1]) * 10**9


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_bundled_recipe_fits_the_gpu_that_it_names_and_needs_more_without_recomputation(name: str) -> None:
    room = int(0.85 * gpu(name))  # the rest is for keys and values
    settings = Recipe.load(name).trainer_settings()
    model = shape(settings.model)
    refuse_too_large(settings, model, available=room)
    greedy = Recipe.load(name, ["trainer.compute.recompute=false"]).trainer_settings()
    with pytest.raises(RecipeError, match=r"for activations.* set trainer\.compute\.recompute"):
        refuse_too_large(greedy, model, available=sum(least_memory(settings, model).values()))


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_bundled_recipe_leaves_room_for_keys_and_values_and_remembers_a_quarter_of_every_context(name: str) -> None:
    recipe = Recipe.load(name)
    settings = recipe.trainer_settings()
    model = shape(settings.model)
    states = model.num_key_value_heads * model.hidden_size // model.num_attention_heads
    token = 2 * 2 * model.num_hidden_layers * states  # keys and values, in bfloat16
    contexts = token * min(recipe.limits.concurrency, settings.compute.max_batch) * settings.model.context_length
    remembered = int(settings.engine.options["prefix_cache_mb"]) * 2**20
    needs = least_memory(settings, model)
    if not settings.schedule.max_staleness:  # activations and gradients are gone while it samples
        needs = {"weights": needs["weights"], "moments": needs["gradients and moments"] * 2 // 3}
    # Rows are as wide as the longest of them may get, and an eighth more; a twentieth is left for casts of weights.
    assert sum(needs.values()) + contexts * 9 // 8 + remembered < 0.95 * gpu(name)
    assert remembered > contexts / 4
    assert Recipe.load(name, profile="tiny").trainer_settings().engine.options == {"prefix_cache_mb": 64}


def test_vllm_beside_the_learner_is_refused_where_its_share_is_too_much_and_says_what_to_lower() -> None:
    beside, less = (
        Recipe.load("code-grpo", [f"trainer.engine={{name: vllm, options: {{{option}}}}}"]).trainer_settings()
        for option in ("", "memory_share: 0.3")
    )
    room = gpu("code-grpo")
    sentence = (
        r"20\.1 for vLLM's share of the GPU\), found 44\.7 GiB free; choose .*, or lower "
        r"trainer\.compute\.token_budget or trainer\.engine\.options\.memory_share$"
    )
    with pytest.raises(RecipeError, match=sentence):
        refuse_too_large(beside, shape(beside.model), available=room, total=room)
    refuse_too_large(less, shape(less.model), available=room, total=room)
    with pytest.raises(RecipeError, match=r"another engine's go with trainer\.engine=\{name: vllm\}"):
        Recipe.load("code-grpo", ["trainer.engine.name=vllm"])


def test_a_recipe_of_a_model_from_nothing_goes_on_from_a_run_that_it_made() -> None:
    overrides = ["trainer.model.path=runs/first", "trainer.sft.steps=0"]
    assert Recipe.load("demo", overrides).trainer_settings().model.path == "runs/first"


def test_a_profile_is_laid_over_the_recipe_and_overrides_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nenvironment: {id: agentgym/Code-v0, options: {family: repair, count: 9}}\n"
        "limits: {concurrency: 7, retries: 5}\n"
        "profiles:\n  small: {environment: {options: {count: 3}}, limits: {concurrency: 2}}\n"
    )
    plain, small = Recipe.load(file), Recipe.load(file, ["limits.retries=1"], profile="small")
    assert (plain.environment.options["count"], plain.limits.concurrency, plain.limits.retries) == (9, 7, 5)
    assert small.environment.options == {"family": "repair", "count": 3}
    assert (small.limits.concurrency, small.limits.retries) == (2, 1)
    with pytest.raises(UnknownNameError, match="no profile of mine is registered as 'smal'; did you mean 'small'"):
        Recipe.load(file, profile="smal")
    file.write_text(file.read_text().replace("concurrency: 2", "concurency: 2"))
    with pytest.raises(RecipeError, match=r"limits\.concurency"):
        Recipe.load(file, profile="small")
