"""Attempts that are lost before anything is sampled are left out, and the run goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentgym import registry
from agentgym.errors import RecipeError, SandboxError
from agentgym.run import RunDirectory
from agentgym.tokens import TokenBuffer
from agentgym.types import Group, Message, Trajectory, Turn
from agentgym_envs.calculator import CalculatorEnv
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.collect import Room
from agentgym_trainers.models import export, new_model, refuse_longer
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.policies import CheckpointOptions, checkpoint_policy
from agentgym_trainers.settings import ModelSettings

BEGUN = count()
MODEL = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}


class NoSandbox(CalculatorEnv):
    """One episode in four finds no sandbox."""

    def reset(self, **given: Any) -> Any:
        """Begin, or not."""
        if next(BEGUN) % 4 == 3:
            raise SandboxError("no sandbox could be started")
        return super().reset(**given)


class NoTools(CalculatorEnv):
    """One episode in four cannot even learn its tools."""

    def tools_for(self, task: Any) -> Any:
        """Return them, or not."""
        if next(BEGUN) % 4 == 3:
            raise SandboxError("the tools' server is gone")
        return super().tools_for(task)


class NoSandboxes(CalculatorEnv):
    """No episode finds a sandbox."""

    def reset(self, **_: Any) -> Any:
        """Never begin."""
        raise SandboxError("no sandbox could be started")


class OneWithoutSandbox(CalculatorEnv):
    """The last of a task's four attempts finds no sandbox, and the others wait until it is lost."""

    begun: ClassVar[Counter[str]] = Counter()
    lost: ClassVar[defaultdict[str, threading.Event]] = defaultdict(threading.Event)
    lock = threading.Lock()

    def reset(self, **given: Any) -> Any:
        """Begin, or not."""
        found = super().reset(**given)
        self._waits = self._full_task.split == "train"
        with self.lock:
            gone = self.lost[self._full_task.id]
            self.begun[self._full_task.id] += self._waits
            last = self.begun[self._full_task.id] == 4
        if last:
            gone.set()
            raise SandboxError("no sandbox could be started")
        return found

    def step(self, action: Any) -> Any:
        """Act, once it is lost."""
        if self._waits:
            assert self.lost[self._full_task.id].wait(20)
            time.sleep(0.3)
        return super().step(action)


ENVIRONMENTS = {
    "tests/NoSandbox-v0": NoSandbox, "tests/NoTools-v0": NoTools, "tests/NoSandboxes-v0": NoSandboxes,
    "tests/OneWithoutSandbox-v0": OneWithoutSandbox,
}  # fmt: skip


def train(lab: Any, folder: Path, environment: str, **trainer: Any) -> RunDirectory:
    if environment not in registry.names("envs"):
        registry.register(environment, ENVIRONMENTS[environment])
    limits = {"max_tokens_per_turn": 8, "max_tokens": 16, "retries": 0}
    policy = {"steps": 2, "tasks_per_step": 2, "attempts": 3, "advantage": "gae"}
    given = {"model": {**MODEL, "context_length": 128}, "policy": policy, "critic": {}, **trainer}
    chosen = lab.recipe(environment={"id": environment}, limits=limits, tasks={"train": 10, "test": 2}, trainer=given)
    run = RunDirectory.create(folder, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    return run


@pytest.mark.parametrize("packing", ["none", "prefixes"])
@pytest.mark.parametrize("environment", ["tests/NoSandbox-v0", "tests/NoTools-v0"])
def test_a_run_goes_on_without_attempts_that_never_began(
    lab: Any, tmp_path: Path, environment: str, packing: str
) -> None:
    run = train(lab, tmp_path, environment, compute={"packing": packing})
    lost, trained = lab.column(run, "rollout/infrastructure"), lab.column(run, "train/tokens")
    assert len(lost) == 2
    assert max(lost) > 0
    assert min(trained) > 0
    assert lab.column(run, "rollout/unscored") == lost


def test_attempts_that_spare_ones_stand_in_for_are_lost_and_not_cut(lab: Any, tmp_path: Path) -> None:
    run = train(lab, tmp_path, "tests/OneWithoutSandbox-v0", schedule={"max_staleness": 2, "spare_attempts": 1})
    assert [len(run.read_trajectories(step)) for step in run.steps()] == [6, 6]
    assert lab.column(run, "rollout/infrastructure") == lab.column(run, "rollout/unscored") == [1 / 4, 1 / 4]
    assert lab.column(run, "schedule/attempts_cut") == [0.0, 0.0]


def test_a_warm_start_goes_on_without_demonstrations_that_never_began(lab: Any, tmp_path: Path) -> None:
    run = train(lab, tmp_path, "tests/NoSandbox-v0", sft={"steps": 2, "batch_size": 16})
    assert min(lab.column(run, "sft/tokens")) > 0


def test_a_warm_start_without_a_single_demonstration_is_one_sentence(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"found 10 in which nothing is said: SandboxError: no sandbox could be started; mend what"
    ):
        train(lab, tmp_path, "tests/NoSandboxes-v0", sft={"steps": 2})


def test_a_step_in_which_every_attempt_is_lost_teaches_nothing(lab: Any, tmp_path: Path) -> None:
    run = train(lab, tmp_path, "tests/NoSandboxes-v0")
    assert lab.column(run, "rollout/infrastructure") == [1.0, 1.0]
    assert lab.column(run, "train/tokens") == [0.0, 0.0]


def test_a_run_in_which_no_prompt_fits_into_the_context_is_one_sentence(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=r"none in all 6 attempts of a step: the shortest prompt, of 'calculator.*', takes \d\d+ tokens .* "
        r"the context has 4; raise trainer\.model\.context_length",
    ):
        train(lab, tmp_path, "agentgym/Calculator-v0", model={**MODEL, "context_length": 4})


def test_a_run_goes_on_while_some_prompts_fit(tiny: tuple[Any, ChatFormat], caplog: pytest.LogCaptureFixture) -> None:
    def groups(*attempts: Trajectory) -> list[Group]:
        return [Group("task", [one]) for one in attempts]

    prompt = (Message(role="user", content="46"),)
    cut = Trajectory("task", "train", prompt, [], end="context")
    played = replace(cut, turns=[Turn(Message(role="assistant", content="46"), ())])
    room = Room(tiny[1], 9, steps=2)
    for going_on in ((), (cut, played), (cut, replace(cut, end="infrastructure"))):
        room.check(groups(cut, cut))
        room.check(groups(*going_on))
    assert caplog.text.count("found none in all 2 attempts of a step") == 3
    room.check(groups(cut))
    with pytest.raises(RecipeError, match="none in all 2 attempts"):
        room.check(groups(cut, cut))


def test_a_context_longer_than_the_models_is_refused_only_where_it_was_asked_for(lab: Any, tmp_path: Path) -> None:
    small = ModelSettings.model_validate({**MODEL, "context_length": 64})
    model, tokenizer = new_model(small, ["some words"], 0, "cpu")
    export(model, tokenizer, tmp_path / "model")
    for asked in ({}, {"context_length": 64}):
        refuse_longer(ModelSettings.model_validate({"path": str(tmp_path / "model"), **asked}), 64)
    with pytest.raises(
        RecipeError,
        match=r"context_length: wanted at most the 64 tokens that the model of .*/model reads, found 65; lower",
    ):
        train(lab, tmp_path, "agentgym/Calculator-v0", model={"path": str(tmp_path / "model"), "context_length": 65})
    with pytest.raises(RecipeError, match=r"at most the 64 tokens that the model reads, found 65"):
        checkpoint_policy(tmp_path / "model", options=CheckpointOptions(context_length=65))


def test_an_empty_buffer_is_a_row_of_padding() -> None:
    full = TokenBuffer()
    full.append_text([1, 2, 3], turn=0)
    full.append_sampled([4, 5], [-0.1, -0.2], turn=0)
    batch = TokenBatch.of([TokenBuffer(), full])
    assert batch.length_B.tolist() == [0, 5]
    assert batch.ids_BL.tolist() == [[0] * 5, [1, 2, 3, 4, 5]]
    assert batch.sampled_BL.sum(1).tolist() == [0, 2]
