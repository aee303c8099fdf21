"""Compositions f(g(x)): functions of texts are told by opaque names, and applied one within the other.

After the composition tasks of "From f(x) and g(x) to f(g(x))": each function is easy, what counts is to chain them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agentgym_envs.code.procedural import STEPS, run
from agentgym_envs.puzzles.family import Family, Found, Made, malformed, scaled

_STEPS = STEPS["text"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LONGEST = 40


def make(rng: np.random.Generator, difficulty: float) -> Made:
    """Draw functions, none of which gives back a text that was there before, and a text to put into the innermost."""
    depth = round(scaled(difficulty, 1, 8))
    while True:
        text = "".join(rng.choice(list(_LETTERS), int(rng.integers(5, 9))))
        steps = [_STEPS[int(rng.integers(len(_STEPS)))].of(int(rng.integers(2, 5))) for _ in range(depth)]
        values = [text]
        for one in steps:
            values.append(run([one], values[-1]))
        if len(set(values)) == len(values) and all(2 <= len(one) <= _LONGEST for one in values):
            break
    names = [f"f{number}" for number in rng.choice(np.arange(10, 100), depth, replace=False)]
    told = [f"{name}(s): {one.text}" for name, one in zip(names, steps, strict=True)]
    asked = f"'{text}'"
    for name in names:
        asked = f"{name}({asked})"
    order = [told[int(index)] for index in rng.permutation(depth)]
    return Made(
        prompt="\n".join(order) + f"\nWhat is {asked}?",
        data={},
        answer=values[-1],
        start=f"{names[0]}('{text}') is '{values[1]}'" if depth > 1 else "",
        hidden={"answer": values[-1]},
    )


def judge(_: Mapping[str, Any], hidden: Mapping[str, Any], answer: str) -> Found:
    """Compare with the value, up to a pair of quotes around it."""
    text = answer.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if not text or not text.isascii() or not text.isalnum():
        return malformed("wanted one text of letters and digits")
    right = text == hidden.get("answer")
    return Found(int(right), 1, "" if right else "it is another text")


TRANSFORMS = Family(
    "transforms",
    "Each function takes a text s and returns what its line tells. Functions are applied from the inside out. Answer "
    "with the resulting text and nothing else.",
    "Write down the text after each function, beginning with the innermost, character by character.",
    make,
    judge,
    checkable=False,
)
