"""Linear equations with whole solutions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.types import Record
from agentgym_envs.puzzles.family import Family, Found, Made, malformed, scaled

NAMES = "abcdefgh"
_VALUE = re.compile(r"([a-h])\s*=\s*(-?[0-9]{1,6})")


class System(Record):
    """One row per equation: a factor for each unknown, and the right side."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def names(self) -> str:
        """The unknowns."""
        return NAMES[: len(self.rows)]


def make(rng: np.random.Generator, difficulty: float) -> Made:
    """Draw factors with a unique solution, and the right sides of a whole solution that is not all alike."""
    count = round(scaled(difficulty, 2, 6))
    largest, reach = round(scaled(difficulty, 5, 15)), round(scaled(difficulty, 9, 60))
    while True:
        factors = rng.integers(-largest, largest + 1, (count, count))
        solution = rng.integers(-reach, reach + 1, count)
        if round(abs(float(np.linalg.det(factors)))) == 0 or len(set(solution.tolist())) == 1:
            continue
        rows = [[*row, right] for row, right in zip(factors.tolist(), (factors @ solution).tolist(), strict=True)]
        system = System(rows=tuple(map(tuple, rows)))
        values = dict(zip(system.names, solution.tolist(), strict=True))
        return Made(
            prompt="\n".join(told(row) for row in system.rows),
            data=system.model_dump(mode="json"),
            answer=" ".join(f"{name}={value}" for name, value in values.items()),
            start=f"{system.names[0]} is {values[system.names[0]]}",
        )


def told(row: Sequence[int]) -> str:
    """Return an equation as text.

    >>> told([2, -1, 0, 5])
    '2a - b = 5'
    """
    parts = [
        (factor, name) for factor, name in zip(row, NAMES, strict=False) if factor and name in NAMES[: len(row) - 1]
    ]
    text = "".join(
        f"{' + ' if factor > 0 else ' - '}{'' if abs(factor) == 1 else abs(factor)}{name}" for factor, name in parts
    )
    first = text.removeprefix(" + ") if text.startswith(" + ") else text.replace(" - ", "-", 1)
    return f"{first or 0} = {row[-1]}"


def judge(data: Mapping[str, Any], _: Mapping[str, Any], answer: str) -> Found:
    """Put the values in and count the equations that hold."""
    system = System.model_validate(data)
    total = len(system.rows)
    words = re.sub(r"\s*=\s*", "=", answer.strip()).replace(",", " ").split()
    found = [match for word in words if (match := _VALUE.fullmatch(word))]
    values = {match[1]: int(match[2]) for match in found}
    if len(found) != len(words) or sorted(match[1] for match in found) != sorted(system.names):
        return malformed(f"wanted a whole value for each of {', '.join(system.names)}, such as a=3", total)
    broken = [
        number
        for number, row in enumerate(system.rows, start=1)
        if sum(factor * values[name] for factor, name in zip(row, system.names, strict=False)) != row[-1]
    ]
    problem = f"equation {broken[0]} does not hold, nor do {len(broken) - 1} others" if broken else ""
    return Found(total - len(broken), total, problem)


EQUATIONS = Family(
    "equations",
    "Solve the equations; every unknown is a whole number. Answer with the values, such as: a=3 b=-2",
    "Multiply and subtract equations to remove one unknown after another; the last gives a value, which you put into "
    "the others.",
    make,
    judge,
)
