"""Read tasks in the HumanEval format: the start of a function, its completion, and a `check(candidate)` function."""

from __future__ import annotations

import ast
from pathlib import Path

from agentgym.graders.sources import parse
from agentgym.task import Hidden, Public, Task
from agentgym.types import Split
from agentgym_envs.code.asserts import Cased, Inexpressible, cases_of
from agentgym_envs.code.mbpp import VISIBLE, decisive, imports_of, shown
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import DEFAULT_FILE

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def tasks(path: Path) -> FileTasks:
    """Return the tasks of a file; where a row names no split, it is `test`: the format is a benchmark's."""
    return FileTasks("humaneval", path, convert, lambda row: str(row["task_id"]))


def convert(row: Row) -> Task:
    """Return the task of a row: judged by calls where its tests are assertions, else by running `check` as a test.

    Raises:
        Refused: it has too few tests.
    """
    named: Split = row.get("split", "test")
    if named not in _SPLITS:
        raise ValueError(f"wanted a split among {', '.join(_SPLITS)}, found {named!r}")
    prompt, entry = row["prompt"], row["entry_point"]
    reference = prompt + row["canonical_solution"]
    try:
        cases = _cases(row["test"], entry)
    except Inexpressible:
        return _tested(row, named, reference)
    if len(cases) <= VISIBLE:
        raise Refused(f"wanted more than {VISIBLE} assertions, found {len(cases)}")
    setup = _preamble(prompt, entry)
    return Task(
        id=str(row["task_id"]),
        split=named,
        public=Public(prompt=_told(prompt), data=shown(cases, [entry], setup)),
        hidden=Hidden(
            data=decisive(cases, f"{imports_of(row['test'])}\n{setup}"),
            reference={"code": reference},
        ),
    )


def _cases(test: str, entry: str) -> list[Cased]:
    module = parse(test)
    checks = [one for one in module.body if isinstance(one, ast.FunctionDef) and one.name == "check"]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise ValueError("wanted one function check(candidate) in 'test'")
    others = [one for one in module.body if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and one is not checks[0]]
    if others:
        raise Inexpressible(f"tests with the helper {others[0].name!r}")
    renamed = _Rename(checks[0].args.args[0].arg, entry)
    return cases_of([renamed.visit(one) for one in checks[0].body], frozenset({entry}))


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(id=self.new, ctx=node.ctx) if node.id == self.old else node


def _preamble(prompt: str, entry: str) -> str:
    """Return the imports and helpers that stand before the function."""
    body = [one for one in parse(prompt).body if getattr(one, "name", None) != entry]
    return "\n".join(ast.unparse(one) for one in body)


def _told(prompt: str) -> str:
    return f"Complete this function. Hand in the whole program, imports and helpers included.\n{prompt.rstrip()}"


def _tested(row: Row, split: Split, reference: str) -> Task:
    module = DEFAULT_FILE.removesuffix(".py")
    test = (
        f"import unittest\nfrom {module} import *\nfrom {module} import {row['entry_point']}\n\n{row['test']}\n\n"
        f"class Check(unittest.TestCase):\n    def test_check(self):\n        check({row['entry_point']})\n"
    )
    return Task(
        id=str(row["task_id"]),
        split=split,
        public=Public(prompt=_told(row["prompt"]), data={"file": DEFAULT_FILE}),
        hidden=Hidden(data={"tests": {"check_test.py": test}}, reference={"code": reference}),
        grader="unittest",
    )
