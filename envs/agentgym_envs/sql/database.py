"""Databases of tasks, and questions to them that run inside a sandbox only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from agentgym.errors import SandboxError, VerifierError
from agentgym.sandbox import Sandbox
from agentgym.task import Task
from agentgym.types import Record
from agentgym_envs.sql.compare import Cell, Row, Table

FILE = "database.sqlite"
_START_S, _PATIENCE = 20.0, 4.0
"""How much longer than its queries' limits a runner may take on a crowded machine."""


class Limits(Record):
    """What one query may use."""

    steps: Annotated[int, Field(ge=1000)] = 50_000_000
    """Instructions of SQLite's virtual machine: the same number on every machine, some two seconds' worth."""
    seconds: Annotated[int, Field(ge=1)] = 10
    rows: Annotated[int, Field(ge=1)] = 10_000
    bytes: Annotated[int, Field(ge=100)] = 4_000_000
    """Of the result as JSON."""
    memory_mb: Annotated[int, Field(ge=4)] = 64
    cell_bytes: Annotated[int, Field(ge=100)] = 1_000_000
    sql_bytes: Annotated[int, Field(ge=100)] = 20_000


class Database(Record):
    """Where a task's database comes from, kept in `public.data["database"]`."""

    script: str | None = None
    """SQL that makes it."""
    file: str | None = None
    """An SQLite file on this machine."""
    sha256: str | None = None
    """The file's hash: another file at its place is refused."""
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.script is None) == (self.file is None) or (self.file is None) != (self.sha256 is None):
            raise ValueError("wanted a script, or a file with its sha256")
        return self

    @classmethod
    def of(cls, task: Task) -> Self:
        """Return the database of a task.

        Raises:
            VerifierError: the task is malformed.
        """
        try:
            return cls.model_validate(task.public.data.get("database"))
        except ValidationError as error:
            first = error.errors()[0]
            raise VerifierError(f"the database of task {task.id!r} is malformed: {first['msg']}") from error

    @property
    def key(self) -> str:
        """A hash of what the database holds."""
        return self.sha256 or hashlib.sha256((self.script or "").encode()).hexdigest()

    def data(self) -> bytes | None:
        """Return the file's bytes; None for a script.

        Raises:
            VerifierError: the file is not there, or another.
        """
        if self.file is None:
            return None
        try:
            data = Path(self.file).read_bytes()
        except OSError as error:
            raise VerifierError(f"the task's database {self.file} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise VerifierError(f"{self.file} is not the database that the task was made for: its hash differs")
        return data


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query gave on one copy of a database."""

    seed: int
    query: int
    backwards: bool
    end: Literal["rows", "refused", "broken", "slow", "failed"]
    table: Table
    reads: frozenset[tuple[str, str]]
    """The columns that the query names, as SQLite resolved them."""
    problem: str


@dataclass(frozen=True, slots=True)
class Replies:
    """Everything that one run of the runner said."""

    answers: tuple[Answer, ...]
    schema: tuple[tuple[str, str, int], ...]
    """Name, SQL and number of rows of every table, if they were asked for."""
    before: str
    after: str
    """The database's hash before and after."""


class RunnerEndedError(Exception):
    """The runner ended without its last line; whose fault that is, the caller finds out."""


def install(box: Sandbox, database: Database) -> str:
    """Put a database into a sandbox and return its hash.

    Raises:
        VerifierError: the task's script fails, or its file is gone.
        SandboxError: the sandbox failed.
    """
    data = database.data()
    if data is not None:
        box.write(FILE, data)
    try:
        return ask(box, database, script=database.script).before
    except RunnerEndedError as error:
        raise VerifierError(f"the task's database cannot be made: {error}") from error


def ask(
    box: Sandbox,
    database: Database,
    queries: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (0,),
    backwards: Sequence[bool] = (False,),
    schema: bool = False,
    script: str | None = None,
    stops: bool = False,
) -> Replies:
    """Put queries to the installed database and to copies of it, 0 being itself; `stops` after a copy where one fails.

    Raises:
        RunnerEndedError: it was ended from within.
        SandboxError: the sandbox failed.
    """
    request = {
        "path": f"{box.workdir}/{FILE}",
        "script": script,
        "queries": list(queries),
        "seeds": list(seeds),
        "backwards": list(backwards),
        "schema": schema,
        "stops": stops,
        "limits": database.limits.model_dump(),
    }
    runs = len(queries) * len(seeds) * len(backwards)
    result = box.exec(
        ("python3", "-I", "-S", "-c", _program()),
        stdin=ascii(request).encode("ascii"),
        timeout=_START_S + _PATIENCE * database.limits.seconds * max(1, runs),
        output_limit=2 * (1 << 20) + 2 * runs * (database.limits.bytes + 65536),
    )
    if b"No module named" in result.stderr and b"sqlite3" in result.stderr:
        raise SandboxError("python3 in the sandbox has no sqlite3: use an image whose Python has it")
    if result.timed_out or result.truncated or result.exit_code != 0:
        last = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RunnerEndedError(f"exit code {result.exit_code}: {last[-1] if last else 'no reason given'}"[:300])
    try:
        return _replies(result.stdout)
    except (ValueError, IndexError, TypeError, RecursionError) as error:
        raise RunnerEndedError(f"it said something else than answers: {error}"[:300]) from error


@cache
def _program() -> str:
    files = resources.files("agentgym_envs.sql")
    texts = [files.joinpath(name).read_text(encoding="utf-8") for name in ("_variants.py", "_runner.py")]
    future = "from __future__ import annotations\n"
    return future + "\n".join(one.replace(future, "") for one in texts)


def _replies(output: bytes) -> Replies:
    answers: list[Answer] = []
    schema: list[tuple[str, str, int]] = []
    for line in map(json.loads, output.splitlines()):
        match line:
            case ["answer", int(seed), int(query), bool(backwards), dict(found)]:
                answers.append(_answer(seed, query, backwards, found))
            case ["schema", [*tables]]:
                schema = [(str(name), str(sql), int(count)) for name, sql, count in tables]
            case ["end", str(before), str(after)]:
                return Replies(tuple(answers), tuple(schema), before, after)
            case _:
                break
    raise ValueError("no last line")


def _answer(seed: int, query: int, backwards: bool, found: dict[str, Any]) -> Answer:
    columns = tuple(map(str, found["columns"]))
    rows = tuple(_row(one, len(columns)) for one in found["rows"])
    reads = frozenset((str(table), str(column)) for table, column in found["reads"])
    return Answer(seed, query, backwards, found["end"], Table(columns, rows), reads, str(found["problem"]))


def _row(cells: Sequence[Any], width: int) -> Row:
    if len(cells) != width:
        raise ValueError("a row of another width")
    return tuple(_cell(one) for one in cells)


def _cell(one: Any) -> Cell:
    match one:
        case ["f", str(text)]:
            return float.fromhex(text)
        case ["b", str(text)]:
            return bytes.fromhex(text)
        case None | int() | str():
            return one
    raise ValueError("a cell of no known kind")
