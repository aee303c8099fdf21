"""A training run under injected noise logs it, learns its rates from appeals, resumes, and evaluates without it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr
from safetensors.torch import load_file

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.guidance import NoGuidance
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym.types import Group
from agentgym_trainers.native import NativeTrainer

MODEL = {"vocab_size": 300, "hidden": 48, "layers": 2, "heads": 2, "kv_heads": 1, "context_length": 128}
NOISE = {"by": "grader", "rates": {"grade": {"rho0": 0.3, "rho1": 0.2}}, "passed": "passed", "failed": "failed"}
UNKNOWN = {"by": "grader", "rates": {"grade": {"rho0": 0.0, "rho1": 0.0}}, "learn_after": 3}


def noisy_recipe(lab: Any, advantage: str = "rloo") -> Recipe:
    trainer = {
        "model": MODEL,
        "sft": {"steps": 60, "batch_size": 16, "demonstrations": 100, "optim": {"lr": 3e-3}},
        "policy": {"steps": 4, "tasks_per_step": 6, "attempts": 4, "advantage": advantage},
        "checkpoint": {"every": 2, "keep": 5},
    }
    found: Recipe = lab.recipe(
        trainer=trainer,
        reward={"name": "backward", "options": UNKNOWN},
        noise=NOISE,
        appeals={"grader": None, "accepted": 1.0, "rejected": 1.0},
        tasks={"train": 100, "test": 4},
    )
    return found


@pytest.fixture(scope="module")
def run(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    recipe = noisy_recipe(lab)
    made = RunDirectory.create(tmp_path_factory.mktemp("noisy"), recipe, name="run")
    NativeTrainer().train(recipe.prepare(), made, resume=False)
    return made


def test_noise_is_recorded_in_training_and_absent_from_evaluations(lab: Any, run: RunDirectory) -> None:
    steps = run.steps()
    trained = [one for step in steps for one in run.read_trajectories(step)]
    graded = [one.verdict for one in trained if one.verdict is not None and one.verdict.grader is not None]
    assert len(graded) > 20, "the warm start hands in too little to test anything"
    assert all(one.noise is not None and one.appeal == one.noise.clean_value for one in graded)
    assert 0.1 < sum(one.noise.flipped for one in graded if one.noise) / len(graded) < 0.5
    held_out = [one for step in run.steps(name="evaluation") for one in run.read_trajectories(step, name="evaluation")]
    assert held_out
    assert all(one.verdict is not None and one.verdict.noise is None for one in held_out)
    assert len(lab.column(run, "noise/flipped")) == len(steps)
    assert lab.column(run, "noise/rho0/grade")[-1] == pytest.approx(0.3, abs=0.15)


def test_a_resumed_run_remembers_the_appeals_and_ends_with_the_same_weights(
    lab: Any, run: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    again = RunDirectory.open(tmp_path / "run")
    newest = max(again.checkpoints.glob("step-*"))
    whole = load_file(newest / "model" / "model.safetensors")
    shutil.rmtree(newest)
    NativeTrainer().train(noisy_recipe(lab).prepare(), again, resume=True)
    resumed = load_file(newest / "model" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lab.column(again, "noise/rho0/grade") == lab.column(run, "noise/rho0/grade")


class CountingGuidance(NoGuidance):
    """Guidance that learns: it counts the groups it has seen."""

    _seen: int = PrivateAttr(0)

    def update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Count."""
        self._seen += len(groups)
        return {"guidance/seen": float(self._seen)}

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        self._seen = state["seen"]


def test_guidance_that_learns_is_updated_and_saved_too(lab: Any) -> None:
    if "tests-counting" not in registry.names("guidance"):
        registry.add("guidance", "tests-counting", CountingGuidance)
    trainer = {"model": MODEL, "policy": {"steps": 2, "tasks_per_step": 3, "attempts": 2}}
    found = lab.train(trainer=trainer, guidance={"name": "tests-counting"}, tasks={"train": 20, "test": 2})
    assert lab.column(found, "guidance/seen") == [3.0, 6.0]
    newest = max(found.checkpoints.glob("step-*"))
    assert torch.load(newest / "state.pt", weights_only=True)["learnables"] == {"guidance": {"seen": 6}}


def test_a_run_whose_advantage_undoes_the_correction_does_not_start(lab: Any, tmp_path: Path) -> None:
    recipe = noisy_recipe(lab, advantage="grpo")
    made = RunDirectory.create(tmp_path, recipe, name="run")
    with pytest.raises(RecipeError, match="'grpo' cancels the BackwardCorrection"):
        NativeTrainer().train(recipe.prepare(), made, resume=False)
    assert made.metrics() == []
