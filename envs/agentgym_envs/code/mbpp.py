"""Read tasks in the MBPP format: a sentence, a solution, and a list of assert statements."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from agentgym.graders.sources import parse
from agentgym.task import Hidden, Public, Task
from agentgym.types import Split
from agentgym_envs.code.asserts import Cased, Inexpressible, cases_of, defined, used
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import digest, split_of

VISIBLE = 1
_SPLITS: dict[str, Split] = {
    "train": "train",
    "prompt": "train",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


def tasks(path: Path) -> FileTasks:
    """Return the tasks of a file; the first assertion of each is visible, all of them decide."""
    return FileTasks("mbpp", path, convert, identify)


def identify(row: Row) -> str:
    """Return a row's id."""
    return str(row["id"]) if "id" in row else f"mbpp/{row['task_id']}"


def split(row: Row) -> Split:
    """Return the file's own split, or one by the hash of the id."""
    named = row.get("split")
    if named is None:
        return split_of(digest(identify(row)))
    if named not in _SPLITS:
        raise ValueError(f"wanted a split among {', '.join(_SPLITS)}, found {named!r}")
    return _SPLITS[named]


def convert(row: Row) -> Task:
    """Return the task of a row.

    Raises:
        Refused: its solution is known to fail, or its tests cannot be told as calls and conditions.
    """
    if row.get("gold_passes") is False:
        raise Refused("its own solution fails its tests")
    code = row["code"].replace("\r\n", "\n")
    setup = "\n".join([*row.get("test_imports", ()), row.get("test_setup_code") or ""]).strip()
    names = defined(code)
    cases: list[Cased] = []
    try:
        for test in row["test_list"]:
            cases += cases_of(parse(test.strip()).body, names)
    except Inexpressible as reason:
        raise Refused(str(reason)) from reason
    except SyntaxError as error:
        raise Refused(f"a test that is not Python: {error.msg}") from error
    if len(cases) <= VISIBLE:
        raise Refused(f"wanted more than {VISIBLE} assertions, found {len(cases)}")
    text = row.get("prompt") or row["text"]
    return Task(
        id=identify(row),
        split=split(row),
        public=Public(
            prompt=f"{text.strip()}\nThis must hold:\n{row['test_list'][0].strip()}",
            data=shown(cases, used(cases, names), setup),
        ),
        hidden=Hidden(data=decisive(cases, setup or imports_of(code)), reference={"code": code}),
    )


def shown(cases: Sequence[Cased], entry: Sequence[str], setup: str) -> dict[str, JsonValue]:
    """Return the data that the agent may see: the first case, the names to define, and what runs before its code.

    The files ask with `==`, and some of their own solutions answer 1 for True or 3.0 for 3.
    """
    data: dict[str, JsonValue] = {"examples": [*cases[:VISIBLE]], "entry": [*entry], "comparison": {"mode": "python"}}
    return {**data, "setup": setup} if setup else data


def decisive(cases: Sequence[Cased], setup: str) -> dict[str, JsonValue]:
    """Return the data that only the grader may see: all other cases."""
    return {"cases": [*cases[VISIBLE:]], "check_setup": setup}


def imports_of(source: str) -> str:
    """Return the import statements at the top of a module: what its tests may use without importing it themselves."""
    return "\n".join(ast.unparse(one) for one in parse(source).body if isinstance(one, (ast.Import, ast.ImportFrom)))
