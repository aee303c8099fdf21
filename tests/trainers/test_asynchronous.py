"""Sampling overlaps learning: staleness is bounded, nobody waits for stragglers, and nothing is left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import RecipeError, SandboxError
from agentgym.policy import Generation, Sampling
from agentgym.recipe import Prepared, Recipe
from agentgym.run import RunDirectory
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym.testing import CountingBackend
from agentgym_envs.calculator import CalculatorEnv
from agentgym_envs.code.env import CodeEnv
from agentgym_trainers.asynchronous import Asynchronous, oldest_version
from agentgym_trainers.build import Parts, build
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.native import NativeTrainer

SFT = 6
SMALL = {
    "vocab_size": 300,
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "intermediate": 64,
    "context_length": 128,
}
KILLING = Path(__file__).parents[1] / "support" / "killing.py"
LIMIT_S = 20
LOCK = threading.Lock()


def recipe(
    lab: Any, schedule: dict[str, Any], steps: int = 6, context: int = 128, every: int = 2, **sections: Any
) -> Recipe:
    trainer = {
        "model": SMALL | {"context_length": context},
        "policy": {"steps": steps, "tasks_per_step": 3, "attempts": 4, "advantage": "reinforce", "optim": {"lr": 3e-3}},
        "sft": {"steps": SFT, "batch_size": 8, "demonstrations": 40},
        "schedule": schedule,
        "checkpoint": {"every": every, "sft_every": 1000},
    }
    reward = {
        "name": "ungated",
        "options": {"ladder": {"no_submission": 0, "failed": 0.5, "passed": 1}, "step_weights": {"malformed": 0.3}},
    }
    if "environment" not in sections:
        sections["reward"] = reward
    made: Recipe = lab.recipe(trainer=trainer, **{"tasks": {"train": 60, "test": 2}, **sections})
    return made


def parts_of(prepared: Prepared) -> Parts:
    return asyncio.run(build(prepared, prepared.recipe.trainer_settings(), None, None, lambda *_: None))


def collector(parts: Parts) -> Asynchronous:
    tasks = {task.id: task for task in parts.prepared.train}
    return Asynchronous(parts, ShuffledSampler(list(tasks), seed=0), tasks)


@pytest.mark.parametrize("staleness", [1, 2])
def test_no_group_is_trained_that_is_staler_than_the_bound(lab: Any, tmp_path: Path, staleness: int) -> None:
    # Many updates, and no checkpoint in whose time all episodes under way could end.
    chosen = recipe(lab, {"max_staleness": staleness}, steps=12, every=1000)
    run = RunDirectory.create(tmp_path, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    ages = [
        step - 1 - SFT - (oldest_version([one]) or 0) for step in run.steps() for one in run.read_trajectories(step)
    ]
    assert len(ages) == 12 * 3 * 4
    assert min(ages) >= 0
    assert 1 <= max(ages) <= staleness
    assert max(lab.column(run, "schedule/staleness_max")) == max(ages)
    assert max(lab.column(run, "schedule/carried")) > 0  # episodes went on over an update
    drifts = lab.column(run, "train/drift")
    assert max(drifts) > 1e-3  # measured against what was sampled, not against the present


class Sleepy(CalculatorEnv):
    """Episodes of one task take for ever."""

    slow = ""
    released = threading.Event()

    def step(self, action: Any) -> Any:
        if self._full_task.id == self.slow:
            self.released.wait(120)
        return super().step(action)


def test_nothing_waits_for_the_slowest_and_a_task_that_stays_too_slow_is_let_go(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = recipe(lab, {"max_staleness": 1, "redo": 1}, limits={"turn_timeout_s": 200}).prepare()
    order = ShuffledSampler([task.id for task in prepared.train], seed=0).next(18)
    options = prepared.recipe.environment.options
    parts = parts_of(replace(prepared, make_env=lambda: Sleepy(**options)))
    Sleepy.slow = order[1]  # from now on, for the demonstrations are over

    async def train() -> tuple[list[str], list[dict[str, float]]]:
        groups_of = collector(parts)
        trained, told = [], []
        began = time.monotonic()
        for step in range(6):
            groups, metrics = await groups_of.next(SFT + step)
            trained += [group.task_id for group in groups]
            told.append(metrics)
            await groups_of.updated()
        assert time.monotonic() - began < 60
        await groups_of.close()
        await parts.engine.close()
        return trained, told

    try:
        trained, told = asyncio.run(train())
    finally:
        Sleepy.released.set()
    assert len(trained) == 18
    assert Sleepy.slow not in trained
    assert sum(one["schedule/groups_stale"] for one in told) >= 2  # under load another may be late once
    assert sum(one["schedule/groups_given_up"] for one in told) == 1
    assert [one.getMessage() for one in caplog.records if "let go" in one.getMessage()] == [
        f"task let go: its groups were too stale 2 times task={Sleepy.slow}"
    ]


class Held(HFEngine):
    """Tells of a task's first turns only once it is let."""

    held = ""
    let = threading.Event()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        made = await super().generate(prompt_ids, sampling, session, stop_ids)
        while session.startswith(f"{self.held}#") and not self.let.is_set():  # noqa: ASYNC110 -- of no one loop
            await asyncio.sleep(0.002)
        return made


class Hanging(CalculatorEnv):
    """Some episodes get no further until they are closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._gone = threading.Event()

    def hold(self) -> None:
        self._gone.wait(LIMIT_S)

    def close(self) -> None:
        self._gone.set()
        super().close()


class Stuck(Hanging):
    """The first two episodes of chosen tasks never get beyond a turn."""

    stuck: tuple[str, ...] = ()
    begun: Counter[str] = Counter()

    def reset(self, **given: Any) -> Any:
        found = super().reset(**given)
        with LOCK:
            self.begun[self._full_task.id] += 1
            self._first = self.begun[self._full_task.id] <= 2
        return found

    def step(self, action: Any) -> Any:
        if self._full_task.id in self.stuck and self._first:
            self.hold()
        return super().step(action)


@pytest.mark.parametrize("waiting", [True, False], ids=["while-a-step-waits", "while-the-learner-works"])
def test_a_group_is_begun_anew_as_soon_as_a_turn_tells_that_it_is_too_stale(lab: Any, waiting: bool) -> None:
    if "tests-held" not in registry.names("engines"):
        registry.add("engines", "tests-held", Held)
    trainer = {
        "model": SMALL,
        "engine": {"name": "tests-held"},
        "policy": {"tasks_per_step": 1, "attempts": 2, "advantage": "reinforce"},
        "schedule": {"max_staleness": 1},
    }
    prepared = lab.recipe(trainer=trainer, tasks={"train": 60, "test": 2}, limits={"turn_timeout_s": 60}).prepare()
    first, *_, fourth = ShuffledSampler([task.id for task in prepared.train], seed=0).next(4)
    parts = parts_of(replace(prepared, make_env=Stuck))
    Held.held, Held.let = first, threading.Event()
    Stuck.stuck, Stuck.begun = (first, fourth), Counter()

    async def play() -> tuple[str, dict[str, float]]:
        groups_of = collector(parts)
        for step in range(2):  # of the second and of the third task
            await groups_of.next(step)
            await groups_of.updated()
        third = asyncio.create_task(groups_of.next(2)) if waiting else None
        await asyncio.sleep(0)
        Held.let.set()
        deadline = time.monotonic() + LIMIT_S / 2
        while Stuck.begun[first] < 4 and time.monotonic() < deadline:  # noqa: ASYNC110 -- threads count
            await asyncio.sleep(0.002)
        assert Stuck.begun[first] == 4
        ((group,), metrics) = await (third or groups_of.next(2))
        await groups_of.close()
        await parts.engine.close()
        return group.task_id, metrics

    task, metrics = asyncio.run(play())
    assert (task, metrics["schedule/groups_stale"], metrics["schedule/staleness_max"]) == (first, 1, 0)


class Straggling(Hanging):
    """The third attempt of three never gets beyond its first turn; nobody does before three groups are under way."""

    under_way: set[str] = set()
    most = 0
    enough = threading.Event()
    begun: Counter[str] = Counter()

    def reset(self, **given: Any) -> Any:
        found = super().reset(**given)
        name = self._full_task.id
        self._trained = self._full_task.split == "train"
        if self._trained:
            with LOCK:
                self.begun[name] += 1
                self._straggles = self.begun[name] == 3
                self.under_way.add(name)
                Straggling.most = max(self.most, len(self.under_way))
                if self.most >= 3:
                    self.enough.set()
        return found

    def step(self, action: Any) -> Any:
        if self._trained:
            self.enough.wait(LIMIT_S)
            self.enough.set()  # or a run without three groups would wait at each of its turns
            if self._straggles:
                self.hold()
        return super().step(action)


def test_as_many_groups_are_under_way_as_are_asked_for_and_stragglers_in_them_are_cut(lab: Any, tmp_path: Path) -> None:
    if "tests/Straggling-v0" not in registry.names("envs"):
        registry.register("tests/Straggling-v0", Straggling)
    trainer = {
        "model": SMALL,
        "policy": {"steps": 4, "tasks_per_step": 2, "attempts": 2, "advantage": "reinforce"},
        "schedule": {"max_staleness": 2, "in_flight": 3, "spare_attempts": 1},
    }
    chosen = lab.recipe(
        trainer=trainer, environment={"id": "tests/Straggling-v0"}, tasks={"train": 60, "test": 2},
        limits={"turn_timeout_s": 60},
    )  # fmt: skip
    run = RunDirectory.create(tmp_path, chosen, name="run")

    def tell(phase: str, done: int, _: int, __: Any) -> None:
        if phase == "policy":  # before what follows the trained groups has begun
            with LOCK:
                Straggling.under_way -= {one.task_id for one in run.read_trajectories(done)}

    NativeTrainer().train(chosen.prepare(), run, resume=False, progress=tell)
    groups = [Counter(one.task_id for one in run.read_trajectories(step)) for step in run.steps()]
    assert [list(one.values()) for one in groups] == [[2, 2]] * 4
    assert lab.column(run, "schedule/attempts_cut") == pytest.approx([1 / 3] * 4)
    assert Straggling.most == 3
    assert lab.column(run, "schedule/in_flight") == [1.0] * 4  # when two of them were taken


def test_closing_leaves_no_sandbox_and_no_request_behind(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodeEnv, "sandbox_at", "reset")  # a policy of random weights hardly ever uses one
    backend: Any = registry.create("sandboxes", "process")
    try:
        backend.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    counted = CountingBackend(backend)
    chosen = recipe(
        lab,
        {"max_staleness": 1, "spare_attempts": 1},
        context=8192,
        environment={"id": "agentgym/Code-v0"},
        limits={"concurrency": 256, "max_tokens_per_turn": 6000, "max_tokens": 6000},
    )
    prepared = chosen.prepare()
    code = prepared.make_env
    parts = parts_of(replace(prepared, make_env=lambda: code(sandbox=counted)))  # type: ignore[call-arg]
    batch: Any = parts.engine._batch  # type: ignore[attr-defined]
    threads, shown = threading.active_count(), counted.started

    async def cut_short(moment: Callable[[], bool]) -> None:
        groups_of = collector(parts)
        waiting = asyncio.create_task(groups_of.next(SFT))
        while not moment() and not waiting.done():  # noqa: ASYNC110 -- threads cannot set an asyncio event
            await asyncio.sleep(0.002)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await groups_of.close()
        assert parts.engine.pending == 0
        deadline = time.monotonic() + 3  # what was asked for takes several times as long
        while batch.rows and time.monotonic() < deadline:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
        assert batch.rows == []
        while counted.open_count and time.monotonic() < deadline + 20:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
        assert counted.open_count == 0  # not even of those that were just starting

    async def cut_often() -> None:
        await cut_short(lambda: counted.open_count > 3)
        await cut_short(lambda: len(batch.rows) > 3)
        await parts.engine.close()

    asyncio.run(cut_often())
    assert counted.started > shown + 3
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    backend.close()


def test_a_killed_run_goes_on_and_loses_and_repeats_no_task(lab: Any, tmp_path: Path) -> None:
    chosen = recipe(lab, {"max_staleness": 1, "redo": 9}, steps=10)
    run = RunDirectory.create(tmp_path, chosen, name="run")

    command = [sys.executable, str(KILLING), str(run.path), f"{SFT + 3}:0.05", f"{SFT + 5}:0"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    ends = [line[:7] for line in told.stdout.splitlines()]
    assert ends == ["SIGKILL", "SIGKILL", "ended 0"], told.stderr
    trained = Counter(one.task_id for step in run.steps() for one in run.read_trajectories(step))
    names = [task.id for task in chosen.prepare().train]
    expected = Counter(ShuffledSampler(names, derive_seed(chosen.seed, "sampler")).next(10 * 3))
    assert trained == Counter({name: 4 * count for name, count in expected.items()})
    assert sum(lab.column(run, "schedule/groups_given_up")) == 0


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ({"spare_attempts": 2}, "spare_attempts has a meaning only where sampling overlaps learning"),
        ({"max_staleness": 1, "in_flight": 2}, "in_flight of at least policy.tasks_per_step, 3"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused(lab: Any, schedule: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        recipe(lab, schedule)


def test_a_schedule_in_turns_may_say_what_is_so_in_any_case(lab: Any) -> None:
    assert recipe(lab, {"in_flight": None, "redo": 2, "spare_attempts": 0}).trainer_settings().schedule.redo == 2
