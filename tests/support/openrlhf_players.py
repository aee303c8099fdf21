"""A player whose words depend on what it read and on the seed alone: as an engine, and as OpenRLHF's rollout worker.

So the same recipe can be rolled out natively and through OpenRLHF's contract, token for token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from agentgym import registry
from agentgym.errors import VerifierError
from agentgym.policy import Generation, Sampling
from agentgym.recipe import Recipe
from agentgym.sampling import derive_seed
from agentgym.task import Hidden, Public, Task
from agentgym.types import Message, Submission
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks
from agentgym_trainers.bridges.openrlhf.executor import RecipeExecutor
from agentgym_trainers.bridges.openrlhf.rows import AgentSettings, Row, digest
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.tokenizer import build_tokenizer

ENV = "tests/Exercises-v0"
_EXPRESSION = re.compile(r"<\|user\|>([\d+@-]+)")


class Exercises(CalculatorEnv):
    """The calculator with hard tasks.

    Of four attempts, `unlucky` are lost by the grader if they hand something in, and `wordy` begin with a long prompt.
    """

    tasks = calculator_tasks(train=24, validation=4, test=6, hard_share=0.5)

    def __init__(self, unlucky: int = 0, wordy: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self._unlucky = unlucky
        self._wordy = wordy
        self._seed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._seed = seed or 0
        messages, info = super().reset(seed=seed, options=options)
        if self._seed % 4 < self._wordy:
            messages = (*messages, Message(role="user", content="so to speak" * 20))
        return messages, info

    def grade(self, task: Task, submission: Submission) -> bool:
        if self._seed % 4 < self._unlucky:
            raise VerifierError("the grader lost its papers")
        return super().grade(task, submission)


def exercises(**sections: Any) -> Recipe:
    """Return a recipe for the exercises; sections replace the defaults, the trainer's one by one."""
    if ENV not in registry.names("envs"):
        registry.register(ENV, Exercises)
    trainer = {
        "name": "native",
        "model": {"vocab_size": 320, "context_length": 160},
        "sft": {"steps": 0},
        "policy": {"tasks_per_step": 6, "attempts": 4},
    }
    base: dict[str, Any] = {
        "name": "exercises",
        "environment": {"id": ENV, "options": {"max_turns": 3}},
        "limits": {"max_tokens_per_turn": 24, "max_tokens": 80, "retry_wait_s": 0.0},
    }
    return Recipe.parse({**base, **sections, "trainer": {**trainer, **sections.get("trainer", {})}})


def make_tokenizer() -> Any:
    """Return the tokenizer of all these tests."""
    return build_tokenizer(["```calc\n12+34", "```answer\n46"] * 3, vocab_size=320)


class Player:
    """Solves what it can, half of the time; otherwise blunders, or rambles until it is cut."""

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        self._author = CalculatorEnv()

    def speak(self, prompt_ids: Sequence[int], seed: int, limit: int) -> tuple[list[int], list[float], str]:
        """Return ids, logprobs and why it ended."""
        rng = np.random.default_rng([seed, len(prompt_ids), sum(prompt_ids)])
        ids = self._ids(self._chat.tokenizer.decode(prompt_ids), rng)
        cut = ids[:limit]
        logprobs = [round(float(one), 4) for one in -rng.random(len(cut))]
        return cut, logprobs, "stop" if len(cut) == len(ids) else "length"

    def _ids(self, heard: str, rng: np.random.Generator) -> list[int]:
        chance = rng.random()
        if chance < 0.1:
            return [int(one) for one in rng.integers(100, 200, size=60)]
        found = _EXPRESSION.search(heard)
        text = found[1] if found else "1+1"
        if chance < 0.3:
            return self._chat.answer(f"```answer\n{rng.integers(100)}")
        if "@" in text and "!merge" not in heard:
            return self._chat.answer(f"```calc\n{text}")
        task = Task(id="exercise", split="train", public=Public(prompt=text), hidden=Hidden(data={"answer": "?"}))
        plan = self._author.oracle(task)
        return self._chat.answer(plan[min(heard.count("<|tool|>"), len(plan) - 1)])


class PlayerEngine:
    """The player as an engine of ours."""

    weight_version = 0

    def __init__(self, player: Player) -> None:
        self._player = player

    def open(self, session: str) -> None:
        """Nothing is kept."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        ids, logprobs, reason = self._player.speak(prompt_ids, sampling.seed, sampling.limit)
        return Generation(ids, logprobs, "stop" if reason == "stop" else "length")

    def release(self, session: str) -> None:
        """Nothing is kept."""

    async def update_weights(self, weights: Any = None, version: int | None = None) -> None:
        """It never learns."""

    async def close(self) -> None:
        """Nothing is kept."""


class PlayerWorker:
    """The player as OpenRLHF's rollout worker; it remembers the parameters that it was asked with."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self.asked: list[Any] = []

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        self.asked.append(sampling_params)
        await asyncio.sleep(0)
        ids, logprobs, reason = self._player.speak(prompt_token_ids, sampling_params.seed, sampling_params.max_tokens)
        told = [{token: SimpleNamespace(logprob=one)} for token, one in zip(ids, logprobs, strict=True)]
        made = SimpleNamespace(
            token_ids=ids,
            text="",
            finish_reason=reason,
            logprobs=told if sampling_params.logprobs is not None else None,
        )
        return SimpleNamespace(outputs=[made])


class BrokenWorker:
    """A worker whose engine has died."""

    async def generate(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("EngineDeadError")


def params(**changes: Any) -> SimpleNamespace:
    """Return what OpenRLHF builds for a batch."""
    made = {
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 24, "min_tokens": 1,
        "skip_special_tokens": False, "logprobs": 1,
    }  # fmt: skip
    return SimpleNamespace(**made | changes)


def settings(recipe: Recipe, **changes: Any) -> AgentSettings:
    """Return what the agent file gives an executor."""
    return AgentSettings(recipe=recipe.model_dump(mode="json"), **changes)


def training_row(recipe: Recipe, task: str, number: int = 0, step: int = 0, **changes: Any) -> Row:
    """Return the row that the launcher writes for a task of a step."""
    given = {
        "recipe": digest(recipe), "environment": recipe.environment.id, "task": task, "split": "train",
        "purpose": "train", "seed": derive_seed(recipe.seed, "rollout", step), "number": number,
    }  # fmt: skip
    return Row.model_validate(given | changes)


def evaluation_row(recipe: Recipe, task: str, **changes: Any) -> Row:
    """Return the row that the launcher writes for a held-out task."""
    return training_row(recipe, task, split="test", purpose="evaluate", seed=recipe.seed, **changes)


async def ask(executor: RecipeExecutor, row: Row, worker: Any, tokenizer: Any, **changes: Any) -> list[dict[str, Any]]:
    """Ask for the samples of a row as OpenRLHF's rollout worker does: together, all with the same objects."""
    size = changes.pop("samples", 4 if row.purpose == "train" else 1)
    max_length, given = changes.pop("max_length", 160), changes.pop("given", None) or params(**changes)
    calls = [
        executor.execute(
            prompt=row.input, label=row.label, sampling_params=given, max_length=max_length,
            hf_tokenizer=tokenizer, llm_engine=worker, images=None,
        )
        for _ in range(size)
    ]  # fmt: skip
    return await asyncio.gather(*calls)
