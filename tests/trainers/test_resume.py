"""A trainer that is killed and resumed ends with the weights of one that never was."""

from __future__ import annotations

import gc
import random
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer.testing
from safetensors.torch import load_file
from torch import Tensor

from agentgym import registry
from agentgym.cli.app import app
from agentgym.errors import RecipeError, TaskError, UnknownNameError
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.advantages import Credit
from agentgym_trainers.checkpoint import CheckpointError, Checkpoints, model_folder
from agentgym_trainers.gae import gae
from agentgym_trainers.models import export, load_model, new_model
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.optimizer import CollapseError
from agentgym_trainers.settings import ModelSettings

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "intermediate": 64,
    "context_length": 128,
}
KILLING = Path(__file__).parents[1] / "support" / "killing.py"


def small_recipe(lab: Any, **policy: Any) -> Recipe:
    trainer = {
        "model": SMALL,
        "sft": {"steps": 8, "batch_size": 8, "demonstrations": 40},
        "policy": {"steps": 12, "tasks_per_step": 3, "attempts": 4, "minibatches": 2, **policy},
        "checkpoint": {"every": 2, "sft_every": 3},
    }
    reward = {
        "name": "ungated",
        "options": {"ladder": {"no_submission": 0, "failed": 0.5, "passed": 1}, "step_weights": {"malformed": 0.3}},
    }
    recipe: Recipe = lab.recipe(trainer=trainer, reward=reward, tasks={"train": 60, "test": 4})
    return recipe


def weights(lab: Any, run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(lab.newest_model(run) / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory.create(tmp_path_factory.mktemp("whole"), small_recipe(lab), name="run")
    NativeTrainer().train(small_recipe(lab).prepare(), run, resume=False)
    return run


def versions(run: RunDirectory) -> list[list[int]]:
    """Which weights sampled each turn that was trained, by the engine's own count, step by step."""
    return [[turn.weight_version for one in run.read_trajectories(step) for turn in one.turns] for step in run.steps()]


def random_moments(seed: int) -> list[str]:
    """Draw when to kill in a run of twenty steps: after how many, and how many seconds later."""
    draw = random.Random(seed)
    drawn = [f"{draw.randint(2 * tenth, 2 * tenth + 2)}:{draw.uniform(0, 0.15):.3f}" for tenth in range(8)]
    # Set-up takes longer than no time, and what is short is not left to chance.
    return ["0:0", *drawn[:4], "checkpoint", *drawn[4:], "evaluation"]


def test_a_run_that_is_killed_ten_times_ends_with_the_same_weights_bit_for_bit(
    lab: Any, tmp_path: Path, uninterrupted: RunDirectory
) -> None:
    run = RunDirectory.create(tmp_path, small_recipe(lab), name="run")
    command = [sys.executable, str(KILLING), str(run.path), *random_moments(seed=87)]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    ends = told.stdout.split("\n")[:-1]
    killed = [one.removeprefix("SIGKILL in ") for one in ends if one != "ended 0"]
    assert set(killed) >= {"set-up", "warm start", "policy", "checkpoint", "evaluation"}, (ends, told.stderr)
    assert len(killed) >= 10, ends
    assert ends[-1] == "ended 0"
    whole, resumed = weights(lab, uninterrupted), weights(lab, run)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lab.column(run, "train/loss") == lab.column(uninterrupted, "train/loss")
    assert [line["step"] for line in run.metrics()] == [line["step"] for line in uninterrupted.metrics()]
    assert versions(run) == versions(uninterrupted)
    assert {*map(min, versions(run))} == {*map(max, versions(run))} == set(range(12))
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize(("phase", "done", "step"), [("sft", 4, 4), ("policy", 5, 13)])
def test_an_interrupt_is_heard_within_a_step_and_the_run_goes_on_from_there(
    lab: Any, tmp_path: Path, uninterrupted: RunDirectory, phase: str, done: int, step: int
) -> None:
    run = RunDirectory.create(tmp_path, small_recipe(lab), name="run")

    def interrupt(at: str, now: int, _: int, __: Any) -> None:
        if (at, now) == (phase, done):
            signal.raise_signal(signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # as the command line has it
    try:
        with pytest.raises(KeyboardInterrupt):
            NativeTrainer().train(small_recipe(lab).prepare(), run, resume=False, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert run.metrics()[-1]["step"] == step
    NativeTrainer().train(small_recipe(lab).prepare(), run, resume=True)
    assert all(torch.equal(one, weights(lab, run)[name]) for name, one in weights(lab, uninterrupted).items())


def test_training_changes_the_weights(lab: Any, uninterrupted: RunDirectory) -> None:
    assert all(value > 0 for value in lab.column(uninterrupted, "train/grad_norm"))


def test_a_finished_run_is_left_alone(lab: Any, uninterrupted: RunDirectory) -> None:
    before, lines = weights(lab, uninterrupted), uninterrupted.metrics()
    NativeTrainer().train(small_recipe(lab).prepare(), uninterrupted, resume=True)
    assert all(torch.equal(before[name], after) for name, after in weights(lab, uninterrupted).items())
    assert uninterrupted.metrics() == lines


def test_another_recipe_does_not_continue_a_run(lab: Any, uninterrupted: RunDirectory) -> None:
    other = small_recipe(lab, attempts=3)
    with pytest.raises(CheckpointError, match=r"trainer\.policy\.attempts was 4 and is 3; resume with the same recipe"):
        NativeTrainer().train(other.prepare(), uninterrupted, resume=True)


def test_a_run_without_a_checkpoint_goes_on_as_it_was_begun_or_not_at_all(lab: Any, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, small_recipe(lab), name="run")
    with pytest.raises(CheckpointError, match=r"begun with another recipe: trainer\.policy\.attempts was 4 and is 3"):
        NativeTrainer().train(small_recipe(lab, attempts=3).prepare(), run, resume=True)
    assert not list(run.checkpoints.glob("step-*"))


def test_a_refused_continuation_forgets_nothing(lab: Any, tmp_path: Path) -> None:
    def chosen(attempts: int) -> Recipe:
        policy = {"steps": 3, "tasks_per_step": 2, "attempts": attempts}
        stop = {"stop": [{"metric": "rollout/turns", "above": 0.0, "steps": 2}]}
        found: Recipe = lab.recipe(
            trainer={"model": SMALL, "policy": policy, "watch": stop}, tasks={"train": 20, "test": 2}
        )
        return found

    run = RunDirectory.create(tmp_path, chosen(2), name="run")
    with pytest.raises(CollapseError, match="stopped after step 2"):
        NativeTrainer().train(chosen(2).prepare(), run, resume=False)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="was written under another recipe"):
        NativeTrainer().train(chosen(3).prepare(), run, resume=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert (run.path / "stopped.json") in before


def test_a_checkpoint_of_another_model_does_not_continue_a_run(lab: Any, uninterrupted: RunDirectory) -> None:
    trainer = {**small_recipe(lab).trainer, "model": {**SMALL, "hidden": 48}}
    other = small_recipe(lab).model_copy(update={"trainer": trainer})
    with pytest.raises(CheckpointError, match=r"trainer\.model\.hidden was 32 and is 48; resume with the same recipe"):
        NativeTrainer().train(other.prepare(), uninterrupted, resume=True)


def test_other_tasks_are_told_of_and_no_checkpoint_is_blamed_for_them(lab: Any, uninterrupted: RunDirectory) -> None:
    prepared = small_recipe(lab).prepare()
    fewer = replace(prepared, train=prepared.train[1:])
    count = len(prepared.train)
    with pytest.raises(TaskError, match=rf"was sampling from {count} tasks, the recipe now has {count - 1}; resume"):
        NativeTrainer().train(fewer, uninterrupted, resume=True)


def test_a_checkpoint_that_holds_another_model_is_one_sentence(lab: Any, tmp_path: Path) -> None:
    trainer = {"model": SMALL, "policy": {"steps": 1, "tasks_per_step": 2, "attempts": 2}}
    chosen = lab.recipe(trainer=trainer, tasks={"train": 20, "test": 2})
    run = RunDirectory.create(tmp_path, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    good, last = Checkpoints(run.checkpoints, keep=2).all()
    other, tokenizer = new_model(ModelSettings(**{**SMALL, "hidden": 48}), ["12+34"], seed=0, device="cpu")
    shutil.rmtree(last.path)
    shutil.rmtree(good.model_path)
    export(other, tokenizer, good.model_path)
    with pytest.raises(CheckpointError, match=r"does not fit this recipe's model: .*size mismatch") as told:
        NativeTrainer().train(chosen.prepare(), run, resume=True)
    assert "\n" not in str(told.value)


def test_a_run_exports_a_model_that_transformers_loads_and_another_run_begins_with(
    lab: Any, tmp_path: Path, uninterrupted: RunDirectory
) -> None:
    command = typer.testing.CliRunner()
    for name, *options in (("whole",), ("half", "--dtype", "bfloat16", "--checkpoint", "18")):
        made = command.invoke(app, ["export", str(uninterrupted.path), str(tmp_path / name), *options])
        assert made.exit_code == 0, made.output
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto").state_dict()
    trained = weights(lab, uninterrupted)
    assert all(torch.equal(whole[name], tensor) for name, tensor in trained.items())
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert (half.dtype, whole["lm_head.weight"].dtype) == (torch.bfloat16, torch.float32)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "half").chat_template
    model, _ = load_model(model_folder(uninterrupted.path), "cpu")
    assert torch.equal(model.state_dict()["lm_head.weight"], whole["lm_head.weight"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--checkpoint", "7"], "no checkpoint '7'; it has those of the steps 18, 20"),
        (["--checkpoint", "best"], "no checkpoint 'best'; it has those of the steps 18, 20"),
        (["--dtype", "int3"], "no weights can be written as 'int3'; choose one of float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    tmp_path: Path, uninterrupted: RunDirectory, options: list[str], reason: str
) -> None:
    found = typer.testing.CliRunner().invoke(app, ["export", str(uninterrupted.path), str(tmp_path / "new"), *options])
    assert found.exit_code != 0
    assert reason in str(found.exception)
    assert not list(tmp_path.iterdir())


def test_the_best_checkpoint_stays_beside_the_newest(lab: Any, tmp_path: Path) -> None:
    chosen = lab.recipe(
        trainer={
            "model": SMALL,
            "policy": {"steps": 5, "tasks_per_step": 2, "attempts": 2},
            "checkpoint": {"every": 100, "keep": 1, "best": "eval/turns"},
        },
        evaluation={"every": 1},
        tasks={"train": 20, "test": 6},
    )
    run = RunDirectory.create(tmp_path, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    scores = {line["step"]: line["eval/turns"] for line in run.metrics() if "eval/turns" in line}
    first_best = next(step for step, value in scores.items() if value == max(scores.values()))
    kept = Checkpoints(run.checkpoints, keep=1)
    best = kept.best()
    assert best is not None
    assert best.score == max(scores.values())
    assert {one.step for one in kept.all()} == {5, best.step}
    assert best.step in (first_best, 5)
    assert (run.checkpoints / "best").read_text() == f"{best.path.name}\n"


def test_a_continuation_that_judges_otherwise_keeps_its_own_best(lab: Any, tmp_path: Path) -> None:
    def judged(best: str) -> Recipe:
        trainer = {
            "model": SMALL,
            "policy": {"steps": 4, "tasks_per_step": 2, "attempts": 2},
            "checkpoint": {"every": 1, "keep": 9, "best": best},
        }
        made: Recipe = lab.recipe(trainer=trainer, evaluation={"every": 1}, tasks={"train": 20, "test": 3})
        return made

    run = RunDirectory.create(tmp_path, judged("eval/turns"), name="run")
    NativeTrainer().train(judged("eval/turns").prepare(), run, resume=False)
    kept = Checkpoints(run.checkpoints, keep=9)
    for one in kept.all()[3:]:
        shutil.rmtree(one.path)
    NativeTrainer().train(judged("eval/pass@1").prepare(), run, resume=True)
    best = kept.best()
    assert best is not None
    assert best.step in (3, 4)  # although no pass rate is as high as a number of turns
    assert best.score == max(line["eval/pass@1"] for line in run.metrics() if line["step"] > 2 and "eval/turns" in line)


def test_a_metric_that_no_evaluation_knows_is_refused_with_the_recipe(lab: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"no metric is registered as 'eval/reward'"):
        lab.recipe(trainer={"checkpoint": {"best": "eval/reward"}})


@pytest.mark.parametrize("best", ["eval/pass@3", "eval/pass@4", "eval/difficulty_99"])
def test_a_metric_that_no_evaluation_reports_is_refused_before_training(lab: Any, tmp_path: Path, best: str) -> None:
    trainer = {
        "model": SMALL,
        "sft": {"steps": 1, "batch_size": 2, "demonstrations": 4},
        "policy": {"steps": 1},
        "checkpoint": {"best": best},
    }
    chosen = lab.recipe(trainer=trainer, evaluation={"attempts": 3}, tasks={"train": 4, "test": 2})
    run = RunDirectory.create(tmp_path, chosen, name="run")
    reported = r"eval/pass@1, eval/pass@1_low, .*eval/pass@2, .*eval/turns, eval/difficulty_"
    with pytest.raises(RecipeError, match=rf"trainer.checkpoint.best is '{best}': evaluations report {reported}"):
        NativeTrainer().train(chosen.prepare(), run, resume=False)
    assert run.metrics() == []


def test_a_run_with_checkpoints_is_not_overwritten(lab: Any, uninterrupted: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="has checkpoints already; resume it"):
        NativeTrainer().train(small_recipe(lab).prepare(), uninterrupted, resume=False)


DRAWN: list[float] = []


def drawing(credit: Credit, value_BL: Tensor) -> Tensor:
    """An estimator that draws from the generator that everybody shares."""
    DRAWN.append(float(torch.rand(())))
    return gae(credit, value_BL)


def test_what_draws_from_shared_generators_draws_the_same_after_a_kill(lab: Any, tmp_path: Path) -> None:
    registry.add("advantages", "tests-drawing", drawing)
    chosen = lab.recipe(
        trainer={
            "model": SMALL,
            "policy": {"steps": 3, "tasks_per_step": 2, "attempts": 2, "advantage": "tests-drawing"},
            "critic": {},  # its layers draw too as they are made
            "checkpoint": {"every": 1, "keep": 9},
        },
        tasks={"train": 10, "test": 2},
    )
    run = RunDirectory.create(tmp_path, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    whole = DRAWN[-3:]
    for late in Checkpoints(run.checkpoints, keep=9).all()[2:]:
        shutil.rmtree(late.path)
    NativeTrainer().train(chosen.prepare(), run, resume=True)
    assert DRAWN[-2:] == whole[1:]


LOADED: list[weakref.ref[Tensor]] = []
HELD: list[bool] = []


def holding(credit: Credit, value_BL: Tensor) -> Tensor:
    """An estimator that looks whether what a checkpoint held is still in memory."""
    gc.collect()
    HELD.extend(one() is not None for one in LOADED)
    return gae(credit, value_BL)


def test_a_resumed_run_does_not_keep_the_state_that_it_was_loaded_from(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any, **named: Any) -> Any:
        state = read(*given, **named)
        LOADED.append(weakref.ref(state["learner"]["model"]["lm_head.weight"]))
        return state

    read = torch.load
    monkeypatch.setattr(torch, "load", load)
    registry.add("advantages", "tests-holding", holding)
    policy = {"steps": 3, "tasks_per_step": 2, "attempts": 2, "advantage": "tests-holding"}
    chosen = lab.recipe(
        trainer={"model": SMALL, "policy": policy, "critic": {"trunk": "policy"}, "checkpoint": {"every": 1}},
        tasks={"train": 10, "test": 2},
    )
    run = RunDirectory.create(tmp_path, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    shutil.rmtree(Checkpoints(run.checkpoints, keep=2).all()[-1].path)
    NativeTrainer().train(chosen.prepare(), run, resume=True)
    assert HELD == [False]
