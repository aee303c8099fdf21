"""Where a step's groups come from. Here: sampled on the spot, from the weights that they will change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentgym.errors import RecipeError
from agentgym.rollout import Rollouts
from agentgym.sampling import Sampler, derive_seed
from agentgym.task import Task
from agentgym.types import Group
from agentgym_trainers.build import Parts
from agentgym_trainers.chat import ChatFormat

Metrics = dict[str, float]


class Collector(Protocol):
    """Gives every step its groups."""

    overlaps: bool
    """Whether groups are sampled while the learner works, which then needs a thread of its own."""

    async def next(self, step: int) -> tuple[list[Group], Metrics]:
        """Return the groups to train on at a step, and what there is to say about how they came."""
        ...

    async def updated(self) -> None:
        """Sample from the learner's new weights from here on."""
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


def refuse_no_room(groups: Sequence[Group], chat: ChatFormat, context_length: int) -> None:
    """Refuse to go on where no attempt had room for a turn: from such steps nothing is learned, however many follow.

    Args:
        groups: of one step.
        chat: that rendered their prompts.
        context_length: in tokens.

    Raises:
        RecipeError: every attempt's prompt fills the context.
    """
    attempts = [one for group in groups for one in group.trajectories]
    if not attempts or any(one.turns or one.end != "context" for one in attempts):
        return
    tokens, name = min((sum(len(ids) for ids, _ in chat.prompt(one.prompt, ())), one.task_id) for one in attempts)
    raise RecipeError(
        f"wanted room for a turn, found none in {len(attempts)} attempts: the shortest prompt, of {name!r}, takes "
        f"{tokens} tokens before any tools are described, and the context has {context_length}; raise "
        "trainer.model.context_length, or choose tasks with shorter prompts"
    )


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

    async def updated(self) -> None:
        """Tell the engine; nothing is under way."""
        await self._parts.engine.update_weights()

    def state_dict(self) -> dict[str, Any]:
        """Nothing is under way between steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing was under way."""

    async def close(self) -> None:
        """Nothing is under way."""
