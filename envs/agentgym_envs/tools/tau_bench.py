"""tau-bench's retail tasks, from files that the user points at."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from agentgym.errors import TaskError
from agentgym.task import Hidden, Public, Task
from agentgym.types import Split
from agentgym_envs.rows import Placed, Refused, RowTasks, json_lines
from agentgym_envs.tools.retail import RetailWorld
from agentgym_envs.tools.tables import Start, Tables
from agentgym_envs.tools.users import UserScript, first_person

_TABLES = ("orders", "products", "users")
_FILES: Mapping[str, Split] = {"train": "train", "dev": "validation", "test": "test"}
_EQUALITY = {"one_number_type": True, "float_digits": 12}
_FACTS = {
    "email|e-mail": (r"\b[\w.+-]+@[\w.-]+\w", "My email is {}."),
    "name": (r"[Nn]ame is ([A-Z]\w+ [A-Z]\w+)", "My name is {}."),
    "zip": (r"\b\d{5}\b", "My zip code is {}."),
}


class RetailTasks(RowTasks):
    """The tasks of `tasks_train.jsonl`, `tasks_dev.jsonl` and `tasks_test.jsonl` in a folder, over its `db/`.

    A row is refused, with the reason, if its gold actions change nothing (doing nothing would solve it), or do not
    leave the state behind whose hash it tells.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        super().__init__("tau_bench", partial(_rows, self.folder), self._task, lambda row: str(row["id"]))

    @cached_property
    def start(self) -> Start:
        """The shop that all tasks begin with.

        Raises:
            TaskError: the folder has no such files.
        """
        try:
            return {name: json.loads((self.folder / "db" / f"{name}.json").read_text("utf-8")) for name in _TABLES}
        except (OSError, ValueError) as error:
            raise TaskError(f"no shop can be read at {self.folder / 'db'}: {error}") from error

    @cached_property
    def _hash(self) -> StateHash:
        return StateHash(self.start)

    def _task(self, row: Mapping[str, Any]) -> Task:
        world = RetailWorld(Tables(self.start))
        for action in row["actions"]:
            try:
                world.call(action["name"], action["kwargs"])
            except ValueError:  # gold actions that the shop refuses are part of some tasks
                continue
            except (KeyError, TypeError) as error:
                raise Refused(f"the gold action {action['name']!r} cannot be replayed: {error}") from error
        changes = world.tables.changes()
        told = row.get("gold_db_sha256")
        if told is not None and self._hash(world.tables.touched()) != told:
            raise Refused("its gold actions do not leave the state behind whose hash it tells")
        outputs: list[JsonValue] = [str(one) for one in row.get("outputs", [])]
        if not changes and not outputs:
            raise Refused("its gold actions change nothing and it asks for no answer, so doing nothing would solve it")
        said = first_person(row["instruction"])
        script = UserScript(instruction=row["instruction"], facts=_facts(row["instruction"]))
        part: Any = {"kind": "json", "gold": changes, "start": {}, "equality": _EQUALITY}
        return Task(
            id=row["id"],
            split=row["split"],
            public=Public(prompt=said, data={"user": script.model_dump(mode="json")}),
            hidden=Hidden(
                data={"parts": {"records": part}, "communicate": outputs}, reference={"actions": row["actions"]}
            ),
            difficulty=float(len(row["actions"])),
        )


class StateHash:
    """Hashes a changed state as tau-bench does: SHA-256 of the text of nested, sorted tuples.

    Only the records that changed are written anew, so a hash of a large shop takes a few milliseconds.
    """

    def __init__(self, start: Start) -> None:
        self._texts = {
            name: {key: _pair(key, record) for key, record in sorted(table.items())} for name, table in start.items()
        }

    def __call__(self, touched: Start) -> str:
        """Return the hexadecimal hash of the start with these records in place of its own."""
        tables = []
        for name, texts in sorted(self._texts.items()):
            merged = {**texts, **{key: _pair(key, one) for key, one in touched.get(name, {}).items()}}
            tables.append(f"({name!r}, {_tuple(list(merged.values()))})")
        return hashlib.sha256(_tuple(tables).encode()).hexdigest()


def _rows(folder: Path) -> Iterator[Placed]:
    files = {folder / f"tasks_{name}.jsonl": split for name, split in _FILES.items()}
    found = {path: split for path, split in files.items() if path.is_file()}
    if not found:
        raise TaskError(f"no task file in {folder}; wanted {', '.join(path.name for path in files)}, or one of them")
    for path, split in found.items():
        for place, line in json_lines(path):
            yield place, {**json.loads(line), "split": split}


def _facts(instruction: str) -> dict[str, str]:
    found = {words: (re.search(pattern, instruction), says) for words, (pattern, says) in _FACTS.items()}
    return {words: says.format(one[one.re.groups]) for words, (one, says) in found.items() if one is not None}


def _pair(key: str, record: Any) -> str:
    return repr((key, _tuples(record)))


def _tuple(texts: list[str]) -> str:
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((name, _tuples(one)) for name, one in sorted(value.items()))
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
