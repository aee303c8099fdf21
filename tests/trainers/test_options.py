"""Options of advantages and losses are read as what their functions take, and refused before anything is sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from agentgym.errors import RecipeError
from agentgym.rewards import OutcomeOnly
from agentgym_trainers.options import checked_options
from agentgym_trainers.settings import CriticSettings, TrainerSettings
from agentgym_trainers.update import Update

MODEL = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("advantage_options: {stdd: none}", r"advantage_options: 'grpo' has no option 'stdd'; it takes: std, per_turn"),
        ("advantage_options: {std: grup}", r"advantage_options\.std: .*'group', 'batch' or 'none', found 'grup'"),
        ("{advantage: rloo, advantage_options: {std: none}}", r"'rloo' has no option 'std'; it takes: none"),
        ("loss_options: {level: seq}", r"loss_options\.level: .*'token' or 'sequence', found 'seq'"),
        ("loss_options: {cliplow: 0.1}", r"'clip' has no option 'cliplow'; it takes: clip_low, clip_high, kl_weight"),
        ("loss_options: {clip_low: low}", r"loss_options\.clip_low: .*valid number.*, found 'low'"),
        ("loss_options: {kl_weight: -1}", r"loss_options\.kl_weight: .*greater than or equal to 0, found -1"),
        ("{loss: truncated, loss_options: {clip_low: 0.1}}", r"'truncated' has no option 'clip_low'; it takes: cap"),
        ("loss_options: {off_policy_B: 1}", r"'clip' has no option 'off_policy_B'"),
    ],
)
def test_an_option_that_means_nothing_is_refused_in_a_sentence(policy: str, reason: str) -> None:
    settings = TrainerSettings.model_validate({"policy": yaml.safe_load(policy)})
    with pytest.raises(RecipeError, match=rf"trainer\.policy\.{reason}|trainer\.policy\.\w+: {reason}"):
        Update(settings, OutcomeOnly())


@pytest.mark.parametrize("options", [{"lam": 7}, {"gamma": -0.1}, {"level": "tok"}])
def test_options_of_the_critics_advantage_are_bounded(options: dict[str, Any]) -> None:
    policy = {"advantage": "gae", "advantage_options": options}
    settings = TrainerSettings.model_validate({"policy": policy, "critic": CriticSettings()})
    with pytest.raises(RecipeError, match=rf"trainer\.policy\.advantage_options\.{next(iter(options))}: "):
        Update(settings, OutcomeOnly())


def test_numbers_that_yaml_reads_as_text_are_numbers(lab: Any) -> None:
    written = "{level: sequence, clip_low: 3e-4, clip_high: 4e-4, kl_weight: 1e-2}"
    policy = {"steps": 1, "tasks_per_step": 2, "attempts": 2, "loss_options": yaml.safe_load(written)}
    assert policy["loss_options"]["clip_low"] == "3e-4"
    run = lab.train(
        trainer={"model": {**MODEL, "context_length": 128}, "policy": policy}, tasks={"train": 10, "test": 2}
    )
    assert lab.column(run, "train/tokens")[0] > 0


def anything(logp_BL: torch.Tensor, **options: float) -> tuple[torch.Tensor, dict[str, float]]:
    return logp_BL.sum() * options["scale"], {}


def test_a_function_that_takes_any_option_gets_it_as_it_is() -> None:
    assert checked_options("there", "anything", anything, {"scale": "1"}) == {"scale": "1"}


@pytest.mark.parametrize("options", [{"weights": "sharde"}, {"dtype": "int3"}, {"draft_tokens": "many"}])
def test_a_value_that_an_engine_does_not_take_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=rf"options\.{next(iter(options))}: Input should be "):
        TrainerSettings.model_validate({"engine": {"options": options}})


@pytest.mark.parametrize("engine", ["hf", "vllm", "vllm-server"])
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"model": "other"}, "model itself: it is the learner's"),
        ({"batching": "lockstep"}, "batching itself: it is lock-step where sampling and learning take turns"),
        ({"max_batch": 8}, r"max_batch itself: trainer\.compute\.max_batch says it"),
    ],
)
def test_what_the_trainer_tells_every_engine_is_no_option(engine: str, option: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=rf"the trainer sets the engine's {reason}.*; remove that option"):
        TrainerSettings.model_validate({"engine": {"name": engine, "options": option}})


def test_a_server_samples_in_a_type_of_its_own() -> None:
    options = {"url": "http://127.0.0.1:8000"}
    TrainerSettings.model_validate(
        {"engine": {"name": "vllm-server", "options": options}, "compute": {"dtype": "bfloat16"}}
    )
    with pytest.raises(ValidationError, match="the engine 'vllm-server' has no option 'dtype'; it takes: url, "):
        TrainerSettings.model_validate({"engine": {"name": "vllm-server", "options": {**options, "dtype": "bfloat16"}}})


def test_shared_weights_are_not_quietly_copied_where_sampling_overlaps_learning(lab: Any) -> None:
    trainer = {
        "model": {**MODEL, "context_length": 128},
        "engine": {"options": {"weights": "shared"}},
        "schedule": {"max_staleness": 1},
        "policy": {"steps": 1, "tasks_per_step": 2, "attempts": 2},
    }
    with pytest.raises(RecipeError, match="samples from the very tensors that the learner changes"):
        lab.train(trainer=trainer, tasks={"train": 10, "test": 2})


class Unreadable:
    """What nobody can check a value against."""


def strange(logp_BL: torch.Tensor, *, kind: Unreadable | None = None) -> tuple[torch.Tensor, dict[str, float]]:
    return logp_BL.sum(), {"kind": float(kind is None)}


def test_an_option_of_a_type_of_its_own_is_left_to_its_function() -> None:
    assert checked_options("there", "strange", strange, {"kind": "x"}) == {"kind": "x"}
