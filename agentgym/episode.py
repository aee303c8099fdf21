"""One episode: an environment and a policy take turns until the end, or until a budget is spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import Field

from agentgym.env import AgentEnv, info_signals
from agentgym.errors import VerifierError
from agentgym.guidance import RolloutRequest
from agentgym.policy import Action, BudgetExceeded, Episode, Policy, PolicySession
from agentgym.sampling import derive_seed
from agentgym.types import EndReason, Record, Trajectory, Trust, Turn, Verdict

Result = TypeVar("Result")


class Limits(Record):
    """Budgets of an episode, and how many run at once. Running out of a budget is the agent's failure, scored 0."""

    max_tokens_per_turn: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Sampled tokens per episode."""
    turn_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """One environment step, without grading."""
    episode_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """The whole episode; a task that names its own `timeout_s` has that instead."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    retries: Annotated[int, Field(ge=0)] = 2
    """Of infrastructure failures only."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 0.2
    """Scale of the random exponential wait between retries."""
    waves: bool = False
    """Start the next episodes only when all of the last ones ended: needed for bit-reproducible batches."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One of the episodes that a request asks for."""

    request: RolloutRequest
    index: int

    @property
    def seed(self) -> int:
        """The episode's own."""
        return derive_seed(self.request.seed, self.request.task.id, self.index)

    @property
    def session(self) -> str:
        """What the engine knows it by."""
        return f"{self.request.task.id}#{self.request.seed}#{self.index}"


class _TurnTimeout(Exception):  # noqa: N818 -- a signal, not an error
    """One environment step outlasted its budget."""


class RunningEpisode:
    """One episode, from its environment's making to its closing."""

    def __init__(
        self,
        attempt: Attempt,
        env: AgentEnv,
        policy: Policy,
        limits: Limits,
        pool: ThreadPoolExecutor,
        on_action: Callable[[Action], None] | None = None,
    ) -> None:
        self.limits = limits
        self.attempt = attempt
        self.pool = pool
        self.env = env
        self.on_action = on_action
        self.began = time.monotonic()
        self.sampled = 0
        self.policy = policy
        self.session: PolicySession | None = None
        self.knows_tools = False
        """Whether the environment told its tools: what fails then, without a session, is the policy."""
        request = attempt.request
        self.trajectory = Trajectory(
            task_id=request.task.id,
            split=request.task.split,
            prompt=(),
            turns=[],
            seed=attempt.seed,
            attempt=attempt.index,
            hint=request.hint,
            off_policy=request.off_policy,
        )

    async def run(self) -> Trajectory:
        """Play to the end, and close the environment however it comes."""
        deadline = asyncio.timeout(self.attempt.request.task.timeout_s or self.limits.episode_timeout_s)
        try:
            async with deadline:
                self.session = await self._session()
                await self._play(self.session)
        except _TurnTimeout:
            self._out_of_budget("time")
        except TimeoutError:
            if not deadline.expired():  # somebody else's timeout, such as a socket's
                raise
            self._out_of_budget("time")
        except BudgetExceeded as spent:
            self._out_of_budget(spent.reason)
        finally:
            if self.session is not None:
                self.session.close()
            # Not through the pool: a step that hangs holds its thread until its sandbox is gone.
            await asyncio.shield(asyncio.to_thread(self.env.close))
        self.trajectory.seconds = time.monotonic() - self.began
        return self.trajectory

    async def _session(self) -> PolicySession:
        """Tell the policy of the episode and the task's tools. Nothing is waited for unless the tools are elsewhere."""
        task = self.attempt.request.task
        if self.env.tools_elsewhere:
            tools = await self._in_thread(lambda: self.env.tools_for(task))
        else:  # a lock-step engine must hear of every episode before the first one samples
            tools = self.env.tools_for(task)
        self.knows_tools = True
        session = self.policy.session(
            Episode(
                session=self.attempt.session,
                task_id=task.id,
                seed=self.attempt.seed,
                tools=tuple(one.schema for one in tools.values()),
                max_tokens_per_turn=self.limits.max_tokens_per_turn,
                max_tokens=self.limits.max_tokens,
            )
        )
        self.trajectory.tokens = session.tokens
        return session

    async def _play(self, session: PolicySession) -> None:
        request = self.attempt.request
        options = {"task": request.task, "hint": request.hint}
        messages, _ = await self._in_thread(lambda: self.env.reset(seed=self.attempt.seed, options=options))
        self.trajectory.prompt = messages
        while True:
            began = time.monotonic()
            action = await session.act(messages)
            if self.on_action:
                self.on_action(action)
            if session.tokens is None and action.sampled:  # an endpoint's own count; elsewhere the buffer knows
                self.sampled += action.sampled
                self.trajectory.extra = {**self.trajectory.extra, "sampled_tokens": self.sampled}
            turn = Turn(action.message, (), (), action.stop_reason, action.weight_version)
            self.trajectory.turns.append(turn)  # at once: what was said counts, even if no answer comes in time
            messages, _, terminated, truncated, info = await self._step(action.message)
            turn.observation, turn.signals = messages, info_signals(info)
            turn.seconds = time.monotonic() - began
            if terminated or truncated:
                session.observe(messages)
                self.trajectory.verdict, self.trajectory.end = info["verdict"], info["end"]
                return

    async def _step(self, message: Any) -> tuple[Any, ...]:
        deadline = asyncio.timeout(self.limits.turn_timeout_s)
        try:
            async with deadline:
                return await self._in_thread(lambda: self.env.step(message))
        except TimeoutError:
            if not deadline.expired():
                raise
            if self.env.judging:
                raise VerifierError(
                    f"grading took longer than the turn's {self.limits.turn_timeout_s:g} s; raise turn_timeout_s"
                ) from None
            raise _TurnTimeout from None

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)

    def _out_of_budget(self, end: EndReason) -> None:
        self.trajectory.end = end
        self.trajectory.verdict = Verdict(
            value=0.0, level="no_submission", trust=Trust.RPC, feedback=f"out of {end} before anything was submitted"
        )

    def unscored(self, end: EndReason, error: str) -> Trajectory:
        """Return the trajectory as far as it went, without a value."""
        verdict = Verdict(value=None, level="unscored", trust=Trust.RPC, error=error)
        return replace(self.trajectory, end=end, verdict=verdict, error=error, seconds=time.monotonic() - self.began)
