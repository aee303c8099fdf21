"""Read Exercism's problem specifications: cases of no language in particular, solved by a program in any of them.

The specifications bring no solutions, so these tasks have no oracle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from agentgym.task import Task
from agentgym_envs.code.programs import Toolchain, task_of
from agentgym_envs.code.refusals import FileTasks, Refused, Row

MAX_CASES = 32
"""Of a specification with more cases, so many are kept, evenly spread: each is judged in a sandbox of its own."""
MAX_VISIBLE = 4
_VISIBLE_SHARE = 4
"""One case in so many is visible, at least one."""
_PSEUDO_CODE = re.compile(r"=>|->")
_SIMPLE = (str, bool, int, float)


def tasks(path: Path, toolchain: Toolchain) -> FileTasks:
    """Return the exercises of a file, each for one language; splits go by the hash of the id."""
    return FileTasks("exercism_canonical", path, lambda row: convert(row, toolchain), identify)


def identify(row: Row) -> str:
    """Return a row's id."""
    return f"exercism/{row['exercise']}"


def convert(row: Row, toolchain: Toolchain) -> Task:
    """Return the task of a row: each case's input as lines, its expected value as text or compact JSON.

    Raises:
        Refused: its inputs are pseudo-code, its outputs cannot be compared as text, or it has too few cases.
    """
    cases = [*_leaves(row["cases"])]
    replaced = {one["reimplements"] for one in cases if "reimplements" in one}
    cases = [one for one in cases if one["uuid"] not in replaced]
    if _PSEUDO_CODE.search(json.dumps([one["input"] for one in cases])):
        raise Refused("its inputs hold pseudo-code")
    numbers = [isinstance(one["expected"], float) for one in cases]
    if any(_has_float(one["expected"]) and not number for one, number in zip(cases, numbers, strict=True)):
        raise Refused("it expects decimal numbers within structures, which have more than one text")
    fields = _Fields(cases)
    told = list({fields.lines(one): one["expected"] for one in reversed(cases)}.items())[::-1]
    kept = [told[index * len(told) // min(MAX_CASES, len(told))] for index in range(min(MAX_CASES, len(told)))]
    if len({write(expected) for _, expected in kept}) < 2:
        raise Refused("every case wants the same output")
    shown = max(1, min(MAX_VISIBLE, len(kept) // _VISIBLE_SHARE))
    pairs: list[JsonValue] = [{"stdin": lines, "stdout": write(expected) + "\n"} for lines, expected in kept]
    statement = {
        "id": identify(row),
        "prompt": f"{row['description'].strip()}\n\n{fields.told}\n{_OUTPUT}",
    }
    output = {"mode": "numbers", "rel_tol": 1e-6, "abs_tol": 0.005} if any(numbers) else {"mode": "trailing"}
    return task_of(statement, pairs[:shown], pairs[shown:], toolchain, output)


_OUTPUT = (
    "Print a text as it is, a number, `true`, `false` or `null`; anything else as JSON without blanks between its "
    "parts and with the keys of objects sorted. Where the input is invalid, print `error`."
)


def write(expected: Any) -> str:
    """Return an expected value as a program must print it; no statement tells how errors are worded.

    >>> write({"b": [1, True], "a": "é"}), write({"error": "too big"}), write("a b")
    ('{"a":"é","b":[1,true]}', 'error', 'a b')
    """
    if isinstance(expected, str):
        return expected
    if isinstance(expected, Mapping) and isinstance(expected.get("error"), str):
        return "error"
    return json.dumps(expected, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class _Fields:
    """What the lines of an input are, in all cases of one exercise alike."""

    def __init__(self, cases: Sequence[Mapping[str, Any]]) -> None:
        names = dict.fromkeys(name for one in cases for name in one["input"])
        values = {name: [one["input"].get(name) for one in cases] for name in names}
        if len({one["property"] for one in cases}) > 1:
            values = {"property": [one["property"] for one in cases], **values}
        self.raw = {name: _raw(found) for name, found in values.items()}

    @property
    def told(self) -> str:
        """What the agent reads about the lines."""
        parts = [f"`{name}`{'' if raw else ' as JSON'}" for name, raw in self.raw.items()]
        return f"The input has {len(parts)} line{'s' if len(parts) != 1 else ''}: {', '.join(parts)}."

    def lines(self, case: Mapping[str, Any]) -> str:
        """Return the input of a case."""
        values = {"property": case["property"], **case["input"]}
        return "".join(f"{_line(values.get(name), raw)}\n" for name, raw in self.raw.items())


def _raw(values: Sequence[Any]) -> bool:
    texts = [one for one in values if isinstance(one, str)]
    one_kind = len({type(one) for one in values}) == 1 and isinstance(values[0], _SIMPLE)
    return one_kind and not any(len(one.splitlines()) > 1 or one.endswith(("\n", "\r")) for one in texts)


def _line(value: Any, raw: bool) -> str:
    return value if raw and isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _leaves(cases: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for one in cases:
        if "cases" in one:
            yield from _leaves(one["cases"])
        else:
            yield one


def _has_float(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_float, value.values()))
    return isinstance(value, float) or (isinstance(value, list) and any(map(_has_float, value)))
