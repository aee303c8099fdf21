"""Satisfiability: choose true or false for each variable so that every clause holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from agentgym.types import Record
from agentgym_envs.puzzles.family import Family, Found, Made, malformed, scaled

_LITERAL = re.compile(r"-?[0-9]{1,4}")


class Formula(Record):
    """Clauses of nonzero numbers: 3 says that variable 3 is true, -3 that it is false."""

    variables: int
    clauses: tuple[tuple[int, ...], ...]


def make(rng: np.random.Generator, difficulty: float) -> Made:
    """Plant an assignment and draw clauses that it satisfies; none that is all true or all false satisfies them."""
    count = round(scaled(difficulty, 4, 22))
    clauses = round(count * scaled(difficulty, 2.0, 4.0))
    while True:
        planted = np.where(rng.random(count) < 0.5, 1, -1) * np.arange(1, count + 1)
        drawn = [_clause(rng, planted) for _ in range(clauses)]
        formula = Formula(variables=count, clauses=tuple(dict.fromkeys(drawn)))
        plain = (np.arange(1, count + 1), -np.arange(1, count + 1))
        if not any(_held(formula, set(one.tolist())) == len(formula.clauses) for one in plain):
            return Made(
                prompt=f"Variables: 1 to {count}\n" + "\n".join(" ".join(map(str, one)) for one in formula.clauses),
                data=formula.model_dump(mode="json"),
                answer=" ".join(map(str, planted.tolist())),
                start=f"one solution has {' '.join(map(str, planted[: max(1, count // 3)].tolist()))}",
            )


def _clause(rng: np.random.Generator, planted: np.ndarray[Any, Any]) -> tuple[int, ...]:
    while True:
        chosen = planted[rng.choice(len(planted), size=3, replace=False)]
        signs = np.where(rng.random(3) < 0.5, 1, -1)
        if (signs > 0).any():  # one literal at least agrees with what is planted
            return tuple(sorted((chosen * signs).tolist(), key=abs))


def judge(data: Mapping[str, Any], _: Mapping[str, Any], answer: str) -> Found:
    """Count the clauses that hold."""
    formula = Formula.model_validate(data)
    total = len(formula.clauses)
    words = answer.split()
    if not all(_LITERAL.fullmatch(word) for word in words):
        return malformed("wanted numbers between blanks", total)
    literals = [int(word) for word in words]
    if sorted(map(abs, literals)) != list(range(1, formula.variables + 1)):
        return malformed(f"wanted each of the variables 1 to {formula.variables} once, with or without a minus", total)
    chosen = set(literals)
    broken = [one for one in formula.clauses if not chosen & set(one)]
    problem = f"{len(broken)} of {total} clauses do not hold; the first is {_text(broken[0])}" if broken else ""
    return Found(total - len(broken), total, problem)


def _held(formula: Formula, chosen: set[int]) -> int:
    return sum(bool(chosen & set(one)) for one in formula.clauses)


def _text(clause: tuple[int, ...]) -> str:
    return " ".join(map(str, clause))


SAT = Family(
    "sat",
    "Choose true or false for every variable so that every clause holds. Each line is a clause; it holds if at least "
    "one of its numbers does: 3 says that variable 3 is true, -3 that it is false. Answer with one number per "
    "variable, between blanks, such as: 1 -2 3",
    "Begin with variables that occur with one sign only; then choose the variable of the shortest clause that is open, "
    "and take it back where a clause has no number left.",
    make,
    judge,
)
