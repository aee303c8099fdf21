"""The one async loop: many episodes at once, each in its own thread, with budgets, deadlines and error classes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from agentgym.env import AgentEnv
from agentgym.episode import Attempt, Limits, RunningEpisode
from agentgym.errors import CapabilityError, InfrastructureError, RecipeError, VerifierError
from agentgym.guidance import Guidance, RolloutRequest
from agentgym.policy import Action, Policy
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.types import EndReason, Group, Trajectory

__all__ = ["Limits", "Rollouts"]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


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
        *,
        on_action: Callable[[Action], None] | None = None,
        gate: asyncio.Semaphore | None = None,
    ) -> None:
        """Say what plays, and within which limits.

        Args:
            make_env: builds an environment for each episode.
            policy: what acts.
            limits: budgets, and how many episodes run at once.
            on_done: told of every episode that ended.
            on_action: told of every action as soon as it is sampled.
            gate: bounds how many episodes run at once, in place of `limits.concurrency` for each call: for several
                calls that run at the same time.
        """
        self.make_env = make_env
        self.policy = policy
        self.limits = limits or Limits()
        self.on_done = on_done
        self.on_action = on_action
        self._gate = gate

    async def run(self, requests: Sequence[RolloutRequest]) -> list[Group]:
        """Run every attempt of every request; one group per request, in order.

        Cancelling this call ends every episode and leaves no sandbox behind.
        """
        attempts = [[Attempt(request, index) for index in range(request.n + request.spare)] for request in requests]
        count = sum(len(one) for one in attempts)
        pool = ThreadPoolExecutor(max(1, min(self.limits.concurrency, count)), thread_name_prefix="episode")
        gate = self._gate or asyncio.Semaphore(self.limits.concurrency)
        try:
            if any(request.spare for request in requests):
                jobs = [self._first(request, own, gate, pool) for request, own in zip(requests, attempts, strict=True)]
                return await _all(jobs)
            done = await self._in_waves([one for own in attempts for one in own], gate, pool)
        finally:
            # Without waiting: a step that hangs must not hold the event loop; its sandbox is closed already.
            pool.shutdown(wait=False, cancel_futures=True)
        remaining = iter(done)
        return [
            Group(request.task.id, [next(remaining) for _ in range(request.n)], guided=request.hint is not None)
            for request in requests
        ]

    async def run_guided(
        self,
        tasks: Iterable[Task],
        guidance: Guidance,
        *,
        size: int,
        seed: int,
        spare: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> list[Group]:
        """Run a group of `size` attempts per task, in as many rounds as the guidance plans.

        Seeds derive from the tasks' numbers, by default 0, 1, 2, …; whoever runs a part of a batch gives theirs in it.

        Each round starts `spare` attempts more for each task than it needs, see `RolloutRequest`.
        """
        chosen = list(tasks)
        history: list[list[Group]] = [[] for _ in chosen]
        active = list(range(len(chosen)))
        while active:
            plans = {
                index: guidance.plan(
                    chosen[index],
                    history[index],
                    size=size,
                    seed=derive_seed(seed, index if numbers is None else numbers[index]),
                )
                for index in active
            }
            groups = iter(await self.run([replace(one, spare=spare) for plan in plans.values() for one in plan]))
            for index, plan in plans.items():
                history[index] += [next(groups) for _ in plan]
            active = [index for index, plan in plans.items() if plan]
        return [_finished(guidance.merge(rounds), rounds) for rounds in history]

    async def _in_waves(
        self, attempts: Sequence[Attempt], gate: asyncio.Semaphore, pool: ThreadPoolExecutor
    ) -> list[Trajectory]:
        width = self.limits.concurrency if self.limits.waves else max(1, len(attempts))
        done: list[Trajectory] = []
        for start in range(0, len(attempts), width):
            done += await _all([self._gated(one, gate, pool) for one in attempts[start : start + width]])
        return done

    async def _first(
        self, request: RolloutRequest, attempts: Sequence[Attempt], gate: asyncio.Semaphore, pool: ThreadPoolExecutor
    ) -> Group:
        """Run attempts until as many as the request wants have a verdict, and cancel the rest."""
        running = {asyncio.create_task(self._gated(one, gate, pool)) for one in attempts}
        ended: list[Trajectory] = []
        try:
            while running and sum(one.scored for one in ended) < request.n:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                ended += sorted((task.result() for task in done), key=lambda one: one.attempt)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        ended.sort(key=lambda one: not one.scored)
        kept = sorted(ended[: request.n], key=lambda one: one.attempt)
        lost = [one for one in ended[request.n :] if not one.scored]
        cut = len(attempts) - len(kept) - len(lost)
        return Group(request.task.id, kept, guided=request.hint is not None, cut=cut, replaced=lost)

    async def _gated(self, attempt: Attempt, gate: asyncio.Semaphore, pool: ThreadPoolExecutor) -> Trajectory:
        async with gate:
            trajectory = await self._attempt(attempt, pool)
        if self.on_done:
            self.on_done(trajectory)
        return trajectory

    async def _attempt(self, attempt: Attempt, pool: ThreadPoolExecutor) -> Trajectory:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(InfrastructureError),
            stop=stop_after_attempt(self.limits.retries + 1),
            wait=wait_random_exponential(multiplier=self.limits.retry_wait_s, max=10),
        )
        episode: RunningEpisode | None = None
        try:
            async for trial in retrying:
                with trial:
                    episode = RunningEpisode(attempt, self.make_env(), self.policy, self.limits, pool, self.on_action)
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
            if episode is None or (episode.knows_tools and episode.session is None):
                raise  # the environment or the policy could not even be built
            logger.exception("an environment raised task=%s", attempt.request.task.id)
            error, end = found, "error"
        if episode is None:
            raise InfrastructureError(f"no episode of {attempt.request.task.id!r} could begin: {error}") from error
        return episode.unscored(end, f"{type(error).__name__}: {error}")


async def _all(jobs: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run jobs together; what stops one of them stops all, and is told once."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in jobs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


def _finished(group: Group, rounds: Sequence[Group]) -> Group:
    for index, one in enumerate(group.trajectories):
        one.attempt = index
    kept = {id(one) for one in group.trajectories}
    group.replaced = [one for each in rounds for one in each.ended if id(one) not in kept]
    group.cut = sum(one.cut for one in rounds)
    return group
