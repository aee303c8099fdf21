"""Reads SQLite databases that others wrote, inside a sandbox, as nothing but rows.

Sent as text: `python3 -I -S -c <this file>`. Standard input is one Python literal written by the grader: names of files
to read, or SQL to make a database from, and limits. Every line of standard output is JSON: a table with its columns, a
row of tagged cells, or why there is no more.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any

# Function calls, views that call them, attached files and extensions: whatever is not reading a table is refused.
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
PRAGMAS = ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "query_only = ON", "cache_size = -8192")


def cell(value: Any) -> list[str]:
    """Write one value with its storage class; text is bytes, because a database may hold any."""
    if value is None:
        return ["n", ""]
    if isinstance(value, int):
        return ["i", str(value)]
    if isinstance(value, float):
        return ["f", value.hex()]
    if isinstance(value, str):
        return ["s", value.encode("utf-8", "surrogateescape").hex()]
    return ["b", value.hex()]


def quoted(name: str) -> str:
    """Quote an identifier."""
    return '"' + name.replace('"', '""') + '"'


def harden(database: sqlite3.Connection, limits: dict[str, int]) -> None:
    """Take from a connection all that a hostile file could use."""
    database.enable_load_extension(False)
    for one in PRAGMAS:
        database.execute(f"PRAGMA {one}")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits["cell_bytes"])
    database.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 500)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    ends = time.monotonic() + limits["seconds"]
    database.set_progress_handler(lambda: time.monotonic() > ends, 10_000)
    database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")


def tables(database: sqlite3.Connection) -> list[str]:
    """Return the names of the ordinary tables; a virtual one is refused, because reading it runs code."""
    found = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    for name, sql in found:
        if str(sql or "").upper().split()[:2] == ["CREATE", "VIRTUAL"]:
            raise sqlite3.DatabaseError(f"{name[:60]} is a virtual table")
    return [name for name, _ in found if not name.startswith("sqlite_")]


def read(database: sqlite3.Connection, limits: dict[str, int]) -> None:
    """Write every row of every table."""
    harden(database, limits)
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("the file is damaged")
    names = tables(database)
    database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY)
    left = limits["rows"]
    for name in names:
        cursor = database.execute(f"SELECT * FROM {quoted(name)}")
        write(["table", name, [one[0] for one in cursor.description]])
        for row in cursor:
            left -= 1
            if left < 0:
                raise sqlite3.DatabaseError(f"more than {limits['rows']} rows")
            write(["row", [cell(value) for value in row]])


def write(line: list[Any]) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(line) + "\n")


def main() -> None:
    """Read the database of the request."""
    request = eval(sys.stdin.buffer.read(), {})  # written by the grader, not by the agent
    try:
        if "sql" in request:
            database = sqlite3.connect(":memory:")
            database.executescript(request["sql"])
        else:
            path = os.path.abspath(request["path"])  # noqa: PTH100
            database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        read(database, request["limits"])
        write(["end"])
    except (sqlite3.Error, UnicodeError, ValueError, OverflowError) as error:
        write(["error", f"{type(error).__name__}: {error}"[:200]])


if __name__ == "__main__":
    main()
