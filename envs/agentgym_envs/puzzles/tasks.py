"""Tasks of puzzles: by family, difficulty and seed; a task's split follows from what the agent sees."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np

from agentgym.errors import TaskError, UnknownNameError
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym_envs.code.splits import digest_of, split_of
from agentgym_envs.puzzles.countdown import COUNTDOWN
from agentgym_envs.puzzles.equations import EQUATIONS
from agentgym_envs.puzzles.family import EASIEST, HARDEST, Family
from agentgym_envs.puzzles.path import PATH
from agentgym_envs.puzzles.sat import SAT
from agentgym_envs.puzzles.squares import LATIN, SUDOKU
from agentgym_envs.puzzles.transforms import TRANSFORMS

FAMILIES: dict[str, Family] = {one.name: one for one in (SAT, LATIN, SUDOKU, PATH, COUNTDOWN, EQUATIONS, TRANSFORMS)}
MIXED = "mixed"
"""All families in turn."""
_PATIENCE = 50


def generate(family: str, seed: int, difficulty: float = 2.0) -> Task:
    """Return one puzzle; equal arguments give equal tasks.

    Raises:
        UnknownNameError: there is no such family.
        TaskError: the difficulty is not on the dial.
    """
    known = find(family)
    if not EASIEST <= difficulty <= HARDEST:
        raise TaskError(f"wanted a difficulty from {EASIEST:g} to {HARDEST:g}, found {difficulty:g}")
    rng = np.random.default_rng((zlib.crc32(family.encode()), seed, round(difficulty * 1000)))
    made = known.make(rng, difficulty)
    public = Public(prompt=made.prompt, data={"family": family, "puzzle": dict(made.data)})
    name = digest_of(public)
    start = (f"{known.plan} To begin with: {made.start}.",) if made.start else ()
    return Task(
        id=f"{family}/{name}",
        split=split_of(name),
        public=public,
        hidden=Hidden(data=dict(made.hidden), reference={"answer": made.answer}),
        hints=(known.plan, *start),
        difficulty=difficulty,
    )


def find(family: str) -> Family:
    """Return a family by its name.

    Raises:
        UnknownNameError: there is none.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family of puzzles", family, (*FAMILIES, MIXED))
    return FAMILIES[family]


def puzzle_tasks(family: str, *, count: int = 1000, difficulty: float = 2.0, seed: int = 0) -> TaskSet:
    """Return `count` different puzzles, of one family or of all in turn; nothing is made before it is needed.

    Raises:
        UnknownNameError: there is no such family.
        TaskError: the difficulty is not on the dial.
    """
    names = [*FAMILIES] if family == MIXED else [find(family).name]
    generate(names[0], 0, difficulty)
    return TaskSet(family, partial(_tasks, names, count, difficulty, seed))


def _tasks(names: list[str], count: int, difficulty: float, seed: int) -> Iterator[Task]:
    seen: set[str] = set()
    attempt = 0
    while len(seen) < count:
        task = generate(names[len(seen) % len(names)], seed * 1_000_003 + attempt, difficulty)
        attempt += 1
        if task.id not in seen:
            seen.add(task.id)
            yield task
        elif attempt > _PATIENCE * count:
            raise TaskError(f"difficulty {difficulty:g} has fewer than {count} different puzzles; ask for fewer")
