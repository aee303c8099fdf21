"""tau-bench's tasks of both domains, from files that the user points at, or from rows that are made here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from pydantic import JsonValue

from agentgym.errors import TaskError
from agentgym.graders.sources import parse
from agentgym.task import Public, Task
from agentgym.types import Split
from agentgym_envs.rows import Placed, Refused, Row, RowTasks, json_lines
from agentgym_envs.tools.airline import AirlineWorld
from agentgym_envs.tools.retail import RetailWorld
from agentgym_envs.tools.sealing import sealed
from agentgym_envs.tools.state_hash import StateHash
from agentgym_envs.tools.tables import Start, Tables
from agentgym_envs.tools.users import UserScript, first_person
from agentgym_envs.tools.world import World

_DOMAINS: Mapping[str, tuple[type[World], tuple[str, ...]]] = {
    "retail": (RetailWorld, ("orders", "products", "users")),
    "airline": (AirlineWorld, ("flights", "reservations", "users")),
}
_SPLITS: Mapping[str, Split] = {"train": "train", "dev": "validation", "test": "test"}
_EQUALITY = {"one_number_type": True, "float_digits": 12}
_FACTS = {
    "email|e-mail": (r"\b[\w.+-]+@[\w.-]+\w", "My email is {}."),
    "name": (r"[Nn]ame is ([A-Z]\w+ [A-Z]\w+)", "My name is {}."),
    "user id": (r"\b[a-z]+_[a-z]+_\d{4}\b", "My user id is {}."),
    "zip": (r"\b\d{5}\b", "My zip code is {}."),
}


class TauTasks(RowTasks):
    """Tasks over one domain's records.

    A row is refused, with the reason, if its gold actions change nothing (doing nothing would solve it), or do not
    leave the state behind whose hash it tells.
    """

    def __init__(self, domain: str, start: Callable[[], Start], rows: Callable[[], Iterator[Placed]]) -> None:
        self._world = _DOMAINS[domain][0]
        self._read_start = start
        super().__init__(f"tau_bench {domain}", rows, self._task, lambda row: str(row["id"]))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Read `tasks_train`, `tasks_dev` and `tasks_test`, as JSON Lines or as the benchmark's own Python files.

        The records are JSON files in the subfolder `db` or `data`; which there are tells the domain. Python files are
        read as literals and never run.

        Raises:
            TaskError: there are no records of a domain.
        """
        place = Path(folder)
        files = {name: [one for one in (place / "db", place / "data") if (one / f"{tables[0]}.json").is_file()]
                 for name, (_, tables) in _DOMAINS.items()}  # fmt: skip
        domain = next((name for name, found in files.items() if found), None)
        if domain is None:
            wanted = " or ".join(f"{tables[0]}.json" for _, tables in _DOMAINS.values())
            raise TaskError(f"no records can be read at {place}; wanted {wanted} in its subfolder db or data")
        start = partial(_read_records, files[domain][0], _DOMAINS[domain][1])
        return cls(domain, start, partial(_rows, place, domain))

    def world(self) -> World:
        """Return a new world as it is at the start."""
        return self._world(Tables(self.start))

    @cached_property
    def start(self) -> Start:
        """The records that all tasks begin with.

        Raises:
            TaskError: they cannot be read.
        """
        return self._read_start()

    @cached_property
    def _hash(self) -> StateHash:
        return StateHash(self.start)

    def _task(self, row: Row) -> Task:
        world = self.world()
        for action in row["actions"]:
            try:
                world.call(action["name"], action["kwargs"])
            except ValueError:  # gold actions that the world refuses are part of some tasks
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
            hidden=sealed({"parts": {"records": part}, "communicate": outputs}, row["actions"]),
            difficulty=float(len(row["actions"])),
        )


def _read_records(folder: Path, tables: tuple[str, ...]) -> Start:
    try:
        return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in tables}
    except (OSError, ValueError) as error:
        raise TaskError(f"no records can be read at {folder}: {error}") from error


def _rows(folder: Path, domain: str) -> Iterator[Placed]:
    named = {folder / f"tasks_{name}{end}": name for name in _SPLITS for end in (".jsonl", ".py")}
    found = {path: name for path, name in named.items() if path.is_file()}
    if not found:
        raise TaskError(f"no task file in {folder}; wanted {', '.join(path.name for path in named)}, or one of them")
    for path, name in found.items():
        if path.suffix == ".py":
            rows = [(place, {**row, "id": f"{domain}/{name}/{at}"}) for at, (place, row) in enumerate(_literals(path))]
        else:
            rows = [(place, json.loads(line)) for place, line in json_lines(path)]
        for place, row in rows:
            yield place, {**row, "split": _SPLITS[name]}


def _literals(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tasks of a Python file, which lists them as `Task(…, actions=[Action(…)])`."""
    try:
        tree = parse(path.read_text("utf-8"))
        for statement in tree.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.List):
                for node in statement.value.elts:
                    yield f"{path}:{node.lineno}", _literal(node)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TaskError(f"{path} is no list of tasks written as literals: {error}") from error


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="Task" | "Action"), args=[], keywords=keywords):
            return {str(one.arg): _literal(one.value) for one in keywords}
        case ast.List(elts=elements):
            return [_literal(one) for one in elements]
    return ast.literal_eval(node)


def _facts(instruction: str) -> dict[str, str]:
    found = {words: (re.search(pattern, instruction), says) for words, (pattern, says) in _FACTS.items()}
    return {words: says.format(one[one.re.groups]) for words, (one, says) in found.items() if one is not None}
