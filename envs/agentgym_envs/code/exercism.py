"""Read exercises of the Exercism Python track: a stub to fill in, judged by a unittest file."""

from __future__ import annotations

import ast
from pathlib import Path

from pydantic import JsonValue

from agentgym.graders.sources import parse
from agentgym.graders.twins import tests_of
from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import digest, split_of

VISIBLE_SHARE = 4
"""One test in so many is visible, at least one."""


def tasks(path: Path) -> FileTasks:
    """Return the exercises of a file; splits go by the hash of the id."""
    return FileTasks("exercism", path, convert, lambda row: str(row["id"]))


def convert(row: Row) -> Task:
    """Return the task of a row.

    Raises:
        Refused: it is not one file to write, its tests cannot be read, or its own solution is known to fail.
    """
    stub, reference, tests = row["stub"], row["reference"], row["tests"]
    if row.get("verified", {}).get("reference_passes") is False:
        raise Refused("its own solution fails its tests")
    if len(stub) != 1 or set(stub) != set(reference):
        raise Refused(f"wanted one file to write and its solution, found {sorted(stub)} and {sorted(reference)}")
    ((file, source),) = stub.items()
    suites = {name: text for name, text in tests.items() if tests_of(text)}
    if not suites:
        raise Refused(f"no test methods can be read from {sorted(tests)}")
    others = {**row.get("editor", {}), **row.get("extra", {}), **tests}
    support: dict[str, JsonValue] = {
        name: text for name, text in others.items() if name.endswith(".py") and name not in suites
    }
    visible: dict[str, JsonValue] = {name: shown for name, text in suites.items() if (shown := visible_part(text))}
    name = str(row["id"])
    return Task(
        id=name,
        split=split_of(digest(name)),
        public=Public(
            prompt=f"{row['instructions'].strip()}\n\nFill in `{file}`:\n\n{source.strip()}",
            data={"file": file, "visible": visible, "support": support},
        ),
        hidden=Hidden(data={"tests": {**suites}}, reference={"code": reference[file], "stub": source}),
        grader="unittest",
        difficulty=row.get("difficulty"),
    )


def visible_part(source: str, *, of_each_class: bool = False) -> str:
    """Return a test file with its first tests only, or with the first tests of each of its classes."""
    module = parse(source)
    wanted = tests_of(source)
    groups = [[one for one in wanted if one[0] == suite] for suite in dict.fromkeys(suite for suite, _ in wanted)]
    kept = {
        one for tests in (groups if of_each_class else [wanted]) for one in tests[: max(1, len(tests) // VISIBLE_SHARE)]
    }
    for one in module.body:
        if isinstance(one, ast.ClassDef):
            tests = {name for suite, name in wanted if suite == one.name}
            body = [
                part
                for part in one.body
                if not (isinstance(part, ast.FunctionDef) and part.name in tests and (one.name, part.name) not in kept)
            ]
            one.body = body or [ast.Pass()]
    return ast.unparse(module)
