"""Groups that are sampled while the learner works: nobody waits for the slowest episode, and none is too stale."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from agentgym.errors import RecipeError
from agentgym.policy import Action, TrainableEngine
from agentgym.rollout import Rollouts
from agentgym.sampling import Sampler, derive_seed
from agentgym.task import Task
from agentgym.types import Group, Trajectory
from agentgym_trainers.build import Parts
from agentgym_trainers.collect import Metrics

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Order:
    """One group that is being sampled, or is ready."""

    number: int
    """Counts the run's orders: it names the seeds, so that an order that is begun anew after a kill is the same."""
    task_id: str
    redone: int = 0
    oldest: int | None = None
    """The oldest weights that sampled any of its tokens so far."""
    job: asyncio.Task[Group] | None = None

    def heard(self, action: Action) -> None:
        self.oldest = action.weight_version if self.oldest is None else min(self.oldest, action.weight_version)

    @property
    def ready(self) -> bool:
        return self.job is not None and self.job.done()


class Asynchronous:
    """Keeps groups under way while the learner works, carries episodes over weight updates, and bounds staleness.

    A group's staleness is how many weight updates lie between its oldest token and the weights that train on it. As
    many groups are ordered as can be trained within the bound if none is slower than the others; each step takes the
    first that are ready. A group that can no longer be trained within the bound is cancelled and begun anew, or let
    go after `schedule.redo` times. What was taken is in the step's metrics.

    A checkpoint names the orders that were not trained: a run that goes on begins those anew, with their seeds, from
    its weights. So no task is lost and none is trained twice, though timing decides which groups meet in a step.
    """

    overlaps = True

    def __init__(self, parts: Parts, sampler: Sampler, tasks: Mapping[str, Task]) -> None:
        """Take what to sample with, and from which tasks.

        Raises:
            RecipeError: the engine samples from the learner's own tensors.
        """
        if not parts.engine.owns_weights:
            raise RecipeError(
                f"trainer.schedule.max_staleness: the engine {parts.settings.engine.name!r} samples from the very "
                "tensors that the learner changes; set it to 0, or choose an engine with weights of its own"
            )
        self._parts = parts
        self._engine: TrainableEngine = parts.engine
        self._sampler = sampler
        self._tasks = tasks
        policy, self._schedule = parts.settings.policy, parts.settings.schedule
        self._width = policy.tasks_per_step
        bound = (self._schedule.max_staleness + 1) * self._width
        self._room = min(self._schedule.in_flight or bound, bound)
        self._orders: list[_Order] = []
        self._learning: list[_Order] = []
        self._closing: set[asyncio.Task[Group]] = set()
        self._one_ended = asyncio.Event()
        self._number = 0
        self._counts: Counter[str] = Counter()

    async def next(self, step: int) -> tuple[list[Group], Metrics]:  # noqa: ARG002
        """Return the first groups that are ready and fresh enough; orders name their seeds, not steps."""
        self._fill()
        while len(ready := self._fresh()) < self._width:
            self._one_ended.clear()
            await self._one_ended.wait()
        taken = ready[: self._width]
        self._orders = [one for one in self._orders if one not in taken]
        self._learning = taken
        groups = [one.job.result() for one in taken if one.job is not None]
        return groups, self._metrics(groups)

    async def updated(self, *, last: bool = False) -> None:
        """Give the engine the learner's weights; episodes under way go on, or end where nobody trains on them."""
        if last:
            self._abandon()
        await self._engine.update_weights()
        self._learning = []
        if last:
            return
        self._fresh()
        self._fill()

    def state_dict(self) -> dict[str, Any]:
        """Return the orders that have not been trained yet."""
        orders = [[one.number, one.task_id, one.redone] for one in self._orders]
        return {"number": self._number, "orders": orders}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Order again what was under way."""
        self._number = state["number"]
        self._orders = [_Order(number, task_id, redone) for number, task_id, redone in state["orders"]]

    async def close(self) -> None:
        """Cancel what is under way, and wait until its sandboxes and requests are gone."""
        self._abandon()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _abandon(self) -> None:
        for one in self._orders:
            self._cancel(one)
        self._orders = []

    def _fill(self) -> None:
        """Begin orders until as many are under way as may be."""
        while len(self._orders) + len(self._learning) < self._room:
            self._orders.append(self._new())
        for one in self._orders:
            if one.job is None:
                one.job = asyncio.create_task(self._sample(one))
                one.job.add_done_callback(lambda _: self._one_ended.set())

    def _new(self) -> _Order:
        self._number += 1
        return _Order(self._number - 1, self._sampler.next(1)[0])

    async def _sample(self, order: _Order) -> Group:
        prepared, settings = self._parts.prepared, self._parts.settings
        rollouts = Rollouts(
            prepared.make_training_env,
            self._parts.speaker(self._engine, self._parts.behaviour),
            prepared.recipe.limits,
            on_action=partial(self._heard, order),
            gate=self._parts.gate,
        )
        seed = derive_seed(prepared.recipe.seed, "order", order.number, order.redone)
        (group,) = await rollouts.run_guided(
            [self._tasks[order.task_id]],
            prepared.guidance,
            size=settings.policy.attempts,
            seed=seed,
            spare=self._schedule.spare_attempts,
        )
        return group

    def _fresh(self) -> list[_Order]:
        """Return what is ready, in the order in which it was begun, after what is too stale was begun anew."""
        for one in list(self._orders):
            if one.ready and one.job is not None:
                group = one.job.result()  # raises what stopped it
                one.oldest = oldest_version(group.trajectories)
            self._renew(one)
        self._fill()
        return [one for one in self._orders if one.ready]

    def _heard(self, order: _Order, action: Action) -> None:
        """Note which weights spoke; a group that they make too stale is played no further."""
        order.heard(action)
        if order in self._orders:  # else it is cancelled already, and ends
            self._renew(order)
            self._fill()

    def _renew(self, order: _Order) -> None:
        """Begin a group anew that can no longer be trained within the bound."""
        oldest = order.oldest
        if oldest is not None and self._engine.weight_version - oldest > self._schedule.max_staleness:
            self._cancel(order)
            self._orders[self._orders.index(order)] = self._anew(order)

    def _anew(self, order: _Order) -> _Order:
        self._counts["stale"] += 1
        if order.redone < self._schedule.redo:
            return _Order(order.number, order.task_id, order.redone + 1)
        self._counts["given_up"] += 1
        logger.warning("task let go: its groups were too stale %d times task=%s", order.redone + 1, order.task_id)
        return self._new()

    def _cancel(self, order: _Order) -> None:
        if order.job is None:
            return
        order.job.cancel()
        self._closing.add(order.job)
        order.job.add_done_callback(self._ended)

    def _ended(self, job: asyncio.Task[Group]) -> None:
        self._closing.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            logger.warning("a group that was cancelled failed: %s", error)

    def _metrics(self, groups: Sequence[Group]) -> Metrics:
        version = self._engine.weight_version
        attempts = [one for group in groups for one in group.trajectories]
        ages = [version - oldest for one in attempts if (oldest := oldest_version([one])) is not None]
        counts, self._counts = self._counts, Counter()
        cut = sum(group.cut for group in groups)
        started = sum(len(group.ended) for group in groups) + cut
        return {
            "schedule/staleness": sum(ages) / max(1, len(ages)),
            "schedule/staleness_max": float(max(ages, default=0)),
            "schedule/carried": sum(len(_versions(one)) > 1 for one in attempts) / len(attempts),
            "schedule/groups_stale": float(counts["stale"]),
            "schedule/groups_given_up": float(counts["given_up"]),
            "schedule/attempts_cut": cut / started,
            "schedule/in_flight": float(len(self._orders)),
        }


def oldest_version(trajectories: Sequence[Trajectory]) -> int | None:
    """Return the oldest weights that sampled any token of these attempts; None if nothing was sampled."""
    return min((version for one in trajectories for version in _versions(one)), default=None)


def _versions(one: Trajectory) -> set[int]:
    return {turn.weight_version for turn in one.turns}
