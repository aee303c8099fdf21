"""Episodes run at once; a failure is attributed to whom it belongs; nothing stays open, whatever happens."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import AgentFault, AgentgymError, CapabilityError, InfrastructureError, SandboxError, VerifierError
from agentgym.guidance import Guide, NoGuidance, RolloutRequest
from agentgym.policy import Action, BudgetExceeded, Episode, Policy, PolicySession, ScriptedPolicy
from agentgym.rewards import OutcomeOnly
from agentgym.rollout import Limits, Rollouts
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.task import Task
from agentgym.testing import CountingBackend, ToyEnv, toy_task
from agentgym.tokens import TokenBuffer
from agentgym.tools import SchemaTool, Tool
from agentgym.types import Group, Message, Submission, Trajectory

SOLVE = "```answer\nelbram\n```"
QUICK = Limits(retry_wait_s=0.0)


def says(*script: str) -> Policy:
    return ScriptedPolicy(lambda _: script)


def requests(n: int = 1, task: Task | None = None) -> list[RolloutRequest]:
    return [RolloutRequest(task or toy_task(0), n, seed=1)]


def run(
    make_env: Callable[[], AgentEnv], policy: Policy, limits: Limits = QUICK, wanted: Sequence[RolloutRequest] = ()
) -> list[Group]:
    return asyncio.run(Rollouts(make_env, policy, limits).run(wanted or requests()))


def one(make_env: Callable[[], AgentEnv], policy: Policy, limits: Limits = QUICK) -> Trajectory:
    return run(make_env, policy, limits)[0].trajectories[0]


def test_an_episode_becomes_a_trajectory_with_its_turns_and_verdict() -> None:
    found = one(ToyEnv, says("```reverse\nmarble\n```", SOLVE))
    assert [turn.action.content for turn in found.turns] == ["```reverse\nmarble\n```", SOLVE]
    assert found.turns[0].observation[0].content == "elbram"
    assert found.turns[0].signal("valid_calls") == 1.0
    assert found.prompt[0].content == "Reverse the word 'marble'."
    assert (found.end, found.passed, found.split, found.error) == ("submitted", True, "train", None)
    assert found.seconds > 0.0


class Furnished(ToyEnv):
    """Each task has a tool of its own, which another process may have to be asked for."""

    losses = 0

    def tools_for(self, task: Task) -> Mapping[str, Tool]:
        if type(self).losses:
            type(self).losses -= 1
            raise SandboxError("no answer")
        return {"answer": self.tools["answer"], task.id: SchemaTool(task.id, "Nothing.", {"type": "object"})}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_policy_is_told_the_tools_of_its_task(monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    monkeypatch.setattr(Furnished, "tools_elsewhere", elsewhere)
    monkeypatch.setattr(Furnished, "losses", 1)
    told: list[str] = []

    def script(episode: Episode) -> Sequence[str]:
        told.extend(one["function"]["name"] for one in episode.tools)
        return [SOLVE]

    assert one(Furnished, ScriptedPolicy(script)).passed
    assert told == ["answer", "toy-0"]
    monkeypatch.setattr(Furnished, "losses", 9)
    lost = one(Furnished, ScriptedPolicy(script))
    assert (lost.end, lost.scored) == ("infrastructure", False)


def test_a_policy_that_cannot_begin_stops_the_run_with_its_own_error() -> None:
    def script(_: Episode) -> Sequence[str]:
        raise KeyError("no script")

    with pytest.raises(KeyError, match="no script"):
        one(ToyEnv, ScriptedPolicy(script))


def test_groups_come_back_in_the_order_of_their_requests_with_numbered_attempts() -> None:
    wanted = [RolloutRequest(toy_task(seed), 3, seed=seed) for seed in range(6)]
    groups = run(ToyEnv, says(SOLVE), QUICK, wanted)
    assert [group.task_id for group in groups] == [f"toy-{seed}" for seed in range(6)]
    assert all([item.attempt for item in group.trajectories] == [0, 1, 2] for group in groups)
    seeds = [item.seed for group in groups for item in group.trajectories]
    assert len(set(seeds)) == len(seeds)
    again = run(ToyEnv, says(SOLVE), QUICK, wanted)
    assert seeds == [item.seed for group in again for item in group.trajectories]


def test_an_unsolved_episode_ends_at_the_turn_limit_with_zero() -> None:
    found = one(ToyEnv, says("hm"))
    assert (found.end, len(found.turns), found.scored, found.passed) == ("turns", 8, True, False)


class Troubled(ToyEnv):
    """Fails the way that a test says, as often as it says."""

    def __init__(self, trouble: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self.trouble = trouble

    @tool
    def risk(self) -> str:
        """Do what may fail."""
        self.trouble()
        return "fine"


RISK = '<tool_call>{"name": "risk"}</tool_call>'


def failing(error: Exception, times: int = 10**6) -> tuple[Callable[[], AgentEnv], list[int]]:
    calls: list[int] = []

    def trouble() -> None:
        calls.append(1)
        if len(calls) <= times:
            raise error

    return (lambda: Troubled(trouble)), calls


def test_an_infrastructure_failure_is_retried_and_leaves_no_trace_when_it_passes() -> None:
    make_env, calls = failing(SandboxError("gone"), times=2)
    found = one(make_env, says(RISK, SOLVE))
    assert (found.passed, found.error, len(found.turns), len(calls)) == (True, None, 2, 3)


def test_an_infrastructure_failure_that_stays_is_unscored_and_never_a_zero() -> None:
    make_env, calls = failing(SandboxError("gone"))
    found = one(make_env, says("hm", RISK), QUICK.model_copy(update={"retries": 1}))
    assert (found.end, found.scored, len(calls)) == ("infrastructure", False, 2)
    assert found.verdict is not None
    assert found.verdict.value is None
    assert found.error == "SandboxError: gone"
    assert [one.observation != () for one in found.turns] == [True, False]  # the last got no answer


@pytest.mark.parametrize(
    ("error", "end", "scored"),
    [
        pytest.param(AgentFault("memory bomb"), "agent_fault", True, id="the-agents"),
        pytest.param(VerifierError("crashed"), "verifier", False, id="the-verifiers"),
        pytest.param(ZeroDivisionError("bug"), "error", False, id="a-bug"),
        pytest.param(TimeoutError("a socket's"), "error", False, id="a-timeout-of-somebody-else"),
    ],
)
def test_other_failures_are_attributed_and_not_retried(
    error: Exception, end: str, scored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make_env, calls = failing(error)
    found = one(make_env, says(RISK))
    assert (found.end, found.scored, len(calls)) == (end, scored, 1)
    assert not found.passed
    assert any(record.exc_info for record in caplog.records if record.levelno >= logging.ERROR) == (end == "error")


def test_an_unscored_attempt_does_not_spoil_its_siblings_and_is_masked_by_every_scheme() -> None:
    make_env, _ = failing(VerifierError("crashed"), times=1)
    group = run(make_env, says(RISK, SOLVE), Limits(concurrency=1), requests(n=3))[0]
    assert [item.scored for item in group.trajectories] == [False, True, True]
    assert OutcomeOnly()(group).keep == [False, True, True]
    assert group.solved


def test_a_failing_grader_is_unscored() -> None:
    class Broken(ToyEnv):
        def grade(self, task: Task, submission: Submission) -> float:
            return float("nan")

    found = one(Broken, says(SOLVE))
    assert (found.end, found.scored) == ("verifier", False)


def test_an_environment_that_cannot_be_built_stops_the_run_with_its_own_error() -> None:
    def make_env() -> AgentEnv:
        raise AgentgymError("no such data")

    with pytest.raises(AgentgymError, match="no such data"):
        run(make_env, says(SOLVE))


def test_a_task_that_asks_for_what_its_sandbox_cannot_do_is_refused_and_not_scored(process: SandboxBackend) -> None:
    greedy = toy_task(0).model_copy(update={"sandbox": SandboxSpec(disk_mb=1)})
    with pytest.raises(CapabilityError, match="disk_mb=1"):
        run(lambda: ShellEnv(sandbox=process), says(SOLVE), QUICK, requests(task=greedy))


def test_episodes_run_at_once_and_no_more_than_allowed() -> None:
    together, most, lock = [0], [0], threading.Lock()

    def trouble() -> None:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.05)
        with lock:
            together[0] -= 1

    run(lambda: Troubled(trouble), says(RISK, SOLVE), Limits(concurrency=4), requests(n=12))
    assert 2 <= most[0] <= 4


def test_waves_start_only_when_the_last_wave_has_ended() -> None:
    log: list[str] = []
    limits = Limits(concurrency=3, waves=True)

    class Logged(ToyEnv):
        def reset(self, **options: Any) -> Any:
            log.append("begin")
            return super().reset(**options)

        def close(self) -> None:
            log.append("end")
            super().close()

    run(Logged, says(SOLVE), limits, requests(n=6))
    assert (log[:6].count("begin"), log[:6].count("end")) == (3, 3)


def test_every_finished_episode_is_reported_once() -> None:
    done: list[Trajectory] = []
    rollouts = Rollouts(ToyEnv, says(SOLVE), QUICK, on_done=done.append)
    groups = asyncio.run(rollouts.run(requests(n=5)))
    assert sorted(item.attempt for item in done) == [0, 1, 2, 3, 4]
    assert all(item in groups[0].trajectories for item in done)


@pytest.mark.parametrize("reason", ["tokens", "context"])
def test_a_spent_budget_is_the_agents_failure(reason: Any) -> None:
    class Spender:
        tokens: TokenBuffer | None = TokenBuffer([1], [1], [-0.5], [0])
        closed = False

        async def act(self, new_messages: Sequence[Message]) -> Action:
            raise BudgetExceeded(reason)

        def observe(self, new_messages: Sequence[Message]) -> None:
            """Nothing is left to read."""

        def close(self) -> None:
            self.closed = True

    spender = Spender()

    class Spending:
        def session(self, episode: Episode) -> Spender:
            return spender

    found = one(ToyEnv, Spending())
    assert (found.end, found.scored, found.passed, spender.closed) == (reason, True, False, True)
    assert found.tokens is spender.tokens


def test_a_hanging_step_is_the_agents_failure_and_holds_nobody_up() -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(20)

    began = time.monotonic()
    try:
        group = run(
            lambda: Troubled(hang),
            says(RISK),
            Limits(turn_timeout_s=0.2, concurrency=2),
            requests(n=2),
        )[0]
    finally:
        release.set()
    assert time.monotonic() - began < 5
    assert [(item.end, item.scored) for item in group.trajectories] == [("time", True)] * 2


def test_an_episode_that_outlasts_its_time_scores_zero() -> None:
    found = one(lambda: Troubled(lambda: time.sleep(0.05), max_turns=1000), says(RISK), Limits(episode_timeout_s=0.3))
    assert (found.end, found.scored, found.passed) == ("time", True, False)
    assert found.turns


def test_grading_that_outlasts_its_time_is_unscored() -> None:
    class Slow(ToyEnv):
        def grade(self, task: Task, submission: Submission) -> bool:
            time.sleep(0.6)
            return True

    found = one(Slow, says(SOLVE), Limits(turn_timeout_s=0.2))
    assert (found.end, found.scored) == ("verifier", False)


class HintedPolicy:
    """Solves only what it has read."""

    tokens: TokenBuffer | None = None

    def session(self, episode: Episode) -> PolicySession:
        return self

    async def act(self, new_messages: Sequence[Message]) -> Action:
        read = "".join(message.guidance for message in new_messages)
        return Action(Message(role="assistant", content=SOLVE if "elbram" in read else "```answer\nx\n```"))

    def observe(self, new_messages: Sequence[Message]) -> None:
        """Memory is not needed."""

    def close(self) -> None:
        """Nothing is held."""


def test_guidance_gives_a_second_round_with_a_hint_to_groups_that_failed() -> None:
    rollouts = Rollouts(ToyEnv, HintedPolicy(), QUICK)
    easy, hard = toy_task(2).model_copy(update={"hints": ()}), toy_task(0)
    groups = asyncio.run(rollouts.run_guided([easy, hard], Guide(attempts=2), size=4, seed=0))
    assert [group.guided for group in groups] == [False, True]
    assert [item.hint for item in groups[1].trajectories] == [None, None, hard.hints[-1], hard.hints[-1]]
    assert [item.passed for item in groups[1].trajectories] == [False, False, True, True]
    assert [item.attempt for item in groups[1].trajectories] == [0, 1, 2, 3]
    assert [item.off_policy for item in groups[1].trajectories] == ["none", "none", "true", "true"]


def test_without_guidance_there_is_no_second_round() -> None:
    rollouts = Rollouts(ToyEnv, HintedPolicy(), QUICK)
    groups = asyncio.run(rollouts.run_guided([toy_task(0)], NoGuidance(), size=2, seed=0))
    assert [(len(group.trajectories), group.guided) for group in groups] == [(2, False)]


# ---------------------------------------------------------------------- with real sandboxes


async def until(reached: Callable[[], bool]) -> None:
    """Wait for what happens in other threads."""
    while not reached():  # noqa: ASYNC110 -- threads cannot set an asyncio event
        await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def process() -> Iterator[SandboxBackend]:
    backend: SandboxBackend = registry.create("sandboxes", "process")
    try:
        backend.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield backend
    backend.close()


class ShellEnv(ToyEnv):
    """The toy with a shell."""

    sandboxed = True

    @tool
    def sh(self, script: str) -> str:
        """Run a script."""
        return self.sandbox.exec(script, timeout=60).output

    @tool
    def crash(self) -> Submit:
        """Hit a bug."""
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(["```sh\necho hello\n```", SOLVE], id="submitted"),
        pytest.param(["```sh\necho hello\n```"], id="out-of-turns"),
        pytest.param(['<tool_call>{"name": "crash"}</tool_call>'], id="a-bug"),
        pytest.param(["```sh\nsleep 30\n```"], id="a-hanging-step"),
    ],
)
def test_every_sandbox_is_closed_however_an_episode_ends(process: SandboxBackend, script: list[str]) -> None:
    counted = CountingBackend(process)
    began = time.monotonic()
    run(lambda: ShellEnv(sandbox=counted), says(*script), Limits(turn_timeout_s=1.0), requests(n=3))
    assert (counted.started, counted.open_count) == (3, 0)
    assert time.monotonic() - began < 10


def test_cancelling_leaves_no_sandbox_open(process: SandboxBackend) -> None:
    counted = CountingBackend(process)
    rollouts = Rollouts(lambda: ShellEnv(sandbox=counted), says("```sh\nsleep 30\n```"), Limits(concurrency=4))

    async def cancelled() -> None:
        running = asyncio.create_task(rollouts.run(requests(n=4)))
        await until(lambda: counted.open_count == 4)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    began = time.monotonic()
    asyncio.run(cancelled())
    assert (counted.started, counted.open_count) == (4, 0)
    assert time.monotonic() - began < 10


def test_cancelling_while_an_answer_is_graded_ends_the_graders_sandbox_and_its_thread(process: SandboxBackend) -> None:
    counted = CountingBackend(process)

    class SlowlyGraded(ToyEnv):
        """Grades in a sandbox that takes its time."""

        def grade(self, task: Task, submission: Submission) -> bool:
            with self.sandboxes.start(SandboxSpec()) as box:
                return box.exec("sleep 60", timeout=90).ok

    async def cancelled() -> None:
        running = asyncio.create_task(Rollouts(lambda: SlowlyGraded(sandbox=counted), says(SOLVE)).run(requests(n=2)))
        await until(lambda: counted.open_count == 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    before = {one for one in threading.enumerate() if one.name.startswith("episode")}
    began = time.monotonic()
    asyncio.run(cancelled())
    assert (counted.started, counted.open_count) == (2, 0)
    for one in threading.enumerate():
        if one.name.startswith("episode") and one not in before:
            one.join(20)
    assert time.monotonic() - began < 20


class SlowBackend(CountingBackend):
    """Takes its time to start."""

    entered = False

    @property
    def closed(self) -> bool:
        return self.started > 0 and self.open_count == 0

    def start(self, spec: SandboxSpec) -> Sandbox:
        self.entered = True
        time.sleep(0.5)
        return super().start(spec)


def test_cancelling_while_a_sandbox_starts_leaves_none_open(process: SandboxBackend) -> None:
    slow = SlowBackend(process)
    rollouts = Rollouts(lambda: ShellEnv(sandbox=slow), says(SOLVE), QUICK)

    async def cancelled() -> None:
        running = asyncio.create_task(rollouts.run(requests()))
        await until(lambda: slow.entered)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())
    deadline = time.monotonic() + 10
    while not slow.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (slow.started, slow.open_count) == (1, 0)


def test_a_sandbox_that_does_not_start_is_retried_then_unscored() -> None:
    class Down(CountingBackend):
        starts = 0

        def start(self, spec: SandboxSpec) -> Sandbox:
            self.starts += 1
            raise InfrastructureError("the daemon does not answer")

    down = Down(registry.create("sandboxes", "process"))
    found = one(lambda: ShellEnv(sandbox=down), says(SOLVE))
    assert (found.end, found.scored, down.starts) == ("infrastructure", False, 3)
