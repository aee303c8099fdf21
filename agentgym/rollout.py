"""The one async loop: many episodes at once, each in its own thread, with budgets, deadlines and error classes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import Field
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from agentgym.env import AgentEnv, info_signals
from agentgym.errors import CapabilityError, InfrastructureError, RecipeError, VerifierError
from agentgym.guidance import Guidance, RolloutRequest
from agentgym.policy import BudgetExceeded, Episode, Policy, PolicySession
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.types import EndReason, Group, Record, Trajectory, Trust, Turn, Verdict

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Limits(Record):
    """Budgets of an episode, and how many run at once. Running out of a budget is the agent's failure, scored 0."""

    max_tokens_per_turn: Annotated[int, Field(ge=1)] = 256
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Sampled tokens per episode."""
    turn_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """One environment step, without grading."""
    episode_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    concurrency: Annotated[int, Field(ge=1)] = 64
    retries: Annotated[int, Field(ge=0)] = 2
    """Of infrastructure failures only."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 0.2
    """Scale of the random exponential wait between retries."""
    waves: bool = False
    """Start the next episodes only when all of the last ones ended: needed for bit-reproducible batches."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    request: RolloutRequest
    index: int

    @property
    def seed(self) -> int:
        return derive_seed(self.request.seed, self.request.task.id, self.index)

    @property
    def session(self) -> str:
        return f"{self.request.task.id}#{self.request.seed}#{self.index}"


class Rollouts:
    """Runs episodes of one kind of environment with one policy.

    Every failure is one of four: the agent's (scored 0), the infrastructure's (retried, then unscored), the
    verifier's (unscored), or a bug in an environment (unscored, logged with its traceback).
    """

    def __init__(
        self,
        make_env: Callable[[], AgentEnv],
        policy: Policy,
        limits: Limits | None = None,
        on_done: Callable[[Trajectory], None] | None = None,
    ) -> None:
        self.make_env = make_env
        self.policy = policy
        self.limits = limits or Limits()
        self.on_done = on_done

    async def run(self, requests: Sequence[RolloutRequest]) -> list[Group]:
        """Run every attempt of every request; one group per request, in order.

        Cancelling this call ends every episode and leaves no sandbox behind.
        """
        attempts = [_Attempt(request, index) for request in requests for index in range(request.n)]
        size = self.limits.concurrency
        pool = ThreadPoolExecutor(max_workers=max(1, min(size, len(attempts))), thread_name_prefix="episode")
        try:
            waves = range(0, len(attempts), size) if self.limits.waves else [0]
            width = size if self.limits.waves else len(attempts)
            done = [one for start in waves for one in await self._gather(attempts[start : start + width], pool)]
        finally:
            # Without waiting: a step that hangs must not hold the event loop; its sandbox is closed already.
            pool.shutdown(wait=False, cancel_futures=True)
        remaining = iter(done)
        return [
            Group(request.task.id, [next(remaining) for _ in range(request.n)], guided=request.hint is not None)
            for request in requests
        ]

    async def run_guided(self, tasks: Iterable[Task], guidance: Guidance, *, size: int, seed: int) -> list[Group]:
        """Run a group of `size` attempts per task, in as many rounds as the guidance plans."""
        chosen = list(tasks)
        history: list[list[Group]] = [[] for _ in chosen]
        active = list(range(len(chosen)))
        while active:
            plans = {
                index: guidance.plan(chosen[index], history[index], size=size, seed=derive_seed(seed, index))
                for index in active
            }
            groups = iter(await self.run([request for plan in plans.values() for request in plan]))
            for index, plan in plans.items():
                history[index] += [next(groups) for _ in plan]
            active = [index for index, plan in plans.items() if plan]
        return [_numbered(guidance.merge(rounds)) for rounds in history]

    async def _gather(self, attempts: Iterable[_Attempt], pool: ThreadPoolExecutor) -> list[Trajectory]:
        gate = asyncio.Semaphore(self.limits.concurrency)

        async def one(attempt: _Attempt) -> Trajectory:
            async with gate:
                trajectory = await self._attempt(attempt, pool)
            if self.on_done:
                self.on_done(trajectory)
            return trajectory

        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(one(attempt)) for attempt in attempts]
        except ExceptionGroup as errors:  # what stops one episode stops all, and is told once
            raise errors.exceptions[0] from None
        return [task.result() for task in running]

    async def _attempt(self, attempt: _Attempt, pool: ThreadPoolExecutor) -> Trajectory:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(InfrastructureError),
            stop=stop_after_attempt(self.limits.retries + 1),
            wait=wait_random_exponential(multiplier=self.limits.retry_wait_s, max=10),
        )
        episode: _Running | None = None
        try:
            async for trial in retrying:
                with trial:
                    episode = _Running(self, attempt, pool)
                    return await episode.run()
            raise AssertionError("every trial returns or raises")
        except RetryError as failed:
            error: BaseException | None = failed.last_attempt.exception()
            logger.warning("episode unscored task=%s reason=%s", attempt.request.task.id, error)
            end: EndReason = "infrastructure"
        except VerifierError as found:
            error, end = found, "verifier"
        except (CapabilityError, RecipeError):  # every episode would fail the same way: refuse instead of running on
            raise
        except Exception as found:
            if episode is None:  # the environment or the policy could not even be built
                raise
            logger.exception("an environment raised task=%s", attempt.request.task.id)
            error, end = found, "error"
        if episode is None:
            raise InfrastructureError(f"no episode of {attempt.request.task.id!r} could begin: {error}") from error
        return episode.unscored(end, f"{type(error).__name__}: {error}")


class _TurnTimeout(Exception):  # noqa: N818 -- a signal, not an error
    """One environment step outlasted its budget."""


class _Running:
    """One episode."""

    def __init__(self, rollouts: Rollouts, attempt: _Attempt, pool: ThreadPoolExecutor) -> None:
        self.limits = rollouts.limits
        self.attempt = attempt
        self.pool = pool
        self.env = rollouts.make_env()
        self.began = time.monotonic()
        self.sampled = 0
        request = attempt.request
        self.session: PolicySession = rollouts.policy.session(
            Episode(
                session=attempt.session,
                task_id=request.task.id,
                seed=attempt.seed,
                tools=tuple(one.schema for one in self.env.tools.values()),
                max_tokens_per_turn=self.limits.max_tokens_per_turn,
                max_tokens=self.limits.max_tokens,
            )
        )
        self.trajectory = Trajectory(
            task_id=request.task.id,
            split=request.task.split,
            prompt=(),
            turns=[],
            tokens=self.session.tokens,
            seed=attempt.seed,
            attempt=attempt.index,
            hint=request.hint,
            off_policy=request.off_policy,
        )

    async def run(self) -> Trajectory:
        deadline = asyncio.timeout(self.limits.episode_timeout_s)
        try:
            async with deadline:
                await self._play()
        except _TurnTimeout:
            self._out_of_budget("time")
        except TimeoutError:
            if not deadline.expired():  # somebody else's timeout, such as a socket's
                raise
            self._out_of_budget("time")
        except BudgetExceeded as spent:
            self._out_of_budget(spent.reason)
        finally:
            self.session.close()
            # Not through the pool: a step that hangs holds its thread until its sandbox is gone.
            await asyncio.shield(asyncio.to_thread(self.env.close))
        self.trajectory.seconds = time.monotonic() - self.began
        return self.trajectory

    async def _play(self) -> None:
        request = self.attempt.request
        options = {"task": request.task, "hint": request.hint}
        messages, _ = await self._in_thread(lambda: self.env.reset(seed=self.attempt.seed, options=options))
        self.trajectory.prompt = messages
        while True:
            began = time.monotonic()
            action = await self.session.act(messages)
            if self.session.tokens is None and action.sampled:  # an endpoint's own count; elsewhere the buffer knows
                self.sampled += action.sampled
                self.trajectory.extra = {**self.trajectory.extra, "sampled_tokens": self.sampled}
            step = await self._step(action.message)
            messages, _, terminated, truncated, info = step
            turn = Turn(action.message, messages, info_signals(info), action.stop_reason, action.weight_version)
            turn.seconds = time.monotonic() - began
            self.trajectory.turns.append(turn)
            if terminated or truncated:
                self.session.observe(messages)
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


def _numbered(group: Group) -> Group:
    for index, one in enumerate(group.trajectories):
        one.attempt = index
    return group
