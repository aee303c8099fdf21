"""`agentgym train` and recipes on the command line, with a trainer that only counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

import pytest

from agentgym import registry, scripted
from agentgym.errors import RecipeError
from agentgym.policy import Episode, ScriptedPolicy
from agentgym.recipe import Prepared, Recipe
from agentgym.rollout import Limits
from agentgym.run import RunDirectory
from agentgym.testing import ToyEnv
from agentgym.types import Record

Shell = Callable[..., CompletedProcess[str]]


class CountingSettings(Record):
    """How far to count."""

    steps: int = 4
    stop_after: int = 99


class CountingTrainer:
    """Logs a step per step and learns nothing."""

    Settings: ClassVar[type[CountingSettings]] = CountingSettings

    def train(self, prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Callable[..., None]) -> None:
        settings = prepared.recipe.trainer_settings()
        begin = len(run.metrics()) if resume else 0
        tracker = run.tracker()
        for step in range(begin, min(settings.steps, settings.stop_after)):
            metrics = {"rollout/reward": step / 10, "eval/pass@1": step / 4}
            tracker.log(step, metrics)
            progress("policy", step + 1, settings.steps, metrics)
        progress("eval", settings.steps, settings.steps, {"eval/pass@1": 0.75})
        tracker.close()


class PlanningTrainer(CountingTrainer):
    """Would count somewhere else."""

    def plan(self, prepared: Prepared, run: RunDirectory) -> list[str]:
        (run.path / "there.txt").write_text(prepared.recipe.name)
        return [f"count elsewhere --steps {prepared.recipe.trainer_settings().steps}"]


registry.add("trainers", "counting", CountingTrainer)
registry.add("trainers", "planning", PlanningTrainer)
registry.register("test/Trained-v0", ToyEnv)


@pytest.fixture
def recipe(shell: Shell) -> Path:
    path = Path("recipe.yaml")
    path.write_text(
        "name: counted\nenvironment: {id: test/Trained-v0}\ntasks: {test: 4}\n"
        "evaluation: {attempts: 2}\ntrainer: {name: counting}\n"
    )
    return path


def test_training_reports_its_steps_its_gain_and_where_the_results_are(shell: Shell, recipe: Path) -> None:
    found = shell("train", recipe, "--run", "runs/first", "seed=3", "trainer.steps=3")
    assert found.returncode == 0, found.stderr
    assert "training into runs/first" in found.stdout
    assert "policy 3/3: reward 0.200, pass@1 0.500" in found.stdout
    assert "eval at step 3 of 3: pass@1 0.750" in found.stdout
    assert "held-out pass@1: 0.0% at step 0, 50.0% at step 2" in found.stdout
    assert re.search(r"rollout/reward\s+0\s+0\.2", found.stdout)
    run = RunDirectory.open("runs/first")
    assert (run.manifest.seed, run.manifest.recipe["trainer"]) == (3, {"name": "counting", "steps": 3})


def test_a_run_is_resumed_from_its_own_recipe_and_goes_on_where_it_was(shell: Shell, recipe: Path) -> None:
    shell("train", recipe, "--run", "runs/first", "trainer.stop_after=2")
    assert shell("train", "--resume", "runs/first").returncode == 0
    assert len(RunDirectory.open("runs/first").metrics()) == 2
    assert shell("train", recipe, "--resume", "runs/first").returncode == 0
    assert [line["step"] for line in RunDirectory.open("runs/first").metrics()] == [0, 1, 2, 3]


def test_a_resumed_run_takes_overrides_without_its_recipe_being_named_again(shell: Shell, recipe: Path) -> None:
    shell("train", recipe, "--run", "runs/first", "trainer.steps=2")
    found = shell("train", "--resume", "runs/first", "trainer.steps=4", "name=longer")
    assert found.returncode == 0, found.stderr
    assert [line["step"] for line in RunDirectory.open("runs/first").metrics()] == [0, 1, 2, 3]
    assert "'no://tracker'" in shell("train", "--resume", "runs/first", "trackers=['no://tracker']").stderr
    misspelt = shell("train", "--resume", "runs/first", "trainer.stepps=4").stderr
    assert "manifest.json: stepps: Extra inputs are not permitted, found '4'" in misspelt


def test_a_path_with_an_equals_sign_is_a_recipe_all_the_same(shell: Shell, recipe: Path) -> None:
    Path("lr=1").mkdir()
    moved = recipe.rename("lr=1/recipe.yaml")
    assert shell("train", moved, "--run", "runs/first", "trainer.stop_after=2").returncode == 0
    assert shell("train", moved, "--resume", "runs/first").returncode == 0
    assert [line["step"] for line in RunDirectory.open("runs/first").metrics()] == [0, 1, 2, 3]


def test_a_used_folder_is_refused_with_the_way_to_go_on(shell: Shell, recipe: Path) -> None:
    shell("train", recipe, "--run", "runs/first")
    found = shell("train", recipe, "--run", "runs/first")
    assert found.returncode == 2
    assert "resume it: agentgym train --resume runs/first" in found.stderr
    assert "give one of them" in shell("train", recipe, "--run", "a", "--resume", "runs/first").stderr


def test_another_backend_trains_the_same_recipe_with_the_sections_for_it(shell: Shell, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "backends: {planning: {trainer: {steps: 2}, seed: 8}}\n")
    assert shell("train", recipe, "--run", "plain").returncode == 0
    found = shell("train", recipe, "--backend", "planning", "--run", "other", "seed=9")
    assert "policy 2/2" in found.stdout
    plain, other = (RunDirectory.open(name).manifest for name in ("plain", "other"))
    assert (plain.recipe["trainer"], plain.seed) == ({"name": "counting"}, 0)
    assert (other.recipe["trainer"], other.seed) == ({"name": "planning", "steps": 2}, 9)
    unknown = shell("train", recipe, "--backend", "planing")
    assert "did you mean 'planning'?" in unknown.stderr
    assert "goes on with the run's own" in shell("train", "--resume", "plain", "--backend", "planning").stderr
    recipe.write_text(recipe.read_text().replace("{planning:", "{planing:"))
    assert "no trainer in the backends of recipe is registered as 'planing'" in shell("train", recipe).stderr


def test_a_dry_run_shows_what_a_backend_would_be_given(shell: Shell, recipe: Path) -> None:
    found = shell("train", recipe, "--backend", "planning", "--dry-run", "--run", "planned", "trainer.steps=3")
    assert found.returncode == 0, found.stderr
    assert "written to planned; nothing was started" in found.stdout
    assert "count elsewhere --steps 3" in found.stdout
    assert Path("planned/there.txt").read_text() == "counted"
    assert not RunDirectory.open("planned").metrics()
    refused = shell("train", recipe, "--dry-run")
    assert refused.returncode == 2
    assert "'counting' trains right here" in refused.stderr
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        pytest.param("trainer.stepz=3", "stepz: Extra inputs", id="trainer-option"),
        pytest.param("trainer.name=countin", "did you mean 'counting'?", id="trainer"),
        pytest.param("environment.id=test/Train-v0", "did you mean 'test/Trained-v0'?", id="environment"),
        pytest.param("limits.retries=-1", "limits.retries", id="limit"),
        pytest.param("seed", "wanted an override like", id="no-value"),
    ],
)
def test_a_misspelt_override_is_one_sentence(shell: Shell, recipe: Path, override: str, sentence: str) -> None:
    found = shell("train", recipe, override)
    assert found.returncode == 2
    assert sentence in found.stderr
    assert "Traceback" not in found.stderr
    assert not Path("runs").exists()


def test_a_recipe_is_evaluated_as_it_says_unless_told_otherwise(shell: Shell, recipe: Path) -> None:
    found = shell("eval", recipe, "--run", "as-it-says")
    assert found.returncode == 0, found.stderr
    assert "4 tasks (4 test), 2 attempts each" in found.stdout
    other = shell("eval", recipe, "--run", "otherwise", "--split", "validation", "-k", 1, "--limit", 2, "--seed", 5)
    assert "2 tasks (2 validation), 1 attempts each" in other.stdout
    assert RunDirectory.open("otherwise").manifest.seed == 5


def test_a_bundled_recipe_is_evaluated_by_its_name_with_a_profile(
    shell: Shell, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(recipe.read_text() + "profiles: {small: {evaluation: {attempts: 1}}}\n")
    monkeypatch.setattr("agentgym.recipe.bundled", lambda: {"counted": recipe})
    found = shell("eval", "counted", "--profile", "small")
    assert "4 tasks (4 test), 1 attempts each" in found.stdout, found.stderr
    refused = shell("eval", "test/Trained-v0", "--profile", "small")
    assert "--profile is one of a recipe's, and 'test/Trained-v0' is an environment" in refused.stderr


def test_a_recipe_is_evaluated_in_the_sandbox_that_the_command_names(shell: Shell, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "sandbox: {name: docker, options: {warm: 8}}\n")
    shell("eval", recipe, "--sandbox", "process", "--trusted", "--run", "kept")
    kept = RunDirectory.open("kept").manifest.recipe["sandbox"]
    assert kept == {"name": "process", "options": {"trusted": True}}
    assert "no sandbox" in shell("eval", recipe, "--sandbox", "prozess").stderr


BOUNDS: list[tuple[int, int]] = []


def bounded(path: str, *, sampling: Any = None) -> Any:
    """A policy that notes what bounds its episodes."""

    def speak(episode: Episode) -> list[str]:
        BOUNDS.append((episode.max_tokens_per_turn, episode.max_tokens))
        return [""]

    made: Any = ScriptedPolicy(speak)
    made.limits = Limits(max_tokens_per_turn=700, max_tokens=900) if path == "trained" else path
    return made


registry.add("policies", "bounded", bounded)


def test_an_evaluation_is_bounded_as_asked_or_as_its_policy_was_trained(shell: Shell, recipe: Path) -> None:
    for words, expected in (
        (["test/Trained-v0", "-p", "bounded:plain"], (4096, 4096)),
        (["test/Trained-v0", "-p", "bounded:plain", "--bound", "max_tokens=50"], (50, 50)),
        (["test/Trained-v0", "-p", "bounded:trained"], (700, 900)),
        (["test/Trained-v0", "-p", "bounded:trained", "--bound", "max_tokens_per_turn=30"], (30, 900)),
        ([recipe, "-p", "bounded:trained", "--bound", "max_tokens=50"], (256, 50)),
    ):
        assert shell("eval", *words).returncode == 0
        assert BOUNDS.pop() == expected
    for bound, sentence in (
        ("tokens=5", "--bound tokens: Extra inputs are not permitted, found '5'; the bounds are: max_tokens_per_turn"),
        ("max_tokens=0", "--bound max_tokens: Input should be greater than or equal to 1, found '0'"),
    ):
        assert sentence in shell("eval", "test/Trained-v0", "--bound", bound).stderr


def test_held_out_attempts_are_bounded_by_the_limits_alone_and_seeded_by_the_recipe(recipe: Path) -> None:
    assert Recipe.load(recipe).evaluation.sampling.max_tokens is None
    with pytest.raises(RecipeError, match=r"evaluation\.sampling: .*set seed, and leave this one out"):
        Recipe.load(recipe, ["evaluation.sampling.seed=3"])


def test_a_registered_policy_is_given_its_argument_and_the_recipes_sampling(shell: Shell, recipe: Path) -> None:
    given: list[Any] = []

    def policy(path: str, *, sampling: Any = None) -> Any:
        given.append((path, sampling))
        return scripted.noop()

    registry.add("policies", "recorded", policy)
    assert shell("eval", recipe, "-p", "recorded:some/model", "--temperature", 0.5).returncode == 0
    assert given[0][0] == "some/model"
    assert given[0][1].temperature == 0.5
