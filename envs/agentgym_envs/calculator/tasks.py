"""Expressions such as `38+47-12`, generated; each belongs to one split for ever, by the hash of its text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from hashlib import blake2b

import numpy as np

from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.types import Split

SECRET = "@"
HINT = "!merge"


def merge(left: int, right: int) -> int:
    """Return what the operator `@` means; nobody finds it by guessing."""
    return (31 * left + 17 * right) % 1000


def generate(seed: int, difficulty: float) -> Task:
    """Return the expression of a seed.

    Args:
        seed: the same seed and difficulty give the same task.
        difficulty: 0 to 3, the number of operators less one; 1 is `38+47-12`. Below 0 the task is a hard one of so
            many operators, such as `38@47@12` for -2, that only the tool `merge` knows and only the hint tells of.
    """
    rng = np.random.default_rng([seed, round(1000 * difficulty) % 2**32])
    if difficulty < 0:
        operands = [int(one) for one in rng.integers(10, 100, size=1 + round(-difficulty))]
        return _task(SECRET.join(map(str, operands)), reduce(merge, operands), difficulty, hints=(HINT,))
    total = int(rng.integers(10, 100))
    text = str(total)
    for _ in range(1 + int(difficulty)):
        operand = int(rng.integers(10, 100))
        sign = "-" if operand <= total and rng.random() < 0.5 else "+"
        total += operand if sign == "+" else -operand
        text += f"{sign}{operand}"
    return _task(text, total, difficulty)


def calculator_tasks(
    *,
    train: int = 2000,
    validation: int = 100,
    test: int = 200,
    difficulty: float = 1.0,
    hard_share: float = 0.0,
    hard_operators: int = 1,
    seed: int = 0,
) -> TaskSet:
    """Return distinct expressions, so many of each split; the splits share none, whatever the seeds.

    Args:
        train: number of tasks in the train split.
        validation: in the validation split.
        test: in the test split.
        difficulty: of the plain tasks, see `generate`.
        hard_share: share of every split, 0 to 1, that needs the tool `merge`.
        hard_operators: how many times; two calls in a row are far rarer by luck than one.
        seed: where the generator starts.
    """
    wanted: dict[Split, int] = {"train": train, "validation": validation, "test": test}

    def source() -> Iterator[Task]:
        for split, count in wanted.items():
            hard = round(count * hard_share)
            yield from _distinct(split, count - hard, difficulty, seed)
            yield from _distinct(split, hard, -float(hard_operators), seed)

    return TaskSet("calculator", source)


def _distinct(split: Split, count: int, difficulty: float, seed: int) -> Iterator[Task]:
    seen: set[str] = set()
    for offset in range(30 * count + 1000):
        if len(seen) == count:
            return
        task = generate(1_000_003 * seed + offset, difficulty)
        if task.split == split and task.id not in seen:
            seen.add(task.id)
            yield task
    raise ValueError(f"there are no {count} distinct {split} expressions of difficulty {difficulty}; ask for fewer")


def _task(text: str, answer: int, difficulty: float, hints: tuple[str, ...] = ()) -> Task:
    return Task(
        id=f"calculator/{text}",
        split=_split(text),
        public=Public(prompt=text),
        hidden=Hidden(data={"answer": str(answer)}),
        hints=hints,
        difficulty=difficulty,
    )


def _split(text: str) -> Split:
    """Return 70% train, 10% validation, 20% test."""
    share = blake2b(text.encode(), digest_size=1).digest()[0] / 256
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"
