"""Read QuixBugs tasks: a function with a defect in one line, to be mended."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from agentgym.graders.sources import parse
from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.asserts import Cased, Inexpressible, cases_of
from agentgym_envs.code.mbpp import decisive, imports_of, shown
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import digest, split_of

_NODE = "node.py"
_LIST = "list(_) == "
_CASE_S, _TOTAL_S = 2.0, 8.0
"""Some defects make a function loop for ever: every call ends by itself."""


def tasks(path: Path) -> FileTasks:
    """Return the tasks of a file; splits go by the hash of the id."""
    return FileTasks("quixbugs", path, convert, lambda row: str(row["id"]))


def convert(row: Row) -> Task:
    """Return the task of a row: judged by calls where its tests are a table, else by running its tests.

    Raises:
        Refused: its tests can be told neither way.
    """
    name = Path(row["path"]).stem
    ((_, test),) = row["tests"].items()
    table = next((text for file, text in row["support"].items() if file.endswith(f"{name}.json")), None)
    function = _test_functions(test)
    if not function:
        raise Refused("wanted a test function, found none")
    if table is None:
        return _tested(row, name, test)
    try:
        cases = [case for line in table.splitlines() if line.strip() for case in _cases(line, function[0], name)]
    except Inexpressible as reason:
        raise Refused(str(reason)) from reason
    if len(cases) < 2:
        raise Refused(f"wanted at least 2 cases, found {len(cases)}")
    data = shown(cases, [name], "")
    return _task(
        row,
        Public(prompt=_told(row), data={**data, "case_s": _CASE_S, "total_s": _TOTAL_S}),
        decisive(cases, imports_of(row["fixed"])),
        None,
    )


def _cases(line: str, function: ast.FunctionDef, name: str) -> list[Cased]:
    """Return the cases of one row of a table: the test's body, with the row in place of its parameters."""
    given, expected = json.loads(line)
    given = given if isinstance(given, list) else [given]
    values = f"input_data = {given!r}\nexpected = {expected!r}\n"
    found = cases_of(parse(values + "\n".join(map(ast.unparse, function.body))).body, frozenset({name}))
    return [_listed(one) for one in found]


def _listed(case: Cased) -> Cased:
    """Let the call make a list of a generator, which is no data."""
    wanted = str(case.get("check", ""))
    if not wanted.startswith(_LIST):
        return case
    return {"call": f"list({case['call']})", "literal": wanted.removeprefix(_LIST)}


def _tested(row: Row, name: str, test: str) -> Task:
    """Return a task whose tests run as a unittest file."""
    nodes = next((text for file, text in row["support"].items() if file.endswith(f"testcases/{_NODE}")), "")
    module = parse(test)
    body = [one for one in module.body if not isinstance(one, (ast.Import, ast.ImportFrom, ast.If))]
    methods = [_method(one) for one in body if isinstance(one, ast.FunctionDef) and one.name.startswith("test")]
    suite = parse("class Tests(unittest.TestCase): pass").body[0]
    assert isinstance(suite, ast.ClassDef)
    suite.body = [*methods]
    others = [one for one in body if not (isinstance(one, ast.FunctionDef) and one.name.startswith("test"))]
    head = f"import unittest\nfrom node import Node\nfrom {name} import {name}\n\n"
    text = head + ast.unparse(ast.fix_missing_locations(ast.Module(body=[*others, suite], type_ignores=[])))
    public = Public(prompt=_told(row), data={"file": f"{name}.py", "support": {_NODE: nodes}})
    return _task(row, public, {"tests": {f"{name}_test.py": text}}, "unittest")


def _test_functions(test: str) -> list[ast.FunctionDef]:
    return [one for one in parse(test).body if isinstance(one, ast.FunctionDef) and one.name.startswith("test")]


def _method(function: ast.FunctionDef) -> ast.FunctionDef:
    """Return a test function as a method of a test case, its assertions as unittest's."""
    body = [_assertion(one) for one in function.body if not _is_text(one)]
    arguments = ast.arguments(posonlyargs=[], args=[ast.arg("self")], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.FunctionDef(name=f"test_{function.name.removeprefix('test').lstrip('_')}", args=arguments, body=body,
                           decorator_list=[], returns=None)  # fmt: skip


def _assertion(statement: ast.stmt) -> ast.stmt:
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            return _call("assertEqual", [left, right])
        case ast.Assert(test=ast.UnaryOp(op=ast.Not(), operand=operand)):
            return _call("assertFalse", [operand])
        case ast.Assert(test=test):
            return _call("assertTrue", [test])
    return statement


def _call(name: str, arguments: Sequence[ast.expr]) -> ast.stmt:
    words = ", ".join(map(ast.unparse, arguments))
    return parse(f"self.{name}({words})").body[0]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _task(row: Row, public: Public, hidden: dict[str, JsonValue], grader: str | None) -> Task:
    name = str(row["id"])
    return Task(
        id=name,
        split=split_of(digest(name)),
        public=public,
        hidden=Hidden(data=hidden, reference={"code": row["fixed"], "stub": row["buggy"]}),
        grader=grader,
    )


def _told(row: Row) -> str:
    return f"One line of this program is wrong. Mend it and hand in the whole program.\n\n{row['buggy'].strip()}"
