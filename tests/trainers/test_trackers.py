"""A run's numbers reach every tracker that the recipe names, and none that is missing is found out about late."""

from __future__ import annotations

import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import MissingExtraError, RecipeError, UnknownNameError
from agentgym.recipe import Component, Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.trackers import Trackers

BASE = {"name": "x", "environment": {"id": "agentgym/Calculator-v0"}}
METRICS = {"rollout/reward": 0.5, "eval/pass@1": 0.25}


def has(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


class Notebook:
    """A tracker from elsewhere."""

    opened: list[Notebook] = []

    def __init__(self, folder: Path, first_step: int, colour: str = "black") -> None:
        self.made_with = (Path(folder), first_step, colour)
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        Notebook.opened.append(self)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True


registry.add("trackers", "notebook", Notebook)


def new_run(folder: Path) -> RunDirectory:
    return RunDirectory.create(folder, BASE, name="run")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@has("tensorboard")
def test_tensorboard_shows_what_the_file_of_the_run_says(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    trackers = Trackers.open(run, [Component(name="tensorboard")], 0)
    for step in (1, 2):
        trackers.log(step, {**METRICS, "train/loss": step / 2})
    assert scalars(run.path)["train/loss"] == [(1, 0.5), (2, 1.0)]  # before it is closed: it survives a kill
    trackers.close()
    assert scalars(run.path) == {
        "rollout/reward": [(1, 0.5), (2, 0.5)],
        "eval/pass@1": [(1, 0.25), (2, 0.25)],
        "train/loss": [(1, 0.5), (2, 1.0)],
    }
    assert [line["train/loss"] for line in run.metrics()] == [0.5, 1.0]


@has("tensorboard")
def test_tensorboard_forgets_what_a_resumed_run_says_again(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for first, values in ((0, [1.0, 2.0, 3.0]), (2, [20.0, 30.0])):
        trackers = Trackers.open(run, [Component(name="tensorboard")], first)
        for step, value in enumerate(values, start=first or 1):
            trackers.log(step, {"loss": value})
        trackers.close()
    assert scalars(run.path)["loss"] == [(1, 1.0), (2, 20.0), (3, 30.0)]


@has("wandb")
@pytest.mark.filterwarnings("default")
def test_wandb_keeps_its_files_in_the_run_and_sends_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    trackers = Trackers.open(run, [Component(name="wandb", options={"project": "toys"})], 0)
    trackers.log(1, {**METRICS, "bad": math.nan})
    trackers.close()
    (file,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    until = time.monotonic() + 20
    while b"rollout/reward" not in (records := file.read_bytes()) and time.monotonic() < until:
        time.sleep(0.05)  # W&B's own process writes
    assert b"rollout/reward" in records
    assert b"toys" in records
    assert b"bad" not in records


@has("mlflow")
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_one_run_in_the_runs_folder_through_a_resumption(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = new_run(tmp_path)
    for first in (1, 2):
        trackers = Trackers.open(run, [Component(name="mlflow")], first)
        trackers.log(first, {**METRICS, "bad": math.inf})
        trackers.close()
    client = MlflowClient(f"sqlite:///{run.path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("agentgym").experiment_id])
    assert found.data.metrics == {"rollout/reward": 0.5, "eval/pass_at_1": 0.25}
    assert [one.step for one in client.get_metric_history(found.info.run_id, "rollout/reward")] == [1, 2]


def test_a_tracker_from_elsewhere_is_built_with_the_folder_the_first_step_and_its_options(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    trackers = Trackers.open(run, [Component(name="notebook", options={"colour": "red"})], 7)
    trackers.log(7, METRICS)
    trackers.close()
    one = Notebook.opened[-1]
    assert one.made_with == (run.path, 7, "red")
    assert one.lines == [(7, METRICS)]
    assert one.closed
    assert [line["step"] for line in run.metrics()] == [7]


def test_trackers_are_closed_when_another_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        Trackers.open(new_run(tmp_path), [Component(name="notebook"), Component(name="nothing")], 0)
    assert Notebook.opened[-1].closed


@pytest.mark.parametrize(
    ("trackers", "error", "reason"),
    [
        (["tensorbord"], UnknownNameError, "no tracker is registered as 'tensorbord'; did you mean 'tensorboard'"),
        (
            [{"name": "notebook", "options": {"color": "x"}}],
            RecipeError,
            "'notebook' got an unexpected.*it takes: folder",
        ),
    ],
)
def test_a_tracker_that_cannot_be_is_refused_before_the_run(trackers: Any, error: type[Exception], reason: str) -> None:
    recipe = Recipe.parse({**BASE, "trackers": trackers})
    with pytest.raises(error, match=reason):
        recipe.prepare()


def test_the_file_of_the_run_is_not_to_be_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"trackers: .*always written; leave jsonl out"):
        Recipe.parse({**BASE, "trackers": ["jsonl"]})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target: Any = registry.lookup("trackers", name)
    monkeypatch.setattr(f"{target.__module__}.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf'{name} is not installed; add it with: .*\[{name}\]"'):
        Recipe.parse({**BASE, "trackers": [name]}).prepare()


def test_a_recipe_chooses_trackers_engine_and_chat_format_by_name(lab: Any) -> None:
    made: list[dict[str, Any]] = []

    class Watched(HFEngine):
        def __init__(self, model: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(model, **options)

    registry.add("engines", "watched", Watched)
    trainer = {
        "model": {"vocab_size": 300, "hidden": 32, "heads": 2, "kv_heads": 1, "layers": 1, "intermediate": 32},
        "chat": {"thinking": "keep", "calls": "fenced"},
        "engine": {"name": "watched", "options": {}},
        "policy": {"steps": 1, "tasks_per_step": 2, "attempts": 2},
        "compute": {"max_batch": 64},
    }
    run = lab.train(trainer=trainer, tasks={"train": 20, "test": 4}, trackers=["notebook"])
    assert {one["batching"] for one in made} == {"lockstep", "eager"}
    assert {one["max_batch"] for one in made} == {64}
    logged = [step for step, _ in Notebook.opened[-1].lines]
    assert logged == [line["step"] for line in run.metrics()]
    assert Notebook.opened[-1].closed


@pytest.mark.parametrize(
    ("trainer", "error", "reason"),
    [
        ({"engine": {"name": "hff"}}, UnknownNameError, "no engine is registered as 'hff'; did you mean 'hf'"),
        ({"engine": {"name": "scripted"}}, RecipeError, "'scripted' cannot be trained with: its tokens are written"),
        (
            {"engine": {"options": {"patience": 3}}},
            RecipeError,
            "'hf' has no option 'patience'; it takes: patience_s, weights",
        ),
        ({"chat": {"calls": "hermess"}}, UnknownNameError, "no tool-call format .* did you mean 'hermes'"),
        ({"chat": {"thinking": "drop"}}, RecipeError, "chat.thinking"),
    ],
)
def test_an_engine_or_chat_format_that_cannot_be_is_refused_when_the_recipe_is_read(
    trainer: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        Recipe.parse({**BASE, "trainer": trainer})
