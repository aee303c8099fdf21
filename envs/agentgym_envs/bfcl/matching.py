"""Compare calls with the acceptable ones by name and arguments, as BFCL's syntax tree matching does; nothing runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from agentgym_envs.bfcl.world import Call

Acceptable = Mapping[str, Mapping[str, Sequence[Any]]]
"""One call: its name, and for each argument the values that will do; "" among them means that it may be left out."""


def matches(calls: Sequence[Call], wanted: Sequence[Acceptable]) -> str:
    """Return what is wrong with calls that were to be these, in any order; nothing if they are right.

    After Patil et al. 2025 ("The Berkeley Function Calling Leaderboard"): texts are compared without case, spaces and
    punctuation, numbers by value, lists element by element, objects field by field.

    >>> wanted = [{"area": {"base": [10], "unit": ["cm", ""]}}]
    >>> matches([Call(name="area", arguments={"base": 10.0})], wanted)
    ''
    >>> matches([Call(name="area", arguments={"base": 11})], wanted)
    '1 of 1 calls are not as wanted'
    """
    if len(calls) != len(wanted):
        return f"wanted {len(wanted)} calls, found {len(calls)}"
    fits = np.array([[_fits(call, one) for one in wanted] for call in calls], dtype=float)
    rows, columns = linear_sum_assignment(-fits)
    wrong = len(calls) - int(fits[rows, columns].sum())
    return f"{wrong} of {len(calls)} calls are not as wanted" if wrong else ""


def example(wanted: Acceptable) -> Call:
    """Return a call that is right."""
    [(name, arguments)] = wanted.items()
    chosen = {key: _first(options[0]) for key, options in arguments.items() if options and options[0] != ""}
    return Call(name=name, arguments=chosen)


def _fits(call: Call, wanted: Acceptable) -> bool:
    [(name, arguments)] = wanted.items()
    return call.name == name and _fields(call.arguments, arguments)


def _fields(found: Mapping[str, Any], wanted: Mapping[str, Sequence[Any]]) -> bool:
    if found.keys() - wanted.keys():
        return False
    return all(_one_of(found[key], options) if key in found else "" in options for key, options in wanted.items())


def _one_of(value: Any, options: Sequence[Any]) -> bool:
    return any(_same(value, one) for one in options)


def _same(value: Any, option: Any) -> bool:
    """Compare a value with one that will do; objects in it tell their own acceptable values by field."""
    match value, option:
        case str(), str():
            return _plain(value) == _plain(option)
        case bool(), _:
            return isinstance(option, bool) and value == option
        case int() | float(), int() | float() if not isinstance(option, bool):
            return bool(value == option)
        case list(), list():
            return len(value) == len(option) and all(map(_same, value, option))
        case dict(), dict():
            return _fields(value, {key: one if isinstance(one, list) else [one] for key, one in option.items()})
    return value is None and option is None


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _first(option: Any) -> Any:
    """Turn a value that will do into one that can be sent."""
    if isinstance(option, dict):
        fields = {key: one if isinstance(one, list) else [one] for key, one in option.items()}
        return {key: _first(one[0]) for key, one in fields.items() if one and one[0] != ""}
    return [_first(one) for one in option] if isinstance(option, list) else option
