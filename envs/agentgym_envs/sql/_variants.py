"""Makes copies of a database with other data, in which a right query is still right and a known answer is not.

Sent into the sandbox before `_runner.py`. The same seed makes the same copy of the same file.
"""

from __future__ import annotations

import random
import shutil
import sqlite3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_ROWS = 5000
"""Of larger tables, so many rows are changed."""


def name_of(text: str) -> str:
    """Quote an identifier."""
    return '"' + text.replace('"', '""') + '"'


def variant(path: str, seed: int) -> str:
    """Write the copy of a seed beside a database and return its path."""
    target = f"{path}.{seed}"
    shutil.copyfile(path, target)
    database = sqlite3.connect(target, isolation_level=None)
    database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    database.execute("PRAGMA foreign_keys = OFF")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN")
    rng = random.Random(seed)
    for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name_of(trigger)}")
    tables = [
        name
        for (name, sql) in database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()
        if not sql.upper().startswith("CREATE VIRTUAL")
    ]
    fixed = referred(database, tables)
    for table in tables:
        try:
            change(database, table, fixed, rng)
        except sqlite3.OperationalError:  # a table without row ids stays as it is
            continue
    database.execute("COMMIT")
    database.close()
    return target


def referred(database: sqlite3.Connection, tables: list[str]) -> set[tuple[str, str]]:
    """Return the columns that others refer to."""
    found = set()
    for table in tables:
        for row in database.execute(f"PRAGMA foreign_key_list({name_of(table)})").fetchall():
            found.add((row[2].lower(), (row[4] or "").lower()))
    return found


def change(database: sqlite3.Connection, table: str, fixed: set[tuple[str, str]], rng: random.Random) -> None:
    """Take away some rows, double others, and move the values of each column that is no key between rows.

    Values stay in their columns, so that conditions go on meaning something; a column of distinct values is only
    reordered, so that it goes on telling rows apart.
    """
    quoted = name_of(table)
    columns = [(row[1], row[5]) for row in database.execute(f"PRAGMA table_info({quoted})").fetchall()]
    keys = [name for name, place in columns if place]
    free = [name for name, place in columns if not place and (table.lower(), name.lower()) not in fixed]
    ids = [one for (one,) in database.execute(f"SELECT rowid FROM {quoted} ORDER BY rowid LIMIT {MOST_ROWS}")]
    for one in rng.sample(ids, len(ids) // 5):
        database.execute(f"DELETE FROM {quoted} WHERE rowid = ?", (one,))
        ids.remove(one)
    for name in free:
        move(database, quoted, name_of(name), ids, rng)
    if len(keys) <= 1 and ids:
        double(database, quoted, [name for name, _ in columns], keys, rng.sample(ids, (len(ids) + 5) // 6))


def move(database: sqlite3.Connection, table: str, column: str, ids: list[int], rng: random.Random) -> None:
    """Give rows each other's values of one column."""
    values: list[Any] = [
        database.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (one,)).fetchone()[0] for one in ids
    ]
    mixed = rng.sample(values, len(values))
    if len(set(values)) < len(values) and rng.random() < 0.5:
        mixed = rng.choices(values, k=len(values))
    for one, value in zip(ids, mixed, strict=True):
        database.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = ?", (value, one))


def double(database: sqlite3.Connection, table: str, columns: list[str], keys: list[str], ids: list[int]) -> None:
    """Add copies of rows, under keys of their own where a key is a number."""
    names = ", ".join(name_of(one) for one in columns)
    for one in ids:
        row = list(database.execute(f"SELECT {names} FROM {table} WHERE rowid = ?", (one,)).fetchone())
        if keys:
            most = database.execute(f"SELECT max({name_of(keys[0])}) FROM {table}").fetchone()[0]
            if not isinstance(most, int):
                return
            row[columns.index(keys[0])] = most + 1
        marks = ", ".join("?" * len(row))
        database.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", row)
