"""A bundled recipe, in sandboxes: OpenRLHF's agent, on the launcher's rows, gives the native trainer's samples."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from openrlhf_players import Player, PlayerEngine, PlayerWorker, ask, make_tokenizer, settings

from agentgym import registry
from agentgym.errors import SandboxError
from agentgym.recipe import Prepared, Recipe
from agentgym.rewards import Rewards
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym.types import Group
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.bridges.openrlhf.dataset import training_rows
from agentgym_trainers.bridges.openrlhf.executor import RecipeExecutor
from agentgym_trainers.build import Parts
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.collect import LockStep
from agentgym_trainers.demonstrations import train_context
from agentgym_trainers.world import World

CONTEXT = 2048
CHAT = ChatFormat(make_tokenizer())
OVERRIDES = (
    "guidance={name: guide, options: {ratio: reset, attempts: 2, feedback: true}}",
    "limits.max_tokens_per_turn=400", "limits.max_tokens=1200",
    "trainer.policy.attempts=4", "trainer.policy.tasks_per_step=4",
)  # fmt: skip
"""The player spells byte by byte, so its turns are longer than the profile's."""


class Programmer(Player):
    """Writes the right program, one with other numbers, or rambles."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(CHAT)
        self._prompts = {task.public.prompt: task for task in prepared.train}
        self._env: Any = prepared.make_env()

    def _ids(self, heard: str, rng: np.random.Generator) -> list[int]:
        task = next(one for prompt, one in self._prompts.items() if prompt in heard)
        plan = self._env.oracle(task)
        text = plan[min(heard.count("<|tool|>"), len(plan) - 1)]
        chance = rng.random()
        if chance < 0.15:
            return [int(one) for one in rng.integers(100, 200, size=500)]
        return CHAT.answer(text if chance < 0.25 else re.sub(r"\d", "7", text))


def native(prepared: Prepared, step: int) -> tuple[list[Group], list[Rewards]]:
    """The groups of a step, and what they are worth."""
    trainer = prepared.recipe.trainer_settings()
    parts = Parts(
        prepared, trainer, None, CHAT, CONTEXT, PlayerEngine(Programmer(prepared)), None, [], lambda *_: None, World()  # type: ignore[arg-type]
    )  # fmt: skip
    tasks = {task.id: task for task in prepared.train}
    sampler = ShuffledSampler(list(tasks), derive_seed(prepared.recipe.seed, "sampler"))
    groups, _ = asyncio.run(LockStep(parts, sampler, tasks).next(step))
    return groups, [prepared.scheme(group) for group in groups]


def bridged(recipe: Recipe, prepared: Prepared) -> list[Sequence[dict[str, Any]]]:
    """The samples of the launcher's first step, asked for as OpenRLHF does."""
    trainer = recipe.trainer_settings()
    rows = list(training_rows(prepared, trainer))[: trainer.policy.tasks_per_step]

    async def run() -> list[list[dict[str, Any]]]:
        executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Programmer(prepared))
        given: dict[str, Any] = {"max_length": CONTEXT, "max_tokens": None}
        return await asyncio.gather(*(ask(executor, row, worker, CHAT.tokenizer, **given) for row in rows))

    return list(asyncio.run(run()))


def test_code_grpo_trains_the_same_samples_with_the_same_rewards_and_masks_either_way() -> None:
    try:
        registry.create("sandboxes", "process").check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    own = Recipe.load("code-grpo", OVERRIDES, "tiny").prepare()
    other = Recipe.load("code-grpo", (*OVERRIDES, "trainer.openrlhf.correction=none"), "tiny", "openrlhf")
    groups, rewards = native(own, own.recipe.trainer_settings().sft.steps)
    samples = bridged(other, other.prepare())
    seen, hinted = set(), 0
    for group, price, given in zip(groups, rewards, samples, strict=True):
        assert all(price.keep)
        for one, value, sample in zip(group.trajectories, price.returns, given, strict=True):
            batch = TokenBatch.of([train_context(one)])
            inside = [False] * len(sample["observation_tokens"])
            for start, end in sample["action_ranges"]:
                inside[start:end] = [True] * (end - start)
            assert sample["observation_tokens"] == batch.ids_BL[0].tolist()
            assert inside == batch.sampled_BL[0].tolist()
            assert sample["rollout_log_probs"] == pytest.approx(batch.logp_old_BL[0].tolist())
            assert sample["reward"] == value
            seen.add(value)
            hinted += one.hint is not None
    assert len(seen) > 1
    assert hinted
