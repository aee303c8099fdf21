"""A trainer that is killed and resumed ends with the weights of one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.checkpoint import CheckpointError
from agentgym_trainers.native import NativeTrainer

SMALL = {
    "vocab_size": 300,
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "intermediate": 64,
    "context_length": 128,
}
SCRIPT = """
import sys
from pathlib import Path
from agentgym import registry
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.native import NativeTrainer
if "agentgym/Calculator-v0" not in registry.names("envs"):
    registry.register("agentgym/Calculator-v0", "agentgym_envs.calculator:CalculatorEnv")
run = RunDirectory.open(Path(sys.argv[1]))
def tell(phase, done, steps, metrics):
    print(phase, done, flush=True)
NativeTrainer().train(Recipe.parse(run.manifest.recipe).prepare(), run, resume=True, progress=tell)
"""


def small_recipe(lab: Any, **policy: Any) -> Recipe:
    trainer = {
        "model": SMALL,
        "sft": {"steps": 6, "batch_size": 8, "demonstrations": 40},
        "policy": {"steps": 5, "tasks_per_step": 3, "attempts": 4, "minibatches": 2, **policy},
        "checkpoint": {"every": 2, "sft_every": 4},
    }
    reward = {
        "name": "ungated",
        "options": {"ladder": {"no_submission": 0, "failed": 0.5, "passed": 1}, "step_weights": {"malformed": 0.3}},
    }
    recipe: Recipe = lab.recipe(trainer=trainer, reward=reward, tasks={"train": 60, "test": 4})
    return recipe


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def weights(lab: Any, run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(lab.newest_model(run) / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory.create(tmp_path_factory.mktemp("whole"), small_recipe(lab), name="run")
    NativeTrainer().train(small_recipe(lab).prepare(), run, resume=False)
    return run


@pytest.mark.parametrize(
    "moment", [("sft", 5), ("policy", 1), ("policy", 3)], ids=lambda moment: f"{moment[0]}-{moment[1]}"
)
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    lab: Any, tmp_path: Path, uninterrupted: RunDirectory, moment: tuple[str, int]
) -> None:
    run = RunDirectory.create(tmp_path, small_recipe(lab), name="run")
    first = start(run.path)
    assert first.stdout is not None
    for line in first.stdout:
        if line.split() == [moment[0], str(moment[1])]:
            break
    time.sleep(0.02)  # somewhere within the next step
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL

    second = start(run.path)
    second.communicate()
    assert second.returncode == 0
    whole, resumed = weights(lab, uninterrupted), weights(lab, run)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lab.column(run, "train/loss") == lab.column(uninterrupted, "train/loss")
    assert [line["step"] for line in run.metrics()] == [line["step"] for line in uninterrupted.metrics()]
    assert run.steps() == uninterrupted.steps()


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


def test_a_run_with_checkpoints_is_not_overwritten(lab: Any, uninterrupted: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="has checkpoints already; resume it"):
        NativeTrainer().train(small_recipe(lab).prepare(), uninterrupted, resume=False)
