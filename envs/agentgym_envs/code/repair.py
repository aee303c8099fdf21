"""Generate functions with constants left open, which only a failing test reveals: several turns and few tokens.

`f=lambda x:x*3+?` is tested with a guess, the failure `f(0): got 0, want 47` shows the constant, and the mended
function is handed in. Hidden cases use other arguments, so the example's value alone is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.splits import digest_of, split_of

_EASY = ("x*{a}+?", "x%{a}+?", "x//{a}+?")
_ALL = (*_EASY, "x*{a}-?", "?-x*{a}", "?+x%{a}", "?-x//{a}")
_HARD = ("x*{a}~?", "x%{a}~?", "x//{a}~?")
HARD_MEANING = "+x%5-"
HINT = f"~ is {HARD_MEANING}"
_HIDDEN_CASES = 4


@dataclass(frozen=True, slots=True)
class Body:
    """An expression in `x` with open places, and the argument at which each place alone decides."""

    template: str
    reveals: tuple[int, ...]

    def fill(self, constants: Sequence[int | str]) -> str:
        """Return the one-line function with these constants in the open places, 0 where there are too few."""
        rest = iter(constants)
        return f"f=lambda x:{re.sub(r'[?]', lambda _: str(next(rest, 0)), self.template)}"


def generate(seed: int, difficulty: float = 1.0, *, hard: bool = False) -> Task:
    """Return one task; equal arguments give equal tasks.

    Args:
        seed: which task.
        difficulty: below 1 the numbers have one digit, from 2 on all operators occur, from 3 on two constants are
            open (two failing rounds), from 4 on they have three digits.
        hard: leave an operator open too, which no example reveals; the task's hint does.
    """
    rng = np.random.default_rng((seed, round(difficulty * 1000), hard))
    body = _body(rng, difficulty, hard)
    digits = 1 if difficulty < 1 else 2 if difficulty < 4 else 3
    constants = [int(rng.integers(10 ** (digits - 1), 10**digits)) for _ in body.reveals]
    code = _meant(body.fill(constants))
    solve = eval(code.partition("=")[2])
    public = Public(
        prompt=f"f=lambda x:{body.template}",
        data={"examples": [{"call": f"f({x})", "expected": solve(x)} for x in body.reveals], "entry": ["f"]},
    )
    name = digest_of(public)
    return Task(
        id=f"repair{'-hard' if hard else ''}/{name}",
        split=split_of(name),
        public=public,
        hidden=Hidden(
            data={"cases": [{"call": f"f({x})", "expected": solve(x)} for x in _arguments(rng, body)]},
            reference={
                "code": code,
                "attempts": [_meant(body.fill(constants[:known])) for known in range(len(constants))],
                "demonstration": {
                    "tests": [_naive(body.fill(constants[:known])) for known in range(len(constants))],
                    "code": _naive(body.fill(constants)),
                    "guess": _naive(body.fill(rng.integers(10 ** (digits - 1), 10**digits, len(constants)).tolist())),
                },
            },
        ),
        hints=(HINT,) if hard else (),
        difficulty=difficulty,
    )


def _body(rng: np.random.Generator, difficulty: float, hard: bool) -> Body:
    terms = _HARD if hard else _EASY if difficulty < 2 else _ALL
    factors = (2, 10) if difficulty < 1 else (10, 100)
    first = str(rng.choice(terms)).format(a=int(rng.integers(*factors)))
    if difficulty < 3:
        return Body(first, (0,))
    edge = int(rng.integers(5, 10))
    second = str(rng.choice(terms)).format(a=int(rng.integers(*factors))).replace("x", f"(x-{edge})")
    return Body(f"{first} if x<{edge} else {second}", (0, edge))


def _meant(code: str) -> str:
    return code.replace("~", HARD_MEANING)


def _naive(code: str) -> str:
    return code.replace("~", "+")


def _arguments(rng: np.random.Generator, body: Body) -> list[int]:
    near = [int(x) for x in rng.choice(np.arange(1, 5), size=2, replace=False)]
    far = [int(x) for x in rng.choice(np.arange(11, 100), size=_HIDDEN_CASES - len(near), replace=False)]
    return [x for x in (*near, *far) if x not in body.reveals]


def tasks(*, count: int, difficulty: float, seed: int, hard: float) -> Iterator[Task]:
    """Yield `count` different tasks, of which the share `hard` is of the hard kind, evenly spread."""
    seen: set[str] = set()
    attempt = 0
    while len(seen) < count:
        is_hard = int((len(seen) + 1) * hard) > int(len(seen) * hard)
        task = generate(seed * 1_000_003 + attempt, difficulty, hard=is_hard)
        attempt += 1
        if task.id not in seen:
            seen.add(task.id)
            yield task
        elif attempt > 50 * count:
            raise ValueError(f"difficulty {difficulty} has fewer than {count} different tasks; ask for fewer")
