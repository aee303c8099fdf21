"""Read ClassEval tasks: a class to fill in, judged by one test class per method, some tests of each visible."""

from __future__ import annotations

import ast
from pathlib import Path

from agentgym.graders.sources import parse
from agentgym.graders.twins import tests_of
from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.exercism import visible_part
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import digest, split_of

_FILE, _TESTS = "solution.py", "solution_test.py"


def tasks(path: Path) -> FileTasks:
    """Return the tasks of a file; splits go by the hash of the id."""
    return FileTasks("classeval", path, convert, lambda row: str(row["id"]))


def convert(row: Row) -> Task:
    """Return the task of a row.

    Raises:
        Refused: its own solution is known to fail, or its tests cannot be read.
    """
    if row.get("verified", {}).get("status", "ok") != "ok":
        raise Refused("its own solution fails its tests")
    suite = _imported(row["solution"], row["test"], row["class_name"]) + row["test"]
    if not tests_of(suite):
        raise Refused("no test methods can be read from it")
    name = str(row["id"])
    return Task(
        id=name,
        split=split_of(digest(name)),
        public=Public(
            prompt=f"Fill in every method of this class, in `{_FILE}`.\n\n{row['skeleton'].strip()}",
            data={"file": _FILE, "visible": {_TESTS: visible_part(suite, of_each_class=True)}, "support": {}},
        ),
        hidden=Hidden(data={"tests": {_TESTS: suite}}, reference={"code": row["solution"], "stub": row["skeleton"]}),
        grader="unittest",
    )


def _imported(solution: str, tests: str, class_name: str) -> str:
    """Return the imports of a test file that was written to stand below its solution.

    By name, and modules from where they really are: a star would let a submission hand in its own `len`.
    """
    used = {one.id for one in ast.walk(parse(tests)) if isinstance(one, ast.Name)}
    lines, defined = [], {class_name}
    for one in parse(solution).body:
        if isinstance(one, (ast.Import, ast.ImportFrom)):
            if used & {(alias.asname or alias.name).split(".")[0] for alias in one.names}:
                lines.append(ast.unparse(one))
        elif isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name in used:
            defined.add(one.name)
    return "\n".join([*lines, f"from {_FILE.removesuffix('.py')} import {', '.join(sorted(defined))}", ""])
