"""Countdown: combine numbers to a target, each used exactly once."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from agentgym.graders.sources import parse_expression
from agentgym.types import Record
from agentgym_envs.puzzles.family import Family, Found, Made, malformed, scaled

_FORM = re.compile(r"[0-9+\-*/() ]{1,120}")
_SIGNS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda one, other: one + other,
    ast.Sub: lambda one, other: one - other,
    ast.Mult: lambda one, other: one * other,
    ast.Div: lambda one, other: one / other,
}


class Numbers(Record):
    """What there is, and what to make of it."""

    numbers: tuple[int, ...]
    target: int


class Unreadable(ValueError):  # noqa: N818 -- a finding about an answer
    """A text that is no arithmetic of whole numbers."""


def make(rng: np.random.Generator, difficulty: float) -> Made:
    """Combine numbers at random until a whole, positive, not too large target comes of it."""
    count = round(scaled(difficulty, 3, 7))
    highest = round(scaled(difficulty, 12, 60))
    while True:
        numbers = [int(one) for one in rng.integers(1, highest + 1, count)]
        text, inner = combine(rng, numbers)
        try:
            value, _ = evaluate(text)
        except ZeroDivisionError:
            continue
        if value.denominator == 1 and 10 <= value <= 999:
            puzzle = Numbers(numbers=tuple(sorted(numbers)), target=int(value))
            return Made(
                prompt=f"Numbers: {' '.join(map(str, puzzle.numbers))}\nTarget: {puzzle.target}",
                data=puzzle.model_dump(mode="json"),
                answer=text,
                start=f"one solution contains {inner}",
            )


def combine(rng: np.random.Generator, numbers: list[int]) -> tuple[str, str]:
    """Return a random expression of all these numbers, and the part of it that was made first."""
    parts = [str(one) for one in numbers]
    inner = ""
    while len(parts) > 1:
        left, right = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(f"({left}{'+-*/'[int(rng.choice(4, p=[0.3, 0.25, 0.3, 0.15]))]}{right})")
        inner = inner or parts[-1]
    return parts[0][1:-1], inner


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """Return the exact value of an expression, and the numbers in it.

    >>> evaluate("(8-2)*4/3")
    (Fraction(8, 1), [8, 2, 4, 3])

    Raises:
        Unreadable: it is no arithmetic of whole numbers with + - * / and brackets.
        ZeroDivisionError: it divides by nothing.
    """
    if not _FORM.fullmatch(text):
        raise Unreadable
    try:
        tree = parse_expression(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Unreadable from error
    return _value(tree), [*_numbers(tree)]


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIGNS:
            return _SIGNS[type(op)](_value(left), _value(right))
    raise Unreadable


def _numbers(node: ast.expr) -> Iterator[int]:
    match node:
        case ast.Constant(value=int(number)):
            yield number
        case ast.BinOp(left=left, right=right):
            yield from _numbers(left)
            yield from _numbers(right)


def judge(data: Mapping[str, Any], _: Mapping[str, Any], answer: str) -> Found:
    """Ask whether each number is used once, and whether the value is the target."""
    puzzle = Numbers.model_validate(data)
    try:
        value, used = evaluate(answer.strip())
    except Unreadable:
        return malformed("wanted one expression of the numbers with + - * / and brackets", 2)
    except ZeroDivisionError:
        return malformed("it divides by zero", 2)
    all_used, hit = tuple(sorted(used)) == puzzle.numbers, value == puzzle.target
    problems = {"the numbers in it are not the given ones, each once": all_used, f"its value is {value}": hit}
    return Found(all_used + hit, 2, "; ".join(text for text, holds in problems.items() if not holds))


COUNTDOWN = Family(
    "countdown",
    "Combine all the numbers, each exactly once, with + - * / and brackets, so that the value is the target. Fractions "
    "on the way are allowed. Answer with one expression, such as: (8-2)*4",
    "Look for two numbers whose product is near the target, and make the difference of the rest; or work backwards "
    "from the target.",
    make,
    judge,
)
