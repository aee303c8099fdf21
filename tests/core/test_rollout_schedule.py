"""Deadlines belong to tasks, stragglers are raced against spares, and whoever loses leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentgym import registry
from agentgym.env import AgentEnv, tool
from agentgym.errors import CapabilityError, SandboxError, VerifierError
from agentgym.guidance import Guide, RolloutRequest
from agentgym.policy import Action, ScriptedPolicy
from agentgym.rollout import Limits, Rollouts
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.testing import CountingBackend, ToyEnv, toy_task
from agentgym.types import Group, Submission

SOLVE = "```answer\nelbram\n```"
WAIT = '<tool_call>{"name": "wait"}</tool_call>'


@pytest.fixture(scope="module")
def process() -> Iterator[SandboxBackend]:
    backend: SandboxBackend = registry.create("sandboxes", "process")
    try:
        backend.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield backend
    backend.close()


class Queue(ToyEnv):
    """Its episodes wait as long as the next entry of a list says; infinitely many seconds for the rest."""

    def __init__(self, waits: list[float], **options: Any) -> None:
        super().__init__(**options)
        self._waits = waits

    @tool
    def wait(self) -> str:
        """Wait, in the sandbox if there is one."""
        seconds = self._waits.pop(0) if self._waits else 60.0
        if self.sandboxed:
            self.sandbox.exec(f"sleep {seconds}", timeout=90)
        else:
            time.sleep(seconds)
        return "done"


class Boxed(Queue):
    """The same, in a sandbox."""

    sandboxed = True


def race(make_env: Any, request: RolloutRequest, **options: Any) -> Group:
    policy = ScriptedPolicy(lambda _: [WAIT, SOLVE])
    return asyncio.run(Rollouts(make_env, policy, Limits(**options)).run([request]))[0]


def test_a_tasks_own_deadline_replaces_the_recipes() -> None:
    quick = toy_task(0).model_copy(update={"timeout_s": 0.2})
    slow = toy_task(2)
    rollouts = Rollouts(lambda: Queue([0.4]), ScriptedPolicy(lambda _: [WAIT, "hm"]), Limits(episode_timeout_s=30))
    found = asyncio.run(rollouts.run([RolloutRequest(quick, 1, seed=0), RolloutRequest(slow, 1, seed=0)]))
    assert [group.trajectories[0].end for group in found] == ["time", "turns"]
    lenient = quick.model_copy(update={"timeout_s": 30.0})
    again = race(lambda: Queue([0.3]), RolloutRequest(lenient, 1, seed=0), episode_timeout_s=0.1)
    assert again.trajectories[0].end == "submitted"


def test_the_first_attempts_to_end_are_kept_and_stragglers_leave_no_sandbox(process: SandboxBackend) -> None:
    counted, waits = CountingBackend(process), [0.0] * 3
    began = time.monotonic()
    found = race(lambda: Boxed(waits, sandbox=counted), RolloutRequest(toy_task(0), 3, seed=1, spare=2))
    assert time.monotonic() - began < 20
    assert [one.passed for one in found.trajectories] == [True] * 3
    assert found.cut == 2
    assert (counted.started, counted.open_count) == (5, 0)
    assert [one.attempt for one in found.trajectories] == sorted({one.attempt for one in found.trajectories})


@pytest.mark.parametrize(
    ("error", "end"),
    [
        pytest.param(VerifierError("crashed"), "verifier", id="its-grader-failed"),
        pytest.param(SandboxError("gone"), "infrastructure", id="its-sandbox-was-lost"),
    ],
)
def test_an_attempt_without_a_verdict_does_not_win_the_race_and_is_not_cut_for_being_slow(
    error: Exception, end: str
) -> None:
    lock, judged = threading.Lock(), [0]

    class Flaky(ToyEnv):
        def grade(self, task: Task, submission: Submission) -> bool:
            with lock:
                judged[0] += 1
                first = judged[0] <= 2
            if first:
                raise error
            time.sleep(0.3)
            return True

    policy = ScriptedPolicy(lambda _: [SOLVE])
    request = RolloutRequest(toy_task(0), 2, seed=1, spare=2)
    found = asyncio.run(Rollouts(Flaky, policy, Limits(retries=0)).run([request]))[0]
    assert [one.scored for one in found.trajectories] == [True, True]
    assert ([one.end for one in found.replaced], found.cut) == ([end, end], 0)
    assert len(found.ended) == 4


def test_what_is_refused_stops_a_race_too() -> None:
    class Refusing(ToyEnv):
        def reset(self, **options: Any) -> Any:
            raise CapabilityError("no such thing")

    with pytest.raises(CapabilityError, match="no such thing"):
        race(Refusing, RolloutRequest(toy_task(0), 2, seed=1, spare=1))


def test_rounds_of_guidance_race_too_and_their_cuts_add_up() -> None:
    rollouts = Rollouts(ToyEnv, ScriptedPolicy(lambda _: ["```answer\nwrong\n```"]), Limits())
    group = asyncio.run(rollouts.run_guided([toy_task(0)], Guide(), size=2, seed=0, spare=1))[0]
    assert (len(group.trajectories), group.guided, group.cut) == (2, True, 2)
    assert [one.hint is None for one in group.trajectories] == [False] * 2
    assert [one.hint is None for one in group.replaced] == [True] * 2
    assert group.unaided == group.replaced


def test_what_hinted_attempts_stand_in_for_is_kept_aside_and_never_twice() -> None:
    rollouts = Rollouts(ToyEnv, ScriptedPolicy(lambda _: ["```answer\nwrong\n```"]), Limits())
    group = asyncio.run(rollouts.run_guided([toy_task(0)], Guide(attempts=1), size=3, seed=0))[0]
    assert [one.hint is None for one in group.trajectories] == [True, True, False]
    assert ([one.hint for one in group.replaced], len(group.unaided), len(group.ended)) == ([None], 3, 4)
    solved = Rollouts(ToyEnv, ScriptedPolicy(lambda _: [SOLVE]), Limits())
    assert asyncio.run(solved.run_guided([toy_task(0)], Guide(), size=3, seed=0))[0].replaced == []


def test_calls_that_share_a_gate_stay_within_it_together_and_tell_of_every_action() -> None:
    together, most, lock = [0], [0], threading.Lock()
    actions: list[Action] = []

    class Busy(ToyEnv):
        def step(self, action: Any) -> Any:
            with lock:
                together[0] += 1
                most[0] = max(most[0], together[0])
            time.sleep(0.02)
            with lock:
                together[0] -= 1
            return super().step(action)

    async def both() -> list[list[Group]]:
        gate = asyncio.Semaphore(3)
        make_env: type[AgentEnv] = Busy
        policy = ScriptedPolicy(lambda _: [SOLVE])
        calls = [
            Rollouts(make_env, policy, Limits(), on_action=actions.append, gate=gate).run(
                [RolloutRequest(toy_task(0), 4, seed)]
            )
            for seed in (1, 2)
        ]
        return await asyncio.gather(*calls)

    groups = asyncio.run(both())
    assert 2 <= most[0] <= 3
    assert len(actions) == sum(len(one.turns) for made in groups for group in made for one in group.trajectories) == 8
