"""A training is followed from the files that OpenRLHF writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openrlhf_recipes import options, recipe

from agentgym.run import RunDirectory
from agentgym_trainers.bridges.openrlhf.events import Events, translate
from agentgym_trainers.bridges.openrlhf.follow import Follower
from agentgym_trainers.bridges.openrlhf.launch import Launch
from agentgym_trainers.checkpoint import Checkpoints
from agentgym_trainers.optimizer import CollapseError


def test_event_files_become_metrics_a_step_later_or_at_the_end(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    events = Events(tmp_path)
    for step in (1, 2):
        writer.add_scalar("train/rollout/reward_mean", step / 4, step)
        writer.add_scalar("train/rollout/num_samples", 8, step)
        writer.add_scalar("train/sampled_tokens", 3, step)
    writer.add_scalar("eval/eval_test_pass4", 0.5, 2)
    writer.flush()
    assert [one.step for one in events.read()] == [1]
    rest = list(events.read(all_written=True))
    assert [(one.step, one.metrics.get("eval/pass@4")) for one in rest] == [(2, None), (2, 0.5)]
    assert rest[0].metrics["rollout/reward"] == 0.5
    assert rest[0].metrics["rollout/sampled_tokens"] == 24
    assert not list(events.read(all_written=True))
    writer.close()


def test_event_files_that_did_not_grow_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    reads, reload = [], EventAccumulator.Reload

    def counted(self: Any) -> Any:
        reads.append(self)
        return reload(self)

    monkeypatch.setattr(EventAccumulator, "Reload", counted)
    with SummaryWriter(str(tmp_path)) as writer:
        events = Events(tmp_path)
        for step in (1, 2):
            writer.add_scalar("train/outcome", 0.5, step)
            writer.flush()
            told = [one.step for _ in range(3) for one in events.read()]
    assert (told, len(reads)) == ([1], 2)
    assert [one.step for one in events.read(all_written=True)] == [2]


def test_a_figure_without_a_name_of_ours_keeps_its_own() -> None:
    assert translate({"train/vllm_kl": 0.1, "eval/eval_num_samples": 4.0}) == {
        "openrlhf/vllm_kl": 0.1, "openrlhf/eval/eval_num_samples": 4.0,
    }  # fmt: skip


def follower(tmp_path: Path, trainer: Mapping[str, Any], **sections: Any) -> tuple[Launch, Follower]:
    """A run whose model is a folder of two files, and what follows its training."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    one = recipe({"model": {"path": str(model)}, **trainer}, **sections)
    launch = Launch.of(one.prepare(), RunDirectory.create(tmp_path, one, name="run"))
    return launch, Follower(launch.prepared, launch.run, launch.settings, launch.files, None)


def saved(launch: Launch, step: int) -> None:
    """What OpenRLHF leaves of a step."""
    folder = launch.files.checkpoints
    shutil.copytree(launch.files.model, folder / f"global_step{step}_hf")
    (folder / "_actor").mkdir(exist_ok=True)
    (folder / "_actor" / "latest").write_text(f"global_step{step}")


def test_where_sampling_overlaps_learning_a_checkpoint_waits_for_its_evaluation(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    policy = {"steps": 8, "tasks_per_step": 4, "attempts": 2}
    trainer = {
        "policy": policy, "schedule": {"max_staleness": 2}, "checkpoint": {"every": 2, "keep": 3, "best": "eval/pass@1"}
    }  # fmt: skip
    launch, following = follower(tmp_path, trainer, evaluation={"every": 2})
    assert options(launch.prepared.recipe)["ckpt.best_metric_key"] == ["none"]
    with following.begin(0), SummaryWriter(str(launch.files.metrics / "run")) as writer:
        saved(launch, 2)
        for step in range(1, 6):
            writer.add_scalar("train/rollout/reward_mean", 0.5, step)
            if step == 4:  # told after the steps that were ready before it
                writer.flush()
                following.look()
                writer.add_scalar("eval/eval_test_pass1", 0.75, 2)
        writer.flush()
        following.look()
    (kept,) = Checkpoints(launch.run.checkpoints, 3).all()
    assert (kept.step, kept.score) == (2, 0.75)


def told(writer: Any, step: int, turns: int) -> None:
    """What OpenRLHF says of a step."""
    writer.add_scalar("train/rollout/reward_mean", 0.5, step)
    writer.add_scalar("train/turns", turns, step)
    writer.flush()


def test_what_is_saved_beyond_a_bound_is_marked_and_the_reason_names_the_checkpoint_from_before(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    trainer = {
        "policy": {"steps": 8, "tasks_per_step": 4, "attempts": 2},
        "checkpoint": {"every": 1, "keep": 1},
        "watch": {"stop": [{"metric": "rollout/turns", "above": 5.0, "steps": 3}]},
    }
    launch, following = follower(tmp_path, trainer)

    def follow() -> None:
        with following.begin(0), SummaryWriter(str(launch.files.metrics / "run")) as writer:
            for step, turns in enumerate([1, 1, 9, 9, 9, 1], start=1):
                told(writer, step, turns)
                saved(launch, step)
                if step == 6:  # of which, and of the next, nothing is known as the rule is broken
                    saved(launch, 7)
                    following.look()

    reason = r"stopped after step 5: rollout/turns was above 5 3 times in a row.*; .* from before is .*step-000002$"
    with pytest.raises(CollapseError, match=reason):
        follow()
    kept = Checkpoints(launch.run.checkpoints, 1).all()
    assert [(one.step, one.suspicious) for one in kept] == [(2, False), (7, True)]
    assert json.loads((launch.run.path / "stopped.json").read_text())["step"] == 5


@pytest.mark.parametrize(
    ("rule", "passed", "suspicious"),
    [
        pytest.param({"metric": "eval/pass@1", "below": 0.5, "steps": 2}, 0.25, [2, 3, 4], id="beyond-a-bound"),
        pytest.param({"metric": "rollout/turns", "above": 5.0, "steps": 9}, 0.75, [3, 4], id="before-a-step-was"),
    ],
)
def test_an_evaluation_that_is_told_late_raises_doubts_from_its_own_step_on(
    tmp_path: Path, rule: Mapping[str, Any], passed: float, suspicious: list[int]
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    trainer = {
        "policy": {"steps": 8, "tasks_per_step": 4, "attempts": 2},
        "schedule": {"max_staleness": 2},
        "checkpoint": {"every": 1, "keep": 9},
        "watch": {"stop": [rule]},
    }
    launch, following = follower(tmp_path, trainer, evaluation={"every": 2})
    with following.begin(0), SummaryWriter(str(launch.files.metrics / "run")) as writer:
        for step, turns in enumerate([1, 1, 9, 9], start=1):
            told(writer, step, turns)
            saved(launch, step)
        following.look()
        writer.add_scalar("eval/eval_test_pass1", passed, 2)
        told(writer, 5, 9)
        following.look()
    kept = Checkpoints(launch.run.checkpoints, 9).all()
    assert [one.step for one in kept] == [1, 2, 3, 4]
    assert [one.step for one in kept if one.suspicious] == suspicious


def test_a_training_that_is_done_is_not_begun_anew(tmp_path: Path) -> None:
    launch, _ = follower(tmp_path, {"policy": {"steps": 2, "tasks_per_step": 4}, "checkpoint": {"every": 2}})
    saved(launch, 2)
    launch.train(resume=True, progress=None)
    assert [one.step for one in Checkpoints(launch.run.checkpoints, 2).all()] == [2]
    assert not (launch.files.folder / "log.txt").exists()
