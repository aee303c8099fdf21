"""The kinds of answers, each as the specification that a task writes and as the comparison that it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, field_validator, model_validator

from agentgym.graders import answer_math
from agentgym.graders.answer_number import in_units, number
from agentgym.graders.answer_text import Where, normalised, plain, split, token_f1
from agentgym.types import Record

_Golds = Annotated[tuple[str, ...], Field(min_length=1)]
_Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Items = Literal["plain", "normalised"]
_COMPARED: dict[str, Callable[[str], str]] = {"plain": plain, "normalised": normalised}


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer is worth."""

    value: float
    problem: str = ""
    """Why the text is no answer of its kind; safe to show, for it tells nothing of the gold."""


class _Kind(Record):
    where: Where = "whole"
    """Where in the handed-in text the answer stands; several answers that differ are none."""


class Exact(_Kind):
    """One of these texts, up to white space and Unicode's compatibility forms."""

    kind: Literal["exact"]
    golds: _Golds

    @field_validator("golds")
    @classmethod
    def _not_empty(cls, golds: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_empty(golds, plain)

    def judge(self, text: str) -> Found:
        """Compare."""
        return Found(float(plain(text) in {plain(one) for one in self.golds}))


class Normalised(_Kind):
    """One of these texts without case, punctuation and articles: SQuAD's exact match."""

    kind: Literal["normalised"]
    golds: _Golds

    @field_validator("golds")
    @classmethod
    def _not_empty(cls, golds: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_empty(golds, normalised)

    def judge(self, text: str) -> Found:
        """Compare."""
        return Found(float(normalised(text) in {normalised(one) for one in self.golds}))


class TokenF1(_Kind):
    """The F1 of shared tokens with the best gold, where it reaches a threshold; below, nothing.

    The threshold lies above 2/3, which is what the gold and another answer of its length reach side by side.
    """

    kind: Literal["f1"]
    golds: _Golds
    threshold: Annotated[float, Field(gt=2 / 3, le=1)]

    @field_validator("golds")
    @classmethod
    def _not_empty(cls, golds: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_empty(golds, normalised)

    def judge(self, text: str) -> Found:
        """Return the F1, or nothing."""
        if _lists_alternatives(text) and not any(_lists_alternatives(one) for one in self.golds):
            return Found(0.0, "it names several answers; wanted one")
        value = max(token_f1(one, text) for one in self.golds)
        return Found(value if value >= self.threshold else 0.0)


class Numeric(_Kind):
    """A number, alone or with a unit; the tolerance and the units are the task's."""

    kind: Literal["numeric"]
    gold: str | StrictInt | StrictFloat
    """A finite number, without a unit; as text where its digits matter."""
    rel_tol: _Tolerance | None = None
    abs_tol: _Tolerance | None = None
    """The answer may differ by the larger of `abs_tol` and `rel_tol` times the gold; 0 asks for the number itself."""
    units: dict[str, str | StrictInt | StrictFloat] = {}
    """What each unit is worth in the gold's unit, as in `{"m": 1, "km": 1000, "%": "1/100"}`."""
    bare: bool | None = None
    """Whether a number without a unit is taken to be in the gold's; to be said where there are units."""

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        if self.rel_tol is None and self.abs_tol is None:
            raise ValueError("wanted rel_tol or abs_tol, found neither; 0 asks for the number itself")
        _fraction(self.gold, "the gold")
        if (self.bare is None) == bool(self.units):
            wanted = "bare: true or false beside units" if self.units else "bare only beside units"
            raise ValueError(f"wanted {wanted}")
        for name, factor in self.units.items():
            if number(f"1 {name}") != (Fraction(1), name) or not name or _fraction(factor, f"unit {name!r}") <= 0:
                raise ValueError(f"wanted a unit's name without digits and a positive factor, found {name!r}: {factor}")
        return self

    def judge(self, text: str) -> Found:
        """Compare as fractions."""
        factors = {name: _fraction(factor, name) for name, factor in self.units.items()}
        found = in_units(text, factors, bare=self.bare is not False)
        if found is None:
            return Found(0.0, f"wanted one number{' with a known unit' if self.units else ''} and nothing else")
        gold = _fraction(self.gold, "the gold")
        allowed = max(Fraction(self.abs_tol or 0), Fraction(self.rel_tol or 0) * abs(gold))
        return Found(float(abs(found - gold) <= allowed))


class Items(_Kind):
    """Several things: as a set, where order and repetition do not count, or as a list, where both do."""

    kind: Literal["set", "list"]
    gold: _Golds
    separator: Annotated[str, Field(min_length=1)]
    """What stands between the items, or `json` for a JSON array of texts and numbers."""
    items: _Items
    """How items are compared: as `plain` text, or `normalised` as SQuAD does."""

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        golds = [_COMPARED[self.items](one) for one in _refuse_empty(self.gold, _COMPARED[self.items])]
        if self.kind == "set" and len(set(golds)) < len(golds):
            raise ValueError("two items of the gold set are the same; name each once")
        if self.separator != "json" and any(self.separator in one for one in self.gold):
            raise ValueError(f"an item of the gold contains the separator {self.separator!r}; choose another")
        return self

    def judge(self, text: str) -> Found:
        """Compare item by item."""
        parts = _json_items(text) if self.separator == "json" else split(text, self.separator)
        if parts is None:
            return Found(0.0, "wanted a JSON array of texts or numbers")
        found = [_COMPARED[self.items](one) for one in parts]
        wanted = [_COMPARED[self.items](one) for one in self.gold]
        return Found(float(set(found) == set(wanted) if self.kind == "set" else found == wanted))


class Choice(_Kind):
    """One of the lettered choices, by its letter, by its text, or by both together."""

    kind: Literal["choice"]
    choices: Annotated[dict[str, str], Field(min_length=2)]
    gold: str

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        if self.gold not in self.choices:
            raise ValueError(f"the gold is none of the choices {', '.join(self.choices)}")
        forms = [form for key in self.choices for form in self._forms(key)]
        if len(set(forms)) < len(forms) or "" in forms:
            raise ValueError("two choices cannot be told apart by their letters and texts, or one is empty")
        return self

    def judge(self, text: str) -> Found:
        """Compare with every way to name each choice."""
        said = plain(text).casefold().removesuffix(".")
        for key in self.choices:
            if said in self._forms(key):
                return Found(float(key == self.gold))
        return Found(0.0, "wanted one of the choices, by its letter or its text, and nothing else")

    def _forms(self, key: str) -> set[str]:
        letter, meaning = plain(key).casefold(), plain(self.choices[key]).casefold().removesuffix(".")
        marked = {letter, f"({letter})", f"{letter})", f"{letter}:"}
        return {*marked, meaning, *(f"{one} {meaning}" for one in (*marked, f"{letter}."))}


class Math(_Kind):
    """An expression in LaTeX that means the same as the gold, by the `math-verify` package (extra `math`)."""

    kind: Literal["math"]
    gold: str
    digits: Annotated[int, Field(ge=1, le=15)] = 6
    """Decimal places to which floating-point numbers are compared."""

    @field_validator("gold")
    @classmethod
    def _one_expression(cls, gold: str) -> str:
        problem = answer_math.problem_with(gold)
        if problem:
            raise ValueError(f"the gold is not one expression in LaTeX: {problem}")
        return gold

    def judge(self, text: str) -> Found:
        """Ask `math-verify`, in a process apart."""
        bare = text.strip()
        for mark in ("$$", "$"):
            if len(bare) > 2 * len(mark) and bare.startswith(mark) and bare.endswith(mark):
                bare = bare[len(mark) : -len(mark)]
        problem = answer_math.problem_with(bare)
        if problem:
            return Found(0.0, f"wanted one expression in LaTeX and nothing else, but {problem}")
        allowed = answer_math.shape(self.gold)
        if any(found and not fine for found, fine in zip(answer_math.shape(bare), allowed, strict=True)):
            return Found(0.0, "wanted one value, found several")
        same = answer_math.same(self.gold, bare, self.digits)
        return Found(0.0, "it cannot be read as an expression") if same is None else Found(float(same))


Kind = Annotated[Exact | Normalised | TokenF1 | Numeric | Items | Choice | Math, Field(discriminator="kind")]


def _refuse_empty(golds: tuple[str, ...], form: Callable[[str], str]) -> tuple[str, ...]:
    for one in golds:
        if not form(one):
            raise ValueError(f"the gold {one!r} is empty once it is normalised, so an empty answer would match it")
    return golds


def _fraction(value: str | int | float, what: str) -> Fraction:
    found = number(str(value)) if type(value) in (str, int, float) else None
    if found is None or found[1]:
        raise ValueError(f"wanted {what} as a finite number without a unit, found {value!r}")
    return found[0]


def _lists_alternatives(text: str) -> bool:
    words = normalised(text).split()
    return "or" in words or any(mark in text for mark in (";", "/", "|", "\n"))


def _json_items(text: str) -> list[str] | None:
    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        found = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(type(one) in (str, int, float) for one in found):
        return None
    return [one if isinstance(one, str) else json.dumps(one) for one in found]
