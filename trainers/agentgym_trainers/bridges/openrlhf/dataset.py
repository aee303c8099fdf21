"""The files that OpenRLHF reads: a row per group of attempts, and the agent that plays them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentgym.recipe import Prepared, Recipe
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym.task import Task
from agentgym_trainers.bridges.openrlhf.options import Settings
from agentgym_trainers.bridges.openrlhf.rows import Row, digest


def training_rows(prepared: Prepared, settings: Settings) -> Iterator[Row]:
    """Yield the tasks of every step, in the native trainer's order and with its seeds."""
    recipe, policy = prepared.recipe, settings.policy
    name = digest(recipe)
    tasks = {task.id: task for task in prepared.train}
    sampler = ShuffledSampler(list(tasks), derive_seed(recipe.seed, "sampler"))
    for step in range(settings.sft.steps, settings.sft.steps + policy.steps):
        seed = derive_seed(recipe.seed, "rollout", step)
        for number, chosen in enumerate(sampler.next(policy.tasks_per_step)):
            yield _row(recipe, name, tasks[chosen], seed, number)


def evaluation_rows(prepared: Prepared) -> Iterator[Row]:
    """Yield the held-out tasks."""
    recipe, name = prepared.recipe, digest(prepared.recipe)
    for task in prepared.held_out:
        yield Row(
            recipe=name, environment=recipe.environment.id, task=task.id, split=task.split, purpose="evaluate",
            seed=recipe.seed,
        )  # fmt: skip


def _row(recipe: Recipe, name: str, task: Task, seed: int, number: int) -> Row:
    return Row(
        recipe=name, environment=recipe.environment.id, task=task.id, split=task.split, purpose="train",
        seed=seed, number=number,
    )  # fmt: skip


def write(path: Path, rows: Iterable[Row]) -> int:
    """Write JSON lines, and return how many."""
    lines = [json.dumps(row.columns, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)
