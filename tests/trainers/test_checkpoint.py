"""Checkpoints are whole or absent, few, loadable elsewhere, and tied to their recipe."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentgym.errors import AgentgymError, RecipeError
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.checkpoint import CheckpointError, Checkpoints, restore_generators
from agentgym_trainers.models import load_model, new_model
from agentgym_trainers.policies import CheckpointOptions, checkpoint_policy, named_checkpoint
from agentgym_trainers.settings import ModelSettings

Tiny = tuple[Any, ChatFormat]
RECIPE = {"name": "a", "seed": 0, "trainer": {"policy": {"steps": 5}, "checkpoint": {"keep": 2}}, "evaluation": {}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_state_and_generators_come_back(checkpoints: Checkpoints, tiny: Tiny) -> None:
    written = checkpoints.write(3, tiny[0], tiny[1].tokenizer, {"step": 3, "tensor": torch.ones(2)}, RECIPE)
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    state = written.load(RECIPE)
    restore_generators(state)
    assert state["step"] == 3
    assert torch.equal(state["tensor"], torch.ones(2))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn


def test_the_model_loads_with_transformers(checkpoints: Checkpoints, tiny: Tiny) -> None:
    folder = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE).model_path
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(one, tiny[0].state_dict()[name]) for name, one in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).encode("12+34") == tiny[1].encode_text("12+34")


def test_loaded_weights_lie_as_new_ones_do_because_products_round_by_the_address(
    checkpoints: Checkpoints, tiny: Tiny
) -> None:
    model, _ = load_model(checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE).model_path, "cpu")
    assert {one.data_ptr() % 64 for made in (tiny[0], model) for one in made.parameters()} == {0}


def test_only_the_newest_stay(checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path) -> None:
    for step in (1, 2, 10):
        checkpoints.write(step, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    assert [one.step for one in checkpoints.all()] == [2, 10]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-000010\n"
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 10


def test_what_a_kill_left_half_written_is_never_seen(checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path) -> None:
    torn = tmp_path / "checkpoints" / ".writing-7-123"
    torn.mkdir(parents=True)
    (torn / "state.pt").write_bytes(b"half")
    assert checkpoints.latest() is None
    checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000001"]


def test_another_recipe_is_refused_by_its_first_difference(checkpoints: Checkpoints, tiny: Tiny) -> None:
    written = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    with pytest.raises(CheckpointError, match=r"trainer\.policy\.steps was 5 and is 6; resume with the same recipe"):
        written.load({**RECIPE, "trainer": {"policy": {"steps": 6}, "checkpoint": {"keep": 2}}})


def test_settings_that_change_no_weight_may_differ(checkpoints: Checkpoints, tiny: Tiny) -> None:
    written = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {"step": 1}, RECIPE)
    other = {**RECIPE, "name": "b", "evaluation": {"every": 3}, "trainer": {"policy": {"steps": 5}, "checkpoint": {}}}
    assert written.load(other)["step"] == 1


def test_the_best_is_the_best_of_what_was_judged_alike(checkpoints: Checkpoints, tiny: Tiny) -> None:
    def judged(best: str, split: str = "test", every: int = 1) -> dict[str, Any]:
        evaluation = {"split": split, "every": every}
        return {**RECIPE, "evaluation": evaluation, "trainer": {"checkpoint": {"best": best}}}

    def write(step: int, recipe: dict[str, Any], score: float | None) -> list[int]:
        checkpoints.write(step, tiny[0], tiny[1].tokenizer, {}, recipe, score=score)
        best = checkpoints.best()
        return [0 if best is None else best.step, *(one.step for one in checkpoints.all())]

    turns, passed, other = judged("eval/turns"), judged("eval/pass@1"), judged("eval/pass@1", "validation")
    assert write(1, turns, 3.0) == [1, 1]
    assert checkpoints.best(passed) is None
    assert [write(step, passed, None) for step in (2, 3)][-1] == [1, 1, 2, 3]  # until there is a better measure
    assert write(4, passed, 0.2) == [4, 3, 4]
    assert write(5, judged("eval/pass@1", every=7), 0.1) == [4, 4, 5]
    assert write(6, other, 0.05) == [6, 5, 6]
    best = checkpoints.best(passed)
    assert best is not None
    assert best.step == 5


def test_the_newest_that_is_not_suspicious_stays(checkpoints: Checkpoints, tiny: Tiny) -> None:
    def write(step: int, suspicious: bool) -> list[int]:
        checkpoints.write(step, tiny[0], tiny[1].tokenizer, {}, RECIPE, suspicious=suspicious)
        good = checkpoints.good()
        return [0 if good is None else good.step, *(one.step for one in checkpoints.all())]

    assert write(1, True) == [0, 1]
    assert write(2, False) == [2, 1, 2]
    assert write(3, False) == [3, 2, 3]
    assert [write(step, True) for step in (4, 5, 6)][-1] == [3, 3, 5, 6]
    assert write(7, False) == [7, 6, 7]


def test_a_damaged_checkpoint_says_so(checkpoints: Checkpoints, tiny: Tiny) -> None:
    written = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    (written.path / "state.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        written.load(RECIPE)


def test_a_run_a_checkpoint_and_a_model_folder_all_name_a_policy(
    checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path
) -> None:
    written = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    for path in (tmp_path, written.path, written.model_path):
        assert checkpoint_policy(path).context_length == 256


def test_a_checkpoint_plays_as_its_recipe_says(checkpoints: Checkpoints, tmp_path: Path) -> None:
    chat = {"thinking": "keep", "calls": "mistral"}
    recipe = {**RECIPE, "trainer": {"name": "native", "chat": chat, "model": {"context_length": 96}}}
    model, _ = new_model(ModelSettings(hidden=16, layers=1, heads=2, intermediate=16), ["hm"], seed=0, device="cpu")
    tokenizer = tokenizer_of("qwen3")
    model.resize_token_embeddings(len(tokenizer))
    written = checkpoints.write(1, model, tokenizer, {}, recipe)
    for path in (tmp_path, written.path):
        policy = checkpoint_policy(path)
        assert policy.chat.call_format == "mistral"
        assert policy.chat.conversation() is None  # thoughts are kept: nothing is ever read anew
        assert policy.context_length == 96
    assert checkpoint_policy(tmp_path, options=CheckpointOptions(context_length=64)).context_length == 64
    bare = checkpoint_policy(written.model_path)
    assert bare.chat.conversation() is not None


def test_a_policy_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no model can be loaded from .*; wanted a Hugging Face folder"):
        checkpoint_policy(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        checkpoint_policy(tmp_path)


def test_a_policys_name_chooses_the_checkpoint_and_how_it_computes(
    checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path
) -> None:
    recipe = {**RECIPE, "limits": {"max_tokens_per_turn": 1000, "max_tokens": 3000}}
    for step, score in ((1, 0.9), (2, 0.1)):
        checkpoints.write(step, tiny[0], tiny[1].tokenizer, {}, recipe, score=score)
    places = {
        which: named_checkpoint(f"{tmp_path},which={which}").chat.template.name for which in ("best", 1, "000002")
    }
    assert places["best"] == places[1] != places["000002"]
    plain = named_checkpoint(str(tmp_path))
    assert plain.chat.template.name == places["000002"]
    assert plain.limits is not None
    assert (plain.limits.max_tokens_per_turn, plain.limits.max_tokens) == (1000, 3000)
    assert named_checkpoint(f"{tmp_path},which=1,context_length=64").context_length == 64


def test_a_checkpoint_that_plays_in_bfloat16_tells_positions_in_float32(checkpoints: Checkpoints, tiny: Tiny) -> None:
    written = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    engine: Any = checkpoint_policy(written.path, options=CheckpointOptions(dtype="bfloat16")).engine
    model = engine._model
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in model.buffers()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("which=7", r"no checkpoint '7'; it has those of the steps 1"),
        ("device=cuda:99", r"wanted cuda:99, found \d+ GPUs that torch can use; set device=cpu"),
        ("device=tpu", r"the checkpoint's option 'device': .*the options are: which, device, dtype"),
        ("speed=3", r"the checkpoint's option 'speed': Extra inputs"),
        ("which=best,fast", r"wanted an option like which=best after the checkpoint, found 'fast'"),
    ],
)
def test_a_wrong_option_of_a_checkpoint_is_one_sentence(
    checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path, options: str, sentence: str
) -> None:
    checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    with pytest.raises(AgentgymError, match=sentence):
        named_checkpoint(f"{tmp_path},{options}")


def test_only_a_run_has_checkpoints_to_choose_among(checkpoints: Checkpoints, tiny: Tiny) -> None:
    written = checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    with pytest.raises(RecipeError, match="which=best chooses among a run's checkpoints"):
        named_checkpoint(f"{written.path},which=best")


def test_a_folder_whose_name_looks_like_options_is_a_folder(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "lr=1e-5,steps=3"
    Checkpoints(folder / "checkpoints", keep=2).write(1, tiny[0], tiny[1].tokenizer, {}, RECIPE)
    assert named_checkpoint(str(folder)).context_length == 256


def test_a_checkpoint_of_another_version_is_one_sentence(checkpoints: Checkpoints, tiny: Tiny, tmp_path: Path) -> None:
    checkpoints.write(1, tiny[0], tiny[1].tokenizer, {}, {**RECIPE, "limits": {"breaths": 3}})
    with pytest.raises(RecipeError, match=r"000001 cannot be read: breaths: Extra inputs .* name its model folder"):
        named_checkpoint(str(tmp_path))
