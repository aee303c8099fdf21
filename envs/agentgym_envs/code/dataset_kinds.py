"""Turn a row whose columns are known into a task, by what its tests are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from agentgym.graders.cases import Case
from agentgym.graders.sources import parse
from agentgym.graders.twins import tests_of as methods_of
from agentgym.task import Hidden, Public, Task
from agentgym_envs.code import programs
from agentgym_envs.code.asserts import Cased, Inexpressible, cases_of, defined, used
from agentgym_envs.code.exercism import visible_part
from agentgym_envs.code.mbpp import VISIBLE, decisive, imports_of, shown
from agentgym_envs.code.refusals import Refused, reason_of
from agentgym_envs.code.splits import DEFAULT_FILE

_TESTS = "solution_test.py"


def convert(kind: str, row: Mapping[str, Any], toolchain: programs.Toolchain) -> Task:
    """Return the task of a row whose fields are called by our names.

    Raises:
        Refused: it is well-formed but cannot be a task.
        KeyError: a field is missing.
        ValueError: a field is of another form.
    """
    for needed in ("prompt", "tests"):
        if needed not in row:
            raise KeyError(needed)
    return {"stdio": _stdio, "function": _function, "asserts": _asserts, "unittest": _unittest}[kind](row, toolchain)


def _stdio(row: Mapping[str, Any], toolchain: programs.Toolchain) -> Task:
    name = str(row["id"])
    reference = _first(row.get("reference"))
    language = toolchain.choose(name, row.get("language")).name
    solutions = {language: reference} if reference is not None else {}
    return programs.convert({**row, "solutions": solutions}, toolchain)


def _function(row: Mapping[str, Any], _: programs.Toolchain) -> Task:
    tests = _listed(row["tests"])
    try:
        cases: list[Cased] = [Case.model_validate(one).model_dump(exclude_unset=True) for one in tests]
    except ValidationError as error:
        raise ValueError(f"wanted tests with call and one of expected, literal, check: {reason_of(error)}") from error
    return _called(row, cases, comparison=False)


def _asserts(row: Mapping[str, Any], _: programs.Toolchain) -> Task:
    tests, reference = row["tests"], _first(row.get("reference"))
    lines = tests.strip() if isinstance(tests, str) else "\n".join(map(str, tests))
    names = frozenset(_words(row.get("entry"))) or (defined(reference) if reference else frozenset())
    if not names:
        raise KeyError("entry")
    try:
        cases = cases_of(parse(lines).body, names)
    except Inexpressible as reason:
        raise Refused(str(reason)) from reason
    except SyntaxError as error:
        raise Refused(f"a test that is not Python: {error.msg}") from error
    entry = _words(row.get("entry")) or used(cases, names)
    return _called({**row, "entry": entry}, cases, comparison=True)


def _called(row: Mapping[str, Any], cases: list[Cased], *, comparison: bool) -> Task:
    if len(cases) <= VISIBLE:
        raise Refused(f"wanted more than {VISIBLE} tests, found {len(cases)}")
    reference = _first(row.get("reference"))
    setup = str(row.get("setup") or "")
    data = shown(cases, _words(row.get("entry")), setup)
    if not comparison:
        del data["comparison"]
    return _task(
        row,
        Public(prompt=f"{row['prompt'].strip()}\nThis must hold:\n{_told(cases[0])}", data=data),
        Hidden(
            data=decisive(cases, setup or (imports_of(reference) if reference else "")),
            reference={"code": reference} if reference else {},
        ),
        None,
    )


def _told(case: Cased) -> str:
    if "check" in case:
        return f"_ = {case['call']}\nassert {case['check']}"
    return f"assert {case['call']} == {case.get('literal') or repr(case['expected'])}"


def _unittest(row: Mapping[str, Any], _: programs.Toolchain) -> Task:
    tests, reference = str(row["tests"]), _first(row.get("reference"))
    if not methods_of(tests):
        raise Refused("no test methods can be read from it")
    module = DEFAULT_FILE.removesuffix(".py")
    if module not in tests:
        raise Refused(f"wanted tests that import from {module}, the module that is handed in")
    return _task(
        row,
        Public(
            prompt=f"{row['prompt'].strip()}\nHand in the whole module `{DEFAULT_FILE}`.",
            data={"file": DEFAULT_FILE, "visible": {_TESTS: visible_part(tests)}, "support": {}},
        ),
        Hidden(data={"tests": {_TESTS: tests}}, reference={"code": reference} if reference else {}),
        "unittest",
    )


def _task(row: Mapping[str, Any], public: Public, hidden: Hidden, grader: str | None) -> Task:
    name = str(row["id"])
    return Task(
        id=name,
        split=programs.split_in(row, name),
        public=public,
        hidden=hidden,
        hints=programs.hints_of(row),
        grader=grader,
        difficulty=programs.difficulty_of(row),
    )


def _first(value: Any) -> str | None:
    """Return a reference: itself, or the first of several, which may come as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith('["'):
        value = json.loads(value)
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or not str(value).strip() else str(value)


def _listed(value: Any) -> list[Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise ValueError(f"wanted 'tests' as a list, found {type(found).__name__}")
    return found


def _words(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [str(one) for one in value]
