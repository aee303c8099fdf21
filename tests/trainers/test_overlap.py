"""While the learner updates, episodes go on: whatever it updates, and with whatever it values turns."""

from __future__ import annotations

import math
import threading
from functools import wraps
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from agentgym import registry
from agentgym_envs.calculator import CalculatorEnv
from agentgym_trainers.advantages import Credit, reinforce
from agentgym_trainers.checkpoint import Checkpoints
from agentgym_trainers.gae import gae

LIMIT_S = 20
MODEL = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
STEP_REWARDS = {"ladder": {"no_submission": 0, "failed": 0.5, "passed": 1}, "step_weights": {"malformed": 0.3}}


def train(lab: Any, policy: dict[str, Any], **sections: Any) -> Any:
    trainer = {
        "model": {**MODEL, "context_length": 128},
        "policy": {"tasks_per_step": 3, "attempts": 4, "optim": {"lr": 3e-3}, **policy},
        "schedule": {"max_staleness": 1},
        **sections.pop("trainer", {}),
    }
    reward = {"name": "ungated", "options": STEP_REWARDS}
    return lab.train(trainer=trainer, **{"tasks": {"train": 60, "test": 2}, "reward": reward, **sections})


class Held(CalculatorEnv):
    """Episodes of the first task that is trained on take no step before an update; two of them show that it went on."""

    held = ""
    updating = threading.Event()
    went_on = threading.Event()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        found = super().reset(seed=seed, options=options)
        self._steps_during = 0
        if self._full_task.split == "train":
            type(self).held = self.held or self._full_task.id
        return found

    def step(self, action: Any) -> Any:
        if self._full_task.id == self.held and self.updating.wait(LIMIT_S):
            self._steps_during += 1
            if self._steps_during == 2:  # and between them somebody sampled
                self.went_on.set()
        return super().step(action)


def patient(credit: Credit) -> Tensor:
    """Price an update's attempts once the held ones have gone on."""
    if Held.held:
        Held.updating.set()
        assert Held.went_on.wait(LIMIT_S), "no episode went on during the update"
    return reinforce(credit)


def test_episodes_go_on_during_an_update(lab: Any) -> None:
    registry.register("tests/Held-v0", Held)
    registry.add("advantages", "patient", patient)
    train(lab, {"steps": 2, "advantage": "patient"}, environment={"id": "tests/Held-v0"})
    assert Held.went_on.is_set()


class HeldBySave(Held):
    """The same, before a checkpoint is written."""

    held = ""
    updating = threading.Event()
    went_on = threading.Event()


def test_episodes_go_on_while_a_checkpoint_is_written(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Checkpoints.write

    def slowly(*given: Any, **named: Any) -> Any:
        if HeldBySave.held:
            HeldBySave.updating.set()
            assert HeldBySave.went_on.wait(LIMIT_S), "no episode went on meanwhile"
        return write(*given, **named)

    monkeypatch.setattr(Checkpoints, "write", slowly)
    registry.register("tests/HeldBySave-v0", HeldBySave)
    train(lab, {"steps": 2}, environment={"id": "tests/HeldBySave-v0"}, trainer={"checkpoint": {"every": 1}})
    assert HeldBySave.went_on.is_set()


class Crowded(CalculatorEnv):
    """Counts the episodes that run at once."""

    running: ClassVar[set[int]] = set()
    most: ClassVar[int] = 0
    splits: ClassVar[set[str]] = set()
    lock = threading.Lock()
    over = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        found = super().reset(seed=seed, options=options)
        with self.lock:
            if not self.over:  # who is cancelled is closed while it begins
                self.running.add(id(self))
            type(self).most = max(self.most, len(self.running))
            if len(self.running) > 1:
                self.splits.add(self._full_task.split)
        return found

    def close(self) -> None:
        with self.lock:
            self.over = True
            self.running.discard(id(self))
        super().close()


def test_held_out_attempts_count_among_those_that_run_at_once(lab: Any) -> None:
    registry.register("tests/Crowded-v0", Crowded)
    train(
        lab,
        {"steps": 3},
        environment={"id": "tests/Crowded-v0"},
        evaluation={"every": 1, "attempts": 4},
        limits={"concurrency": 3, "max_tokens_per_turn": 8, "max_tokens": 32},
        tasks={"train": 60, "test": 8},
    )
    assert Crowded.splits == {"train", "test"}
    assert Crowded.most == 3


@wraps(gae)
def turnwise(credit: Credit, value_BL: Tensor, **options: Any) -> Tensor:
    """Give advantages that are the same all over a turn, and not all over an attempt."""
    advantage_BL = gae(credit, value_BL, **options)
    several = False
    for advantage_L, turn_L, sampled_L in zip(advantage_BL, credit.turn_BL, credit.sampled_BL, strict=True):
        turns = [advantage_L[(turn_L == turn) & sampled_L] for turn in turn_L[sampled_L].unique()]
        assert all(torch.equal(one, one[:1].expand_as(one)) for one in turns)
        several |= len({float(one[0]) for one in turns}) > 1
    SEVERAL.append(several)
    return advantage_BL


SEVERAL: list[bool] = []


def test_a_critic_values_turns_of_episodes_that_older_weights_began(lab: Any) -> None:
    registry.add("advantages", "turnwise", turnwise)
    policy = {"steps": 6, "advantage": "turnwise", "advantage_options": {"level": "turn"}}
    run = train(lab, policy, trainer={"critic": {"warmup_steps": 1}})
    assert any(SEVERAL)
    assert max(lab.column(run, "schedule/staleness_max")) == 1
    assert all(map(math.isfinite, lab.column(run, "train/explained_variance")))
    losses = lab.column(run, "train/value_loss")
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert len(lab.column(run, "train/loss")) == 5
