"""Simple solvers of puzzles with a budget: what a difficulty dial is measured by. None reads the planted solution."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from agentgym.task import Task
from agentgym_envs.code.procedural import STEPS, run
from agentgym_envs.puzzles import countdown, path

Solver = Callable[[Task], str | None]


def puzzle(task: Task) -> Any:
    return task.public.data["puzzle"]


def guess_assignments(task: Task, tries: int = 60) -> str | None:
    """Draw assignments until one satisfies every clause."""
    rng, found = np.random.default_rng(0), puzzle(task)
    for _ in range(tries):
        chosen = np.where(rng.random(found["variables"]) < 0.5, 1, -1) * np.arange(1, found["variables"] + 1)
        held = set(chosen.tolist())
        if all(held & set(clause) for clause in found["clauses"]):
            return " ".join(map(str, chosen.tolist()))
    return None


def squares(task: Task) -> Iterator[list[list[int]]]:
    """Yield every completion of a square, cell by cell; `[]` for each number that was tried."""
    found = puzzle(task)
    rows, (high, wide) = [[*row] for row in found["rows"]], found["box"]
    size = len(rows)
    empty = [(y, x) for y in range(size) for x in range(size) if not rows[y][x]]

    def fits(y: int, x: int, number: int) -> bool:
        if number in rows[y] or any(row[x] == number for row in rows):
            return False
        if not high:
            return True
        top, left = y // high * high, x // wide * wide
        return not any(number in row[left : left + wide] for row in rows[top : top + high])

    def fill(index: int) -> Iterator[list[list[int]]]:
        if index == len(empty):
            yield [[*row] for row in rows]
            return
        y, x = empty[index]
        for number in range(1, size + 1):
            yield []
            if fits(y, x, number):
                rows[y][x] = number
                yield from fill(index + 1)
                rows[y][x] = 0

    return fill(0)


def text(rows: list[list[int]]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)


def backtrack(task: Task, budget: int = 150) -> str | None:
    """Fill a square cell by cell with so many tries of a number."""
    for tried, rows in enumerate(squares(task)):
        if rows:
            return text(rows)
        if tried > budget:
            return None
    return None


def flood(task: Task, budget: int = 25) -> str | None:
    """Walk from the start outwards until so many places are visited."""
    moves, visited = path.shortest(puzzle(task)["rows"])
    return moves if visited <= budget else None


def combine(task: Task, tries: int = 150) -> str | None:
    """Combine the numbers at random until the target comes of it."""
    rng, found = np.random.default_rng(0), puzzle(task)
    for _ in range(tries):
        expression, _ = countdown.combine(rng, [*found["numbers"]])
        try:
            if countdown.evaluate(expression)[0] == found["target"]:
                return expression
        except ZeroDivisionError:
            continue
    return None


def eliminate(task: Task, budget: int = 60) -> str | None:
    """Eliminate unknowns with exact fractions, with so many multiplications at most."""
    rows = [[Fraction(one) for one in row] for row in puzzle(task)["rows"]]
    size, spent = len(rows), 0
    for column in range(size):
        pivot = next(row for row in range(column, size) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column and rows[row][column]:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [one - factor * other for one, other in zip(rows[row], rows[column], strict=True)]
                spent += size + 1
    values = [rows[index][-1] / rows[index][index] for index in range(size)]
    return " ".join(f"{'abcdefgh'[index]}={value}" for index, value in enumerate(values)) if spent <= budget else None


def apply_some(task: Task, depth: int = 3) -> str | None:
    """Apply the functions from the inside out, no more than so many."""
    *told, asked = task.public.prompt.splitlines()
    known = {one.of(k).text: one.of(k) for one in STEPS["text"] for k in range(2, 8)}
    functions = {name: known[line] for name, _, line in (one.partition("(s): ") for one in told)}
    names = re.findall(r"f\d+(?=\()", asked)[::-1]
    value = asked.partition("'")[2].partition("'")[0]
    return str(run([functions[name] for name in names], value)) if len(names) <= depth else None


SOLVERS: dict[str, Solver] = {
    "sat": guess_assignments,
    "latin": backtrack,
    "sudoku": backtrack,
    "path": flood,
    "countdown": combine,
    "equations": eliminate,
    "transforms": apply_some,
}
