"""Scripted demonstrations for a supervised warm start: played in the environment as text, then replayed as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from agentgym.env import AgentEnv
from agentgym.errors import RecipeError
from agentgym.guidance import RolloutRequest
from agentgym.policy import BudgetExceeded, Episode, ScriptedPolicy, ToolSchema
from agentgym.rollout import Limits, Rollouts
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.tokens import TokenBuffer
from agentgym.types import Trajectory
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.scripted import DemonstrationPolicy


async def demonstrate(
    make_env: Callable[[], AgentEnv],
    tasks: Sequence[Task],
    limits: Limits,
    *,
    hinted_share: float,
    seed: int,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Play one demonstration per task.

    Args:
        make_env: builds an environment; its `demonstration` and `oracle` write the scripts.
        tasks: what to demonstrate.
        limits: budgets in time; a script is never cut by tokens.
        hinted_share: share of the tasks with hints whose demonstration shows the strongest hint and follows the oracle.
        seed: every random choice derives from it.
        on_done: called after each demonstration.
    """
    author = make_env()
    known = {task.id: task for task in tasks}
    hinted = [task for task in tasks if task.hints and _chance(seed, task.id) < hinted_share]
    chosen = {task.id for task in hinted}

    def plain(episode: Episode) -> Sequence[str]:
        return author.demonstration(known[episode.task_id], np.random.default_rng(episode.seed))

    def expert(episode: Episode) -> Sequence[str]:
        return author.oracle(known[episode.task_id])

    requests = [RolloutRequest(task, 1, seed) for task in tasks if task.id not in chosen]
    groups = await Rollouts(make_env, ScriptedPolicy(plain), limits, on_done).run(requests)
    requests = [RolloutRequest(task, 1, seed, hint=task.hints[-1]) for task in hinted]
    groups += await Rollouts(make_env, ScriptedPolicy(expert), limits, on_done).run(requests)
    return [one for group in groups for one in group.trajectories]


async def tokenise(
    trajectories: Iterable[Trajectory],
    chat: ChatFormat,
    context_length: int,
    tools: Callable[[str], Sequence[ToolSchema]] = lambda _: (),
) -> list[Trajectory]:
    """Return text-only trajectories with the tokens that a policy would have sampled to act so.

    Args:
        trajectories: as `demonstrate` returns them.
        chat: how messages become tokens.
        context_length: in tokens.
        tools: the tools that a policy is told of, by the id of the task.

    Raises:
        RecipeError: one of them does not fit into the context.
    """
    scripts: Mapping[str, Trajectory] = {str(index): one for index, one in enumerate(trajectories)}
    policy = DemonstrationPolicy(
        chat, lambda episode: [turn.action.content for turn in scripts[episode.session].turns], context_length
    )
    result = []
    for name, one in scripts.items():
        episode = Episode(name, one.task_id, one.seed, tuple(tools(one.task_id)), context_length, context_length)
        session = policy.session(episode)
        messages = one.prompt
        for turn in one.turns:
            try:
                action = await session.act(messages)
            except BudgetExceeded as spent:
                raise _too_long(one, context_length) from spent
            if action.stop_reason == "length":  # cut, it would teach to stop in the middle
                raise _too_long(one, context_length)
            messages = turn.observation
        session.close()
        result.append(replace(one, tokens=session.tokens))
    return result


def _too_long(one: Trajectory, context_length: int) -> RecipeError:
    return RecipeError(
        f"the demonstration of {one.task_id!r} is longer than the context of {context_length} tokens; "
        "raise trainer.model.context_length"
    )


def train_context(trajectory: Trajectory) -> TokenBuffer:
    """Return the tokens to train on: without hints if the attempt is trained off-policy, else as they were read.

    An attempt that was lost before its policy heard of it has none.

    Raises:
        HeldOutError: if the task is not in the train split.
        ValueError: if the attempt counts and has no token ids.
    """
    if trajectory.tokens is None and not trajectory.scored:
        return TokenBuffer()
    bare = trajectory.training_tokens()
    return bare if trajectory.off_policy != "none" or trajectory.tokens is None else trajectory.tokens


def texts_of(trajectories: Iterable[Trajectory]) -> list[str]:
    """Return every message's text, for a tokenizer to learn from."""
    texts = []
    for one in trajectories:
        messages = [*one.prompt, *(message for turn in one.turns for message in (turn.action, *turn.observation))]
        texts += [text for message in messages for text in (message.content, message.guidance) if text]
    return texts


def _chance(seed: int, task_id: str) -> float:
    return derive_seed(seed, "hinted", task_id) / (1 << 63)
