"""What a run says of itself is what the documentation lists, and bounds and alarms end it in time."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from agentgym.cli.app import app
from agentgym.cli.curves import ALARM, PREFERRED
from agentgym.difficulty import difficulties_of
from agentgym.errors import AgentgymError
from agentgym.evaluate import summarise
from agentgym.recipe import Recipe
from agentgym.rewards import Rewards
from agentgym.run import RunDirectory
from agentgym.task import Public, Task
from agentgym.types import EndReason, Group, Trajectory, Trust, Verdict
from agentgym_trainers.checkpoint import Checkpoints
from agentgym_trainers.metrics import METRICS, evaluated, is_metric, table
from agentgym_trainers.models import load_model
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.optimizer import CollapseError
from agentgym_trainers.reporting import rollout_metrics
from agentgym_trainers.settings import WatchSettings
from agentgym_trainers.watch import Watch

DOCS = Path(__file__).parents[2] / "docs" / "trainer.md"
MODEL = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
NOISE = {"by": "grader", "rates": {"grade": {"rho0": 0.3, "rho1": 0.2}}, "passed": "passed", "failed": "failed"}
LEARNT = {"by": "grader", "rates": {"grade": {"rho0": 0.0, "rho1": 0.0}}, "learn_after": 1}
STEP_REWARDS = {"ladder": {"no_submission": 0, "failed": 0.5, "passed": 1}, "step_weights": {"malformed": 0.3}}


def recipe(lab: Any, *, policy: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    trainer = {
        "model": {**MODEL, "context_length": 128},
        "policy": {"steps": 4, "tasks_per_step": 4, "attempts": 4, **(policy or {})},
        **sections.pop("trainer", {}),
    }
    found: Recipe = lab.recipe(trainer=trainer, **{"tasks": {"train": 60, "test": 3}, **sections})
    return found


def train(chosen: Recipe, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    return run


def test_the_documentation_lists_the_catalogue() -> None:
    _, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- metrics: begin -->\n")
    assert rest.partition("<!-- metrics: end -->")[0] == table()


def test_what_a_run_shows_first_is_logged_by_the_trainer() -> None:
    assert [name for name in (ALARM, *PREFERRED) if not is_metric(name)] == []


def test_an_evaluation_reports_the_metrics_that_it_is_said_to() -> None:
    tasks = [Task(id=str(one), split="test", public=Public(prompt="?"), difficulty=one % 2) for one in range(4)]
    right = Verdict(value=1.0, level="any", trust=Trust.RPC)
    groups = [Group(one.id, [Trajectory(one.id, "test", (), [], right)] * 3) for one in tasks]
    names = evaluated(3, difficulties_of(tasks).values())
    assert sorted(names) == sorted(summarise(tasks, groups, attempts=3).metrics())
    assert all(is_metric(name) for name in names)


def test_every_metric_that_is_logged_is_documented_and_every_documented_one_is_logged(lab: Any, tmp_path: Path) -> None:
    noisy = recipe(
        lab,
        policy={"advantage": "rloo", "loss_options": {"kl_weight": 0.01}},
        trainer={
            "sft": {"steps": 40, "batch_size": 16, "demonstrations": 60, "optim": {"lr": 3e-3}},
            "watch": {"window": 4},
            "checkpoint": {"every": 1},
            "compute": {"peak_tflops": 1.0},
        },
        reward={"name": "backward", "options": LEARNT},
        noise=NOISE,
        appeals={"grader": None, "accepted": 1.0, "rejected": 1.0},
    )
    valued = recipe(
        lab,
        policy={"advantage": "gae", "attempts": 2},
        trainer={"critic": {}, "schedule": {"max_staleness": 1}},
        reward={"name": "ungated", "options": STEP_REWARDS},
    )
    logged = set()
    for name, chosen in (("noisy", noisy), ("valued", valued)):
        lines = train(chosen, tmp_path / name).metrics()
        logged |= {key for line in lines for key in line} - {"step", "time"}
    assert sorted(name for name in logged if not is_metric(name)) == []
    expected = {one for one in METRICS if one != "memory/device_mb" or torch.cuda.is_available()}
    assert sorted(one for one in expected if not any(fnmatchcase(name, one) for name in logged)) == []


def test_rising_step_rewards_over_falling_outcomes_raise_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    def follow(outcomes: list[float], steps: list[float]) -> list[float]:
        watch = Watch(WatchSettings(window=6))
        found = [
            watch.trends({"rollout/outcome": outcome, "rollout/step_reward": step})
            for outcome, step in zip(outcomes, steps, strict=True)
        ]
        assert found[:5] == [{}] * 5
        return [one["watch/divergence"] for one in found[5:]]

    up, down = [0.1, 0.12, 0.1, 0.5, 0.52, 0.6], [0.7, 0.72, 0.69, 0.3, 0.2, 0.1]
    assert follow(down, up) == [1.0]
    assert "the reward is being gamed" in caplog.text
    caplog.clear()
    assert follow([*down, 0.05], [*up, 0.65]) == [1.0, 1.0]
    assert caplog.text.count("the reward is being gamed") == 1  # not of every step
    assert follow(up, up) == follow(down, down) == follow(up, down) == [0.0]
    assert follow([0.5] * 8, up + [0.6] * 2) == [0.0] * 3


def test_a_continuation_may_have_other_rules() -> None:
    low = {"metric": "train/entropy", "below": 0.5, "steps": 3}
    high = {"metric": "train/kl", "above": 2.0, "steps": 2}
    first = Watch(WatchSettings.model_validate({"stop": [low]}))
    assert first.reason_to_stop({"train/entropy": 0.1}) is None
    state = first.state_dict()
    other = Watch(WatchSettings.model_validate({"stop": [high, low]}))
    other.load_state_dict(state)
    assert other.reason_to_stop({"train/entropy": 0.1, "train/kl": 3.0}) is None
    assert other.reason_to_stop({"train/entropy": 0.1}) == "train/entropy was below 0.5 3 times in a row, at last 0.1"
    without = Watch(WatchSettings())
    without.load_state_dict(state)
    assert not without.suspicious


def test_a_step_without_a_verdict_is_no_step_of_reward_zero() -> None:
    rule = {"metric": "rollout/outcome", "below": 0.5, "steps": 2}
    watch = Watch(WatchSettings.model_validate({"window": 4, "stop": [rule]}))
    lost = Group("task", [Trajectory("task", "train", (), [], end="infrastructure")])
    nothing = rollout_metrics([lost], [Rewards([0.0], [[]], [False])])
    assert all(math.isnan(nothing[f"rollout/{name}"]) for name in ("reward", "outcome", "step_reward", "pass_rate"))
    for measured in (0.9, 0.8, 0.9, 0.4):
        watch.trends({"rollout/outcome": measured, "rollout/step_reward": 0.0})
        assert watch.reason_to_stop({"rollout/outcome": measured}) is None
        assert watch.trends(nothing) == {}
        assert watch.reason_to_stop(nothing) is None
        assert watch.suspicious == (measured == 0.4)
    assert (
        watch.reason_to_stop({"rollout/outcome": 0.4}) == "rollout/outcome was below 0.5 2 times in a row, at last 0.4"
    )


def test_a_rule_about_an_end_is_kept_again_by_the_first_step_without_such_an_end() -> None:
    watch = Watch(WatchSettings.model_validate({"stop": [{"metric": "end/error", "above": 0.0, "steps": 2}]}))
    ends: list[tuple[EndReason, bool]] = [("error", True), ("turns", False), ("error", True), ("turns", False)]
    for end, suspicious in ends:
        attempt = Trajectory("task", "train", (), [], end=end)
        metrics = rollout_metrics([Group("task", [attempt])], [Rewards([0.0], [[]], [False])])
        assert watch.reason_to_stop(metrics) is None
        assert watch.suspicious == suspicious


def test_a_broken_rule_ends_the_run_with_its_reason_and_keeps_the_last_good_checkpoint(
    lab: Any, tmp_path: Path
) -> None:
    chosen = recipe(
        lab,
        policy={"steps": 9},
        trainer={
            "checkpoint": {"every": 1, "keep": 1},
            "watch": {"stop": [{"metric": "rollout/turns", "above": 0.0, "steps": 3}]},
        },
    )
    with pytest.raises(CollapseError, match=r"stopped after step 3: rollout/turns was above 0 3 times in a row"):
        train(chosen, tmp_path)
    run = RunDirectory.open(tmp_path / "run")
    assert [one.step for one in Checkpoints(run.checkpoints, keep=1).all()] == [0]  # from before the trouble
    assert json.loads((run.path / "stopped.json").read_text())["step"] == 3
    assert len(lab.column(run, "rollout/turns")) == 3
    shown = CliRunner().invoke(app, ["show", str(run.path)])
    assert "stopped after step 3: rollout/turns was above 0" in shown.output
    lenient = chosen.model_copy(update={"trainer": {**chosen.trainer, "watch": {}}})
    NativeTrainer().train(lenient.prepare(), run, resume=True)
    assert not (run.path / "stopped.json").exists()
    assert len(lab.column(run, "rollout/turns")) == 9


def test_a_rule_about_the_warm_start_holds_back_its_checkpoints_and_no_later_ones(lab: Any, tmp_path: Path) -> None:
    chosen = recipe(
        lab,
        policy={"steps": 3},
        trainer={
            "sft": {"steps": 4, "batch_size": 4, "demonstrations": 8},
            "checkpoint": {"every": 1, "sft_every": 2, "keep": 9},
            "watch": {"stop": [{"metric": "sft/loss", "above": 0.0, "steps": 99}]},
        },
    )
    run = train(chosen, tmp_path)
    assert [one.step for one in Checkpoints(run.checkpoints, keep=9).all()] == [4, 5, 6, 7]


@pytest.mark.parametrize("every", [1, 100])
def test_a_run_whose_weights_explode_stops_and_its_checkpoint_is_sound(lab: Any, tmp_path: Path, every: int) -> None:
    chosen = recipe(
        lab,
        policy={"advantage": "reinforce", "optim": {"lr": 1e25}},
        trainer={"checkpoint": {"every": every}},
        reward={"name": "ungated", "options": STEP_REWARDS},
    )
    with pytest.raises(CollapseError, match=r"no numbers any more.*the last checkpoint from before is .*step-000000"):
        train(chosen, tmp_path)
    good = Checkpoints(tmp_path / "run" / "checkpoints", keep=1).latest()
    assert good is not None
    model, _ = load_model(good.model_path, "cpu")
    assert all(math.isfinite(float(one.detach().sum())) for one in model.parameters())


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"metric": "train/entrpy", "below": 1}, "did you mean 'train/entropy'"),
        ({"metric": "end/eror", "above": 0}, "did you mean 'end/error'"),
        ({"metric": "train/entropy"}, "wanted one of below and above for 'train/entropy', found none"),
        ({"metric": "train/entropy", "below": 1, "above": 2}, "found both"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(lab: Any, rule: dict[str, Any], reason: str) -> None:
    with pytest.raises(AgentgymError, match=reason):
        recipe(lab, trainer={"watch": {"stop": [rule]}})


def test_a_run_that_ends_in_doubt_keeps_the_last_good_checkpoint_beside_its_last(lab: Any, tmp_path: Path) -> None:
    rule = {"metric": "rollout/turns", "above": 0.0, "steps": 9}
    watched = {"checkpoint": {"every": 1, "keep": 1}, "watch": {"stop": [rule]}}
    run = train(recipe(lab, policy={"steps": 3}, trainer=watched), tmp_path)
    kept = Checkpoints(run.checkpoints, keep=1).all()
    assert [(one.step, one.suspicious) for one in kept] == [(0, False), (3, True)]


def test_a_warm_start_that_ends_in_doubt_keeps_the_last_good_checkpoint(lab: Any, tmp_path: Path) -> None:
    rule = {"metric": "sft/lr", "below": 1e-4, "steps": 9}  # where the schedule ends
    sft = {"steps": 6, "batch_size": 4, "demonstrations": 8, "optim": {"lr": 1e-3, "schedule": "cosine"}}
    watched = {"sft": sft, "checkpoint": {"sft_every": 2, "keep": 1}, "watch": {"stop": [rule]}}
    run = train(recipe(lab, policy={"steps": 0}, trainer=watched), tmp_path)
    kept = Checkpoints(run.checkpoints, keep=1).all()
    assert [(one.step, one.suspicious) for one in kept] == [(4, False), (6, True)]
