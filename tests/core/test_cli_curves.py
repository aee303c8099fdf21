"""A run shows first what matters most, an alarm before all of it, and no rate from before where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

import pytest

from agentgym import registry
from agentgym.cli import curves
from agentgym.cli.showing import collect
from agentgym.recipe import Prepared
from agentgym.run import RunDirectory
from agentgym.testing import ToyEnv
from agentgym.types import Record

Shell = Callable[..., CompletedProcess[str]]
FIRST = [
    "eval/pass@1", "rollout/reward", "rollout/outcome", "rollout/step_reward", "rollout/pass_rate",
    "rollout/infrastructure", "train/loss", "train/entropy", "train/kl", "speed/sampled_tokens", "speed/trained_tokens",
]  # fmt: skip
LAST = [*(f"rollout/difficulty_{number:02}" for number in range(20)), "train/clip_fraction", "watch/step_trend"]
TOLD = "step rewards rose while outcomes fell, so the reward may be gamed: watch/divergence was 1 at "


class EvaluatingSettings(Record):
    """Steps of the warm start, and after how many of the policy's it evaluates for the first time."""

    warm: int = 0
    first: int = 0


class EvaluatingTrainer:
    """Logs as our trainers do and learns nothing; in its fourth step the reward is gamed."""

    Settings: ClassVar[type[EvaluatingSettings]] = EvaluatingSettings

    def train(self, prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Callable[..., None]) -> None:
        settings = prepared.recipe.trainer_settings()
        tracker = run.tracker()
        for step in range(settings.warm + 5):
            done = step - settings.warm
            if step and done <= 0:
                tracker.log(step, {"sft/loss": 1.0})
            if done > 0:
                metrics = {"rollout/reward": 0.25, "watch/divergence": float(done == 4)}
                tracker.log(step, metrics)
                progress("policy", done, 4, metrics)
            if done in (settings.first, 4):
                tracker.log(step, {"eval/pass@1": step / 10})
        tracker.close()


registry.add("trainers", "evaluating", EvaluatingTrainer)
registry.register("test/Curves-v0", ToyEnv)


@pytest.fixture
def recipe(shell: Shell) -> Path:
    path = Path("recipe.yaml")
    path.write_text(
        "name: curves\nenvironment: {id: test/Curves-v0}\ntasks: {test: 4}\ntrainer: {name: evaluating, warm: 2}\n"
    )
    return path


def logged(folder: Path, divergence: Sequence[float]) -> RunDirectory:
    """A run of a recipe that evaluates with four attempts, as many steps as are given."""
    run = RunDirectory.create(folder, {"name": "curves"}, name="run")
    tracker = run.tracker()
    for step, value in enumerate(divergence):
        passes = {
            f"eval/pass@{k}{end}": rate for k in range(1, 5) for end, rate in (("", 0.5), ("_low", 0.4), ("_high", 0.6))
        }
        tracker.log(step, passes | dict.fromkeys([*FIRST[1:], *LAST], step / 10) | {"watch/divergence": value})
    tracker.close()
    return run


def rows(told: str) -> list[str]:
    """The metrics in the table that `agentgym show` prints."""
    names = [line.split()[0] for line in told.splitlines() if line.strip()]
    return names[names.index("metric") + 1 : names.index("and")]


def test_the_curves_of_rewards_and_losses_are_shown_before_the_others(shell: Shell, tmp_path: Path) -> None:
    found = shell("show", logged(tmp_path, [0.0] * 3).path)
    shown = rows(found.stdout)
    assert shown[:12] == [*FIRST, "eval/pass@2"]
    assert len(shown) == 24
    assert not [name for name in shown if name.endswith(("_low", "_high"))]
    assert TOLD not in found.stdout


def test_an_alarm_is_shown_before_everything_and_in_a_sentence(shell: Shell, tmp_path: Path) -> None:
    found = shell("show", logged(tmp_path, [0.0, 1.0, 1.0, 0.0]).path)
    assert f"{TOLD}2 of 4 steps, first at step 1" in found.stdout
    assert rows(found.stdout)[:12] == ["watch/divergence", *FIRST]


@pytest.mark.parametrize("alarmed", [False, True])
def test_what_is_shown_first_is_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alarmed: bool) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn: list[Any] = []
    draw = curves.draw

    def watched(series: curves.Series, names: Sequence[str]) -> Any:
        drawn.append(draw(series, names))
        return drawn[-1]

    monkeypatch.setattr(curves, "draw", watched)
    run = logged(tmp_path, [0.0, float(alarmed)])
    assert curves.plot(collect(run.metrics()), run.path / "curves.png") is not None
    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == (["watch/divergence", *FIRST] if alarmed else [*FIRST, "eval/pass@2"])
    banded = [axes.get_title() for axes in figure.axes if len(axes.collections) == 1]
    assert banded == [name for name in titles if name.startswith("eval/")]


def test_an_evaluation_before_the_first_step_is_told_as_such(shell: Shell, recipe: Path) -> None:
    found = shell("train", recipe, "--run", "run")
    assert "held-out pass@1: 20.0% before, 60.0% after" in found.stdout, found.stderr


def test_a_first_evaluation_that_came_after_steps_is_told_by_its_step(shell: Shell, recipe: Path) -> None:
    found = shell("train", recipe, "--run", "run", "trainer.first=1")
    assert "held-out pass@1: 30.0% at step 3, 60.0% at step 6" in found.stdout, found.stderr


def test_an_alarm_is_told_while_a_run_goes_on_and_at_its_end(shell: Shell, recipe: Path) -> None:
    found = shell("train", recipe, "--run", "run")
    assert "policy 3/4: reward 0.250\n" in found.stdout, found.stderr
    assert "policy 4/4: divergence 1.000, reward 0.250\n" in found.stdout
    assert f"{TOLD}1 of 4 steps, first at step 6" in found.stdout
