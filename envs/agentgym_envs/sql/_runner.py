"""Puts queries that others wrote to SQLite databases, inside a sandbox, and changes nothing.

Sent as text, after `_variants.py`: `python3 -I -S -c <both>`. Standard input is one Python literal: the database, seeds
of copies to make of it, queries, limits. Every line of standard output is JSON: what one query gave, and at the end the
database's hash before and after.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sqlite3
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any

    from agentgym_envs.sql._variants import variant

RECURSIVE = 33
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, RECURSIVE}
FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}
STEP = 1000


class RefusedError(Exception):
    """The query is more than one plain question."""


class Watch:
    """Lets a connection only read, counts its steps, and notes which columns a query names."""

    def __init__(self, limits: dict[str, int]) -> None:
        self.reads: set[tuple[str, str]] = set()
        self.denied = False
        self.steps = 0
        self._limits = limits
        self._ends = time.monotonic() + limits["seconds"]

    def authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        """Answer SQLite's question whether a statement may do something."""
        if action == sqlite3.SQLITE_READ:
            self.reads.add((str(first).lower(), str(second).lower()))
        allowed = action in ALLOWED and not (
            action == sqlite3.SQLITE_FUNCTION and str(second).lower() in FORBIDDEN_FUNCTIONS
        )
        self.denied = self.denied or not allowed
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def progress(self) -> bool:
        """Say whether the query has to stop: by its steps, which are the same on every machine, or by the clock."""
        self.steps += STEP
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the query took too long."""
        return self.steps > self._limits["steps"] or time.monotonic() > self._ends


def connect(path: str, limits: dict[str, int], watch: Watch, *, backwards: bool) -> sqlite3.Connection:
    """Open a database that nothing can change."""
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, isolation_level=None)
    database.enable_load_extension(False)
    for one in ("trusted_schema = OFF", "query_only = ON", "temp_store = MEMORY", "mmap_size = 0"):
        database.execute(f"PRAGMA {one}")
    database.execute(f"PRAGMA hard_heap_limit = {limits['memory_mb'] << 20}")
    database.execute(f"PRAGMA reverse_unordered_selects = {int(backwards)}")
    for name, most in (
        (sqlite3.SQLITE_LIMIT_LENGTH, limits["cell_bytes"]),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits["sql_bytes"]),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100),
        (sqlite3.SQLITE_LIMIT_COLUMN, 500),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    ):
        database.setlimit(name, most)
    database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    database.set_authorizer(watch.authorize)
    database.set_progress_handler(watch.progress, STEP)
    return database


def cell(value: Any) -> Any:
    """Write one value so that its storage class survives."""
    if isinstance(value, float):
        return ["f", value.hex()]
    if isinstance(value, bytes):
        return ["b", value.hex()]
    return value


def ask(path: str, sql: str, limits: dict[str, int], *, backwards: bool) -> dict[str, Any]:
    """Run one query; `end` is rows, refused, broken (as written), slow (beyond a limit) or failed (while it ran)."""
    # A function may compute for long without a step that could be counted: the kernel ends that.
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + limits["seconds"], resource.RLIM_INFINITY))
    watch = Watch(limits)
    found: dict[str, Any] = {"end": "rows", "columns": [], "rows": [], "problem": ""}
    database = connect(path, limits, watch, backwards=backwards)
    stage = "broken"
    try:
        if "\0" in sql:
            raise sqlite3.OperationalError("a NUL character")
        database.execute(f"EXPLAIN {sql}").close()
        stage = "failed"
        cursor = database.execute(sql)
        if cursor.description is None:
            raise RefusedError
        found["columns"] = [one[0] for one in cursor.description]
        size = 0
        for row in cursor:
            cells = [cell(value) for value in row]
            size += len(json.dumps(cells))
            if len(found["rows"]) >= limits["rows"] or size > limits["bytes"]:
                found.update(end="slow", rows=[], problem=f"more than {limits['rows']} rows or {limits['bytes']} bytes")
                break
            found["rows"].append(cells)
    except MemoryError:
        found.update(end="slow", rows=[], problem="too much memory")
    except (sqlite3.Error, sqlite3.Warning, RefusedError, ValueError, OverflowError) as error:
        found.update(end=stage, rows=[], problem=" ".join(str(error).split())[:300])
        if watch.denied or isinstance(error, RefusedError) or "one statement" in str(error):
            found.update(end="refused", problem="only one SELECT statement is allowed")
        elif watch.is_over:
            found.update(end="slow", problem="it takes too long")
    finally:
        database.close()
    found["reads"] = sorted(watch.reads)
    return found


def schema(path: str, limits: dict[str, int]) -> list[list[Any]]:
    """Return name, SQL and number of rows of every table and view."""
    database = connect(path, limits, Watch(limits), backwards=False)
    try:
        found = database.execute(
            "SELECT name, sql FROM sqlite_master "
            "WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
        ).fetchall()
        counts = {}
        for name, _ in found:
            quoted = '"' + name.replace('"', '""') + '"'
            counts[name] = database.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0]
        return [[name, sql, counts[name]] for name, sql in found]
    finally:
        database.close()


def digest(path: str) -> str:
    """Return the hash of a file."""
    with open(path, "rb") as file:  # noqa: PTH123 -- pathlib costs milliseconds to import
        return hashlib.sha256(file.read()).hexdigest()


def write(line: list[Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(line) + "\n")


def main() -> None:
    """Do what the request asks for."""
    request = eval(sys.stdin.buffer.read(), {})  # written by the host, not by the agent
    path, limits = os.path.abspath(request["path"]), request["limits"]  # noqa: PTH100
    if request.get("script"):
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(request["script"])
        database.close()
    before = digest(path)
    if request.get("schema"):
        write(["schema", schema(path, limits)])
    is_over = False
    for seed in request["seeds"]:
        copy = path if seed == 0 else variant(path, seed)
        for number, sql in enumerate(request["queries"]):
            for backwards in request["backwards"]:
                answer = ask(copy, sql, limits, backwards=backwards)
                write(["answer", seed, number, backwards, answer])
                is_over = is_over or (request["stops"] and answer["end"] != "rows")
        if copy != path:
            os.remove(copy)  # noqa: PTH107
        if is_over:
            break
    write(["end", before, digest(path)])


if __name__ == "__main__":
    main()
