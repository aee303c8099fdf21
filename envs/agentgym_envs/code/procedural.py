"""Generate small Python functions to write: pipelines of steps on numbers, texts or lists, told in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import JsonValue

from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.hints import with_hints
from agentgym_envs.code.splits import digest_of, split_of

MAX_STEPS = 6
_VISIBLE, _HIDDEN = 2, 10


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on `v`: in words and as Python, with `{k}` for a small constant."""

    text: str
    source: str

    def of(self, k: int) -> Step:
        """Return the step with its constant filled in."""
        return Step(self.text.format(k=k), self.source.format(k=k))


STEPS: dict[str, tuple[Step, ...]] = {
    "number": (
        Step("add {k}", "v + {k}"),
        Step("subtract {k}", "v - {k}"),
        Step("multiply by {k}", "v * {k}"),
        Step("divide by {k}, rounding down", "v // {k}"),
        Step("take the remainder of a division by 1{k}", "v % 1{k}"),
        Step("square it", "v * v"),
        Step("change its sign", "-v"),
        Step("take the absolute value", "abs(v)"),
    ),
    "text": (
        Step("reverse it", "v[::-1]"),
        Step("turn it into upper case", "v.upper()"),
        Step("swap upper and lower case", "v.swapcase()"),
        Step("drop the first {k} characters", "v[{k}:]"),
        Step("move the first {k} characters to the end", "v[{k}:] + v[:{k}]"),
        Step("keep every second character, starting with the first", "v[::2]"),
        Step("sort its characters by code point", "''.join(sorted(v))"),
        Step("append its own first {k} characters", "v + v[:{k}]"),
        Step("double every character", "''.join(c + c for c in v)"),
        Step("append the digit {k}", "v + '{k}'"),
    ),
    "list": (
        Step("add {k} to each number", "[n + {k} for n in v]"),
        Step("multiply each number by {k}", "[n * {k} for n in v]"),
        Step("keep the numbers above {k}", "[n for n in v if n > {k}]"),
        Step("drop the numbers divisible by {k}", "[n for n in v if n % {k}]"),
        Step("reverse the order", "v[::-1]"),
        Step("sort ascending", "sorted(v)"),
        Step("sort descending", "sorted(v, reverse=True)"),
        Step("drop the first {k} numbers", "v[{k}:]"),
        Step("remove repeated numbers, keeping the first of each", "list(dict.fromkeys(v))"),
        Step("replace each number by the sum of all up to and including it", "[sum(v[:i + 1]) for i in range(len(v))]"),
        Step("replace each number by its square", "[n * n for n in v]"),
    ),
}
_KINDS = {"number": "an integer", "text": "a string", "list": "a list of integers"}


def program(steps: Sequence[Step]) -> str:
    """Return the function that takes these steps."""
    return "def f(v):\n" + "".join(f"    v = {one.source}\n" for one in steps) + "    return v\n"


def run(steps: Sequence[Step], value: Any) -> Any:
    """Return what these steps make of a value."""
    for one in steps:
        value = _function(one.source)(value)
    return value


def generate(seed: int, difficulty: float = 2.0) -> Task:
    """Return one task with about `difficulty` steps (1 to 6), each of which changes the outcome of a hidden case."""
    if not 0 < difficulty <= MAX_STEPS:
        raise ValueError(f"wanted a difficulty above 0 and up to {MAX_STEPS}, found {difficulty}")
    rng = np.random.default_rng((seed, round(difficulty * 1000)))
    while True:
        kind = str(rng.choice(sorted(STEPS)))
        steps = [_draw(rng, kind) for _ in range(max(1, round(difficulty)))]
        inputs = [_input(rng, kind) for _ in range(_VISIBLE + _HIDDEN)]
        wrong = [one for one in _mutations(rng, kind, steps) if _differ(one, steps, inputs[_VISIBLE:])]
        dropped = [steps[:i] + steps[i + 1 :] for i in range(len(steps))]
        if all(_differ(one, steps, inputs[_VISIBLE:]) for one in dropped) and wrong:
            return _task(kind, steps, inputs, wrong + dropped, difficulty)


def _task(
    kind: str, steps: Sequence[Step], inputs: Sequence[Any], wrong: Sequence[Sequence[Step]], difficulty: float
) -> Task:
    cases: list[JsonValue] = [{"call": f"f({value!r})", "expected": run(steps, value)} for value in inputs]
    told = "\n".join(f"{number}. {one.text}" for number, one in enumerate(steps, start=1))
    shown = "\n".join(f"f({value!r}) == {run(steps, value)!r}" for value in inputs[:_VISIBLE])
    public = Public(
        prompt=f"Write a Python function f(v). v is {_KINDS[kind]}. Take these steps in order:\n{told}\n"
        f"Return the result.\n{shown}",
        data={"examples": cases[:_VISIBLE], "entry": ["f"]},
    )
    name = digest_of(public)
    task = Task(
        id=f"functions/{name}",
        split=split_of(name),
        public=public,
        hidden=Hidden(
            data={"cases": cases[_VISIBLE:]},
            reference={
                "code": program(steps),
                "attempts": [program(wrong[0])],
                "mutations": [program(one) for one in wrong],
            },
        ),
        difficulty=difficulty,
    )
    return with_hints(task)


def _draw(rng: np.random.Generator, kind: str) -> Step:
    choices = STEPS[kind]
    return choices[int(rng.integers(len(choices)))].of(int(rng.integers(2, 8)))


def _mutations(rng: np.random.Generator, kind: str, steps: Sequence[Step]) -> Iterator[list[Step]]:
    for index in range(len(steps)):
        yield [*steps[:index], _draw(rng, kind), *steps[index + 1 :]]
    for index in range(len(steps) - 1):
        yield [*steps[:index], steps[index + 1], steps[index], *steps[index + 2 :]]


def _differ(one: Sequence[Step], other: Sequence[Step], inputs: Sequence[Any]) -> bool:
    return any(run(one, value) != run(other, value) for value in inputs)


def _input(rng: np.random.Generator, kind: str) -> Any:
    if kind == "number":
        return int(rng.integers(-99, 100))
    size = int(rng.integers(4, 12))
    if kind == "list":
        return [int(one) for one in rng.integers(-9, 20, size)]
    return "".join(chr(ord("a") + int(one)) for one in rng.integers(0, 26, size)).title()


def _function(source: str) -> Callable[[Any], Any]:
    if source not in _FUNCTIONS:
        _FUNCTIONS[source] = eval(f"lambda v: {source}")
    return _FUNCTIONS[source]


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {}


def tasks(*, count: int, difficulty: float, seed: int) -> Iterator[Task]:
    """Yield `count` different tasks."""
    seen: set[str] = set()
    attempt = 0
    while len(seen) < count:
        task = generate(seed * 1_000_003 + attempt, difficulty)
        attempt += 1
        if task.id not in seen:
            seen.add(task.id)
            yield task
