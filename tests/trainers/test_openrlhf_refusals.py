"""What OpenRLHF cannot do is refused before anything starts, with the reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from chat_templates import QWEN3, tokenizer_with
from openrlhf_recipes import VALUED, recipe, words

from agentgym.errors import RecipeError
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.bridges.openrlhf.launch import OpenRLHFTrainer
from agentgym_trainers.bridges.openrlhf.refusals import refuse, refuse_parts


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"openrlhf": {"engines": 3}}, "must fill them: .* found 3 x 1 and 1 x 8"),
        (
            {"openrlhf": {"colocate": False, "engines": 5}},
            "4 are left for engines of 1, found",
        ),
        ({"openrlhf": {"colocate": True}, "schedule": {"max_staleness": 1}}, "cannot do both at once"),
        ({"openrlhf": {"learner_gpus_per_node": 3, "engines": 3}}, "128 cannot be divided by 3"),
        ({"policy": {"minibatches": 3}}, "128 cannot be divided by 3, the trainer.policy.minibatches"),
        ({"openrlhf": {"ring": 2}}, "ring needs packed rows"),
        ({"openrlhf": {"attention": "eager"}, "compute": {"packing": "rows"}}, "'eager' attention cannot pack"),
        ({"openrlhf": {"partial": True}}, "partial needs sampling that overlaps"),
        ({"policy": {"advantage": "gigpo"}}, "advantage is 'gigpo': OpenRLHF takes one number per attempt"),
        ({"policy": {"advantage_options": {"per_turn": "to_go"}}}, "one number per attempt"),
        ({"policy": {"advantage_options": {"std": "batch"}}}, "whitens over tokens"),
        ({"policy": {"advantage": "reinforce"}}, "subtracts the batch's mean"),
        ({"policy": {"loss": "cispo"}}, "loss is 'cispo': it has none like it"),
        ({"policy": {"loss_options": {"clip_loww": 1}}}, "loss_options has clip_loww"),
        ({"policy": {"loss": "truncated", "epochs": 2}}, "set epochs and minibatches to 1"),
        ({**VALUED, "policy": {"advantage": "gae"}}, "lam is 0.95: it discounts over what the environment printed"),
        ({**VALUED, "policy": {"advantage": "gae", "advantage_options": {"level": "turn"}}}, "no credit of turns"),
        ({"lora": {"rank": 4}}, "does not hand them to vLLM"),
        ({"policy": {"steps": 0}}, "steps is 0, which leaves nothing to it"),
        ({"policy": {"steps": 2, "optim": {"warmup_steps": 5}}}, "warmup_steps is 5, .* the training's 2 updates"),
        (
            {"schedule": {"max_staleness": 1}, "checkpoint": {"best": "eval/pass@1"}},
            "chosen among the steps that have a checkpoint, every 10, and an evaluation, every 0",
        ),
        ({"checkpoint": {"best": "eval/pass@2"}}, "best is 'eval/pass@2': evaluations report eval/pass@1"),
        ({"watch": {"stop": [{"metric": "train/drift", "above": 1.0}]}}, "it does not report train/drift"),
    ],
)
def test_what_openrlhf_cannot_do_is_refused_with_the_reason(trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        words(recipe(trainer))


def test_the_best_checkpoint_is_told_by_what_the_warm_starts_evaluation_reports_too() -> None:
    evaluation = {"attempts": 3}
    made = recipe({"checkpoint": {"best": "eval/pass@3"}}, evaluation=evaluation)
    with pytest.raises(RecipeError, match=r"best is 'eval/pass@3': evaluations report eval/pass@1$"):
        words(made)
    there = {"model": {"path": "/models/start"}, "checkpoint": {"best": "eval/pass@3"}}
    assert "--ckpt.best_metric_key" in words(recipe(there, evaluation=evaluation))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("code-grpo", None),
        ("search-grpo", None),
        ("swe-agent-rlvr", None),
        ("demo", None),
        ("code-ppo", "no credit of turns"),
        ("tools-ppo", "no credit of turns"),
    ],
)
def test_a_bundled_recipe_is_trained_by_groups_or_refused_for_its_credit_of_turns(
    name: str, reason: str | None
) -> None:
    small = ["environment.options.count=30", "tasks.train=4", "tasks.test=1"]
    one = Recipe.load(name, small, backend="openrlhf")
    if reason is None:
        assert "--rollout.n_samples_per_prompt" in words(one)
        refuse_parts(one.prepare(), one.trainer_settings())
    else:
        with pytest.raises(RecipeError, match=reason):
            words(one)


def test_step_rewards_under_gae_and_weighed_resets_are_refused() -> None:
    gated = {
        "ladder": {"no_submission": 0, "failed": 0, "passed": 1},
        "threshold": 0,
        "step_weights": {"valid_calls": 0.1},
    }
    one = recipe(VALUED, reward={"name": "g_ra", "options": gated})
    with pytest.raises(RecipeError, match="valid_calls earned in a turn would be paid at the attempt's end"):
        refuse_parts(one.prepare(), one.trainer_settings())
    reset = recipe(guidance={"name": "guide", "options": {"ratio": "reset"}})
    with pytest.raises(RecipeError, match="say correction: none"):
        refuse_parts(reset.prepare(), reset.trainer_settings())
    told = recipe({"openrlhf": {"correction": "none"}}, guidance=reset.guidance.model_dump())
    refuse_parts(told.prepare(), told.trainer_settings())


@pytest.mark.parametrize(
    ("correction", "options", "advantage"), [("backward", {}, "grpo"), ("forward", {"rescale": False}, "rloo")]
)
def test_corrections_that_the_advantage_would_undo_are_refused(
    correction: str, options: dict[str, Any], advantage: str
) -> None:
    rates = {"by": "grader", "rates": {"grade": {"rho0": 0.25, "rho1": 0.25}}, "learn_after": None}
    reward = {"name": correction, "options": {**rates, **options}}
    one = recipe({"policy": {"advantage": advantage}}, reward=reward)
    with pytest.raises(RecipeError, match=f"the advantage '{advantage}' cancels"):
        refuse_parts(one.prepare(), one.trainer_settings())


def test_environments_that_only_this_process_knows_are_refused(tmp_path: Path) -> None:
    from agentgym import registry
    from agentgym.testing import ToyEnv

    registry.register("tests/OnlyHere-v0", ToyEnv)
    one = recipe({"model": {"path": "/models/start"}}, environment={"id": "tests/OnlyHere-v0"})
    run = RunDirectory.create(tmp_path, one, name="run")
    with pytest.raises(RecipeError, match=r"'tests/OnlyHere-v0' is known to this process alone"):
        OpenRLHFTrainer().plan(one.prepare(), run)


def test_files_that_only_this_folder_knows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").touch()
    for path, fine in (("rows/a.jsonl", False), (str(tmp_path / "rows" / "a.jsonl"), True), ("rows", True)):
        environment = {"id": "agentgym/Calculator-v0", "options": {"files": [{"path": path}]}}
        one = Recipe.parse({**recipe().model_dump(mode="json"), "environment": environment})
        if fine:
            refuse(one, one.trainer_settings())
            continue
        with pytest.raises(RecipeError, match=rf"environment.options.files.path is .* say '{tmp_path}/rows/a.jsonl'"):
            refuse(one, one.trainer_settings())


def test_where_openrlhf_is_not_installed_training_says_so(tmp_path: Path) -> None:
    if find_spec("openrlhf") is not None:
        pytest.skip("OpenRLHF is installed here")
    one = recipe({"model": {"path": "/models/start"}})
    run = RunDirectory.create(tmp_path, one, name="run")
    with pytest.raises(RecipeError, match=r"speaks to openrlhf 0\.11\.2, found none; pip install openrlhf==0\.11\.2"):
        OpenRLHFTrainer().train(one.prepare(), run, resume=False)
    assert sys.modules.get("openrlhf") is None


REWRITES = r"^the chat template of '{}' rewrites earlier turns, so that .*; say trainer\.chat\.thinking: keep$"


def thinker(folder: Path) -> Path:
    """Write what a launcher sees of a model whose template drops earlier thoughts."""
    tokenizer_with(QWEN3, "<|im_end|>").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return folder


@pytest.mark.parametrize("sft", [0, 5], ids=["at-once", "after-a-warm-start"])
def test_a_template_that_rewrites_thoughts_is_refused_before_anything_is_written_or_started(
    sft: int, tmp_path: Path
) -> None:
    model = thinker(tmp_path / "model")
    one = recipe({"model": {"path": str(model)}, "sft": {"steps": sft}})
    run = RunDirectory.create(tmp_path, one, name="run")
    sentence = REWRITES.format(re.escape(str(model)))
    with pytest.raises(RecipeError, match=sentence):
        OpenRLHFTrainer().plan(one.prepare(), run)
    with pytest.raises(RecipeError, match=sentence):
        OpenRLHFTrainer().train(one.prepare(), run, resume=False)
    assert not (run.path / "openrlhf").exists()
    kept = recipe({**one.trainer, "chat": {"thinking": "keep"}})
    assert "chat template" not in OpenRLHFTrainer().plan(kept.prepare(), run)[0]


def test_a_dry_run_on_the_command_line_refuses_a_template_that_rewrites_thoughts(
    tmp_path: Path, shell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    model = thinker(tmp_path / "model")
    words = ("code-grpo", "--backend", "openrlhf", "--dry-run", f"trainer.model.path={model}")
    few = ("environment.options.count=30", "tasks.train=4", "tasks.test=1", "sandbox={name: process}")
    told = shell("train", *words, *few, "--run", "planned")
    assert told.returncode == 2, told
    assert "rewrites earlier turns" in " ".join(told.stderr.split())


def test_a_dry_run_says_that_a_template_is_not_on_this_machine(tmp_path: Path) -> None:
    one = recipe({"model": {"path": "nobody/has-this-model"}})
    said = OpenRLHFTrainer().plan(one.prepare(), RunDirectory.create(tmp_path, one, name="run"))
    assert "not checked, as it will be at the start: the chat template; no model can be loaded from 'nobody/" in said[0]
