"""Where a step's groups come from. Here: sampled on the spot, from the weights that they will change."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentgym.errors import RecipeError
from agentgym.rollout import Rollouts
from agentgym.sampling import Sampler, derive_seed
from agentgym.task import Task
from agentgym.types import Group, Trajectory
from agentgym_trainers.build import Parts
from agentgym_trainers.chat import ChatFormat

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


class Collector(Protocol):
    """Gives every step its groups."""

    overlaps: bool
    """Whether groups are sampled while the learner works, which then needs a thread of its own."""

    async def next(self, step: int) -> tuple[list[Group], Metrics]:
        """Return the groups to train on at a step, and what there is to say about how they came."""
        ...

    async def updated(self, *, last: bool = False) -> None:
        """Sample from the learner's new weights from here on; after the last step, no more to train on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain data, all that is needed to go on from here."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        ...

    async def close(self) -> None:
        """End what is under way."""
        ...


class Room:
    """Watches whether prompts leave any room for a turn: from steps in which none does, nothing is learned."""

    def __init__(self, chat: ChatFormat, context_length: int, steps: int) -> None:
        """Take what prompts are rendered with, the context in tokens, and how many such steps in a row are enough."""
        self._chat = chat
        self._context_length = context_length
        self._steps = steps
        self._found = 0

    def check(self, groups: Sequence[Group]) -> None:
        """Take note of a step.

        Raises:
            RecipeError: this is one more step in which every attempt's prompt filled the context, and the last allowed.
        """
        attempts = [one for group in groups for one in group.trajectories]
        if not attempts or any(one.turns or one.end != "context" for one in attempts):
            self._found = 0
            return
        self._found += 1
        tokens, name = min((self._tokens(one), one.task_id) for one in attempts)
        reason = (
            f"wanted room for a turn, found none in all {len(attempts)} attempts of a step: the shortest prompt, of "
            f"{name!r}, takes {tokens} tokens before any tools are described, and the context has "
            f"{self._context_length}; raise trainer.model.context_length, or choose tasks with shorter prompts"
        )
        if self._found >= self._steps:
            raise RecipeError(reason)
        logger.warning("%s", reason)

    def _tokens(self, attempt: Trajectory) -> int:
        return sum(len(ids) for ids, _ in self._chat.prompt(attempt.prompt, ()))


class LockStep:
    """Samples a step's groups, then lets the learner train: on-policy, and the same bits every time."""

    overlaps = False

    def __init__(self, parts: Parts, sampler: Sampler, tasks: Mapping[str, Task]) -> None:
        """Take what to sample with, and from which tasks."""
        self._parts = parts
        self._sampler = sampler
        self._tasks = tasks

    async def next(self, step: int) -> tuple[list[Group], Metrics]:
        """Roll out the next tasks, each process its share of them."""
        prepared, policy, world = self._parts.prepared, self._parts.settings.policy, self._parts.world
        tasks = [self._tasks[name] for name in self._sampler.next(policy.tasks_per_step)]
        limits = prepared.recipe.limits.model_copy(update={"waves": True})
        speaker = self._parts.speaker(self._parts.engine, self._parts.behaviour)
        rollouts = Rollouts(prepared.make_training_env, speaker, limits)
        seed = derive_seed(prepared.recipe.seed, "rollout", step)
        groups = await rollouts.run_guided(
            world.share(tasks), prepared.guidance, size=policy.attempts, seed=seed,
            numbers=world.share(range(len(tasks))),
        )  # fmt: skip
        return world.gather(groups), {}

    async def updated(self, *, last: bool = False) -> None:  # noqa: ARG002
        """Tell the engine; nothing is under way."""
        await self._parts.engine.update_weights()

    def state_dict(self) -> dict[str, Any]:
        """Nothing is under way between steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing was under way."""

    async def close(self) -> None:
        """Nothing is under way."""
