"""Twenty small functions as in MBPP, each with a right and a wrong solution, and the cases that tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentgym import Hidden, Public, Submission, Task

_FILE = "solution.py"
_TEXTS = ["", "a", "abba", "Hello World", "the quick brown fox", "xyzzy", "noon at noon", "A man a plan"]
_NUMBERS = [0, 1, 2, 3, 7, 12, 30, 97]
_LISTS = [[], [1], [3, 1, 2], [5, 5, 5], [-4, 9, 0, 9], [10, 8, 6, 4, 2], [1, 2, 2, 3, 3, 3], [7, -7, 14]]
_PAIRS = [(1, 1), (12, 18), (7, 3), (100, 75), (9, 28), (2, 64), (81, 27), (17, 5)]

# name, parameters, right, wrong, arguments
_FUNCTIONS: list[tuple[str, str, str, str, Sequence[Any]]] = [
    ("count_vowels", "s", "sum(c in 'aeiouAEIOU' for c in s)", "sum(c in 'aeiou' for c in s)", _TEXTS),
    ("reverse_words", "s", "' '.join(s.split()[::-1])", "s[::-1]", _TEXTS),
    ("is_palindrome", "s", "s == s[::-1]", "len(s) % 2 == 0", _TEXTS),
    ("first_letters", "s", "''.join(w[0] for w in s.split())", "s[:1]", _TEXTS),
    ("longest_word", "s", "max(s.split(), key=len, default='')", "min(s.split(), key=len, default='')", _TEXTS),
    ("letter_counts", "s", "{c: s.count(c) for c in sorted(set(s))}", "{c: 1 for c in sorted(set(s))}", _TEXTS),
    ("without_repeats", "s", "''.join(dict.fromkeys(s))", "''.join(sorted(set(s)))", _TEXTS),
    ("digit_sum", "n", "sum(map(int, str(n)))", "n % 10", _NUMBERS),
    ("is_prime", "n", "n > 1 and all(n % k for k in range(2, n))", "n % 2 == 1", _NUMBERS),
    ("triangle", "n", "n * (n + 1) // 2", "n * (n - 1) // 2", _NUMBERS),
    ("divisors", "n", "[k for k in range(1, n + 1) if n % k == 0]", "[1, n]", _NUMBERS),
    ("to_binary", "n", "format(n, 'b')", "format(n, 'o')", _NUMBERS),
    ("squares_below", "n", "[k * k for k in range(n) if k * k < n]", "[k * k for k in range(n)]", _NUMBERS),
    ("second_largest", "a", "sorted(set(a))[-2] if len(set(a)) > 1 else None", "max(a, default=None)", _LISTS),
    ("running_sum", "a", "[sum(a[:k + 1]) for k in range(len(a))]", "[sum(a)] * len(a)", _LISTS),
    ("most_common", "a", "max(sorted(set(a)), key=a.count, default=None)", "max(a, default=None)", _LISTS),
    ("adjacent_pairs", "a", "list(zip(a, a[1:]))", "list(zip(a, a))", _LISTS),
    ("only_even", "a", "[x for x in a if x % 2 == 0]", "[x for x in a if x % 2]", _LISTS),
    ("common_divisor", "a, b", "__import__('math').gcd(a, b)", "min(a, b)", _PAIRS),
    ("common_multiple", "a, b", "a * b // __import__('math').gcd(a, b)", "a * b", _PAIRS),
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One task with something handed in for it."""

    task: Task
    submission: Submission
    passes: bool
    """What a verdict must say."""
    files: dict[str, bytes]
    """The same submission beside the same cases as a test file."""


def problems() -> list[Problem]:
    """Return all, every other one with its wrong solution."""
    return [_problem(*function, passes=index % 2 == 0) for index, function in enumerate(_FUNCTIONS)]


def _problem(name: str, parameters: str, right: str, wrong: str, inputs: Sequence[Any], *, passes: bool) -> Problem:
    solve: Callable[..., Any] = eval(f"lambda {parameters}: {right}")
    calls = [f"{name}({', '.join(map(repr, one if isinstance(one, tuple) else (one,)))})" for one in inputs]
    wanted = [solve(*one) if isinstance(one, tuple) else solve(one) for one in inputs]
    cases: list[Any] = [
        {"call": call, "expected": value} if _is_json(value) else {"call": call, "literal": repr(value)}
        for call, value in zip(calls, wanted, strict=True)
    ]
    code = f"def {name}({parameters}):\n    return {right if passes else wrong}\n"
    tests = "".join(
        f"\n\ndef test_{index}():\n    assert {call} == {value!r}\n"
        for index, (call, value) in enumerate(zip(calls, wanted, strict=True))
    )
    return Problem(
        task=Task(
            id=name,
            split="test",
            public=Public(prompt=f"Write {name}({parameters}).", data={"entry": [name]}),
            hidden=Hidden(data={"cases": cases}),
        ),
        submission=Submission(files={_FILE: code}),
        passes=passes,
        files={_FILE: code.encode(), f"test_{_FILE}": f"from solution import {name}\n{tests}".encode()},
    )


def _is_json(value: object) -> bool:
    return not isinstance(value, (tuple, list)) or not any(isinstance(one, tuple) for one in value)
