"""AgentBench's questions about an operating system: a script that furnishes it, a question, an answer.

Most answers are small numbers: who always says 4 is right for every fourth question of the whole set. So at most
`per_answer` questions with the same answer are kept, chosen by the hashes of their ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

from agentgym.errors import TaskError
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Split
from agentgym_envs.code.refusals import Refused, Row, RowTasks, json_lines

HOME = "/home/student"
_IMAGE = ImageSpec(run=(f"mkdir -p {HOME}\nchmod 777 {HOME}\n",), env={"HOME": HOME})
_KNOWN = ("integer-match", "string-match")


def tasks(path: Path, per_answer: int | None) -> RowTasks:
    """Return the tasks of a file; `refused()` says which are left out, and why.

    Args:
        path: JSON Lines with id, description, init, check, gold_command and gold_output_debian12.
        per_answer: how many tasks may have the same answer; None keeps all.
    """
    if per_answer is not None and per_answer < 1:
        raise TaskError(f"wanted per_answer of at least 1, found {per_answer}")
    kept = lru_cache(maxsize=1)(lambda: _kept(path, per_answer))

    def convert(row: Row) -> Task:
        if (problem := _problem(row)) is not None:
            raise Refused(problem)
        if per_answer is not None and row["id"] not in kept():
            raise Refused(f"more than {per_answer} tasks have its answer, and others of them are kept")
        return _task(row)

    return RowTasks("agentbench_os", lambda: json_lines(path), convert, lambda row: str(row["id"]))


def _problem(row: Row) -> str | None:
    """Return why a row is no task on any machine but the one that its answer is from."""
    if row["check"] not in _KNOWN:
        return f"its answer is compared by {row['check']!r}, and depends on the file system"
    if not any(line.strip() and not line.strip().startswith("#") for line in str(row["init"]).splitlines()):
        return "its init script does nothing, so it asks about whatever machine it runs on"
    return None


def _task(row: Row) -> Task:
    answer = str(row["gold_output_debian12"]).strip()
    data: dict[str, JsonValue] = {"kind": "exact", "golds": [answer]}
    if row["check"] == "integer-match":
        data = {"kind": "numeric", "gold": int(answer), "abs_tol": 0}
    return Task(
        id=str(row["id"]),
        split=_split(str(row["id"])),
        public=Public(prompt=str(row["description"]).strip(), data={"init": str(row["init"])}),
        hidden=Hidden(data=data, reference={"command": str(row["gold_command"]), "answer": answer}),
        sandbox=SandboxSpec(
            image=_IMAGE.name, writable_root=True, workdir=HOME, env={"HOME": HOME}, memory_mb=256, pids=128
        ),
        grader="answer",
    )


def _kept(path: Path, per_answer: int | None) -> frozenset[str]:
    by_answer: dict[str, list[str]] = defaultdict(list)
    for row in _rows(path):
        if _problem(row) is None:
            by_answer[str(row["gold_output_debian12"]).strip()].append(str(row["id"]))
    return frozenset(one for ids in by_answer.values() for one in sorted(ids, key=_digest)[:per_answer])


def _rows(path: Path) -> Iterator[Row]:
    for place, text in json_lines(path):
        try:
            yield json.loads(text)
        except ValueError as error:
            raise TaskError(f"{place} is not JSON: {error}") from error


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _split(name: str) -> Split:
    share = int(_digest(name)[:8], 16) / 0x1_0000_0000
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
