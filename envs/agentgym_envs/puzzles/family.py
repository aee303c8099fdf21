"""What every family of puzzles is made of: a generator with a dial, and a verifier that knows the rules.

Generator and rule-based verifier as in SynLogic and Enigmata; the verifier never compares with the planted solution
where the rules alone decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import JsonValue

EASIEST, HARDEST = 1.0, 10.0
LONGEST_ANSWER = 2000
"""Characters of an answer that are read."""


@dataclass(frozen=True, slots=True)
class Made:
    """A puzzle, and one of its solutions."""

    prompt: str
    """The instance, without the family's rules."""
    data: Mapping[str, JsonValue]
    """The same for the verifier; the agent may know it."""
    answer: str
    """A solution, perhaps one of many."""
    start: str = ""
    """A part of that solution, told as a hint."""
    hidden: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the verifier needs and the agent may not know."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the verifier says of an answer."""

    held: int
    """How many rules hold."""
    total: int
    problem: str
    """The first rule that does not hold, in words; empty if all do."""
    formed: bool = True
    """Whether the answer has the form that the rules ask for."""

    @property
    def right(self) -> bool:
        """Whether the answer is a solution."""
        return self.formed and self.held == self.total


@dataclass(frozen=True, slots=True)
class Family:
    """A family of puzzles."""

    name: str
    rules: str
    """What the agent reads before any instance; ends with the form of an answer."""
    plan: str
    """A way to solve them, told as a hint."""
    make: Callable[[np.random.Generator, float], Made]
    """Make a puzzle of a difficulty between 1 and 10."""
    judge: Callable[[Mapping[str, JsonValue], Mapping[str, JsonValue], str], Found]
    """Judge an answer by the puzzle's public and hidden data."""
    checkable: bool = True
    """Whether the rules are public, so that an answer can be checked before it is handed in."""


def malformed(problem: str, total: int = 1) -> Found:
    """Return the finding on an answer of another form."""
    return Found(0, total, problem, formed=False)


def scaled(difficulty: float, low: float, high: float) -> float:
    """Return what a difficulty means on a scale from `low` at 1 to `high` at 10.

    >>> scaled(1, 3, 12), scaled(10, 3, 12)
    (3.0, 12.0)
    """
    return low + (high - low) * (difficulty - EASIEST) / (HARDEST - EASIEST)
