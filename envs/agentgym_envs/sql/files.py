"""Read questions in the formats of Spider and of defog's sql-eval, with the databases that lie beside them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from agentgym.errors import TaskError
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym_envs.code.splits import digest, split_of
from agentgym_envs.sql.partial import outermost_order

_ASKS_FOR_ORDER = re.compile(
    r"\b(order|ordered|sort|sorted|descending|ascending|starting from|alphabetical\w*)\b", re.I
)


def spider(path: Path) -> TaskSet:
    """Return the tasks of a Spider file: `question`, `db_id`, and `query` or `gold_sql`.

    Rows are to be in order where a row's own `ordered` says so, else where the gold orders its result. A row without
    a `split` is in that of its database, so that no two splits share one.
    """
    return TaskSet("spider", lambda: (_task(path, number, row, "spider") for number, row in _rows(path)))


def defog(path: Path) -> TaskSet:
    """Return the tasks of a file in defog's format: as Spider's, with several golds, and `instructions` to some.

    Rows are to be in order where the question says so in words: golds order theirs for no reason.
    """
    return TaskSet("defog", lambda: (_task(path, number, row, "defog") for number, row in _rows(path)))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a JSON list or of JSON Lines."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
    except OSError as error:
        raise TaskError(f"no questions can be read at {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} is neither a JSON list nor JSON Lines: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TaskError(f"{path}: question {number} is no object, but {type(row).__name__}")
        yield number, row


def _task(path: Path, number: int, row: Mapping[str, Any], family: str) -> Task:
    question, db = row.get("question"), row.get("db_id") or row.get("db_name")
    found = row.get("gold_sql", row.get("query"))
    golds = [found] if isinstance(found, str) else found
    if not (isinstance(question, str) and isinstance(db, str) and isinstance(golds, list) and golds):
        raise TaskError(f"{path}: question {number} wants question, db_id, and query or gold_sql; it has {sorted(row)}")
    file = _database(path, db)
    told = question if not row.get("instructions") else f"{question}\n{row['instructions']}"
    if family == "spider":
        ordered = bool(row["ordered"]) if "ordered" in row else outermost_order(golds[0])
    else:
        ordered = bool(_ASKS_FOR_ORDER.search(question)) and all(map(outermost_order, golds))
    return Task(
        id=str(row.get("id", f"{family}/{path.stem}/{number}")),
        split=row.get("split") or split_of(digest(db)),
        public=Public(prompt=told, data={"database": {"file": str(file), "sha256": _hash(file)}}),
        hidden=Hidden(data={"golds": [one.strip().rstrip(";") for one in golds], "ordered": ordered}),
        grader="sql",
    )


def _database(path: Path, name: str) -> Path:
    folder = path.parent
    places = (folder / "databases" / f"{name}.sqlite", folder / "database" / name / f"{name}.sqlite")
    for one in places:
        if one.is_file():
            return one.resolve()
    raise TaskError(f"{path} speaks of a database {name!r}; wanted it at {places[0]} or {places[1]}")


@cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
