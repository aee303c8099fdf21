"""Build index files: one SQLite file with the passages and their BM25 index, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from agentgym.errors import AgentgymError, TaskError
from agentgym_envs.search.passages import Passage, digest_of
from agentgym_envs.search.query import segmented

FORMAT = "agentgym search index 1"
TOKENIZER = "unicode61 remove_diacritics 2"
_BATCH = 1000
_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA page_size = 4096;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE passages (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL, links TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5(passage, content='', tokenize='{TOKENIZER}');
"""
_FREQUENT = """
CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab('main', 'words', 'row');
CREATE TABLE frequent (word TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO frequent SELECT term FROM temp.vocabulary WHERE doc * 2 > (SELECT count(*) FROM passages);
DROP TABLE temp.vocabulary;
"""


@dataclass(frozen=True, slots=True)
class Built:
    """What an index file holds."""

    path: Path
    passages: int
    digest: str
    """SHA-256 of the passages in their order; the same corpus gives the same."""


def build(passages: Iterable[Passage], path: str | Path, on_progress: Callable[[int], None] = lambda _: None) -> Built:
    """Write an index file, replacing an older one only when the new one is complete.

    The same passages in the same order give the same bytes, on the same version of SQLite.

    Args:
        passages: what to index, read once.
        path: the file to write.
        on_progress: told the number of passages so far, every thousand and at the end.

    Raises:
        TaskError: two passages have one id, or there is none.
        AgentgymError: the file cannot be written, or this Python's SQLite has no FTS5.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise AgentgymError(f"no index can be written at {target}: {error.strerror}") from error
    part = Path(name)
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as connection:
            count, digest = _fill(connection, passages, on_progress)
        _keep(part, target)
    except sqlite3.Error as error:
        advice = "; this Python's SQLite lacks FTS5" if "fts5" in str(error) else ""
        raise AgentgymError(f"no index can be written at {target}: {error}{advice}") from error
    finally:
        part.unlink(missing_ok=True)
    return Built(target, count, digest)


def read_meta(connection: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Return what an index file says of itself.

    Raises:
        TaskError: it is no index file.
    """
    try:
        found = dict(connection.execute("SELECT name, value FROM meta"))
    except sqlite3.Error as error:
        raise TaskError(f"{path} is no search index: {error}; make one with: agentgym search index CORPUS") from error
    if found.get("format") != FORMAT:
        raise TaskError(f"{path} is {found.get('format', 'no search index')!r}, wanted {FORMAT!r}; build it again")
    return found


def _fill(
    connection: sqlite3.Connection, passages: Iterable[Passage], on_progress: Callable[[int], None]
) -> tuple[int, str]:
    connection.executescript(_SCHEMA)
    connection.execute("BEGIN")
    whole, count = hashlib.sha256(), 0
    numbered = enumerate(passages, start=1)
    while some := list(islice(numbered, _BATCH)):
        for _, one in some:
            whole.update(digest_of(one))
        try:
            connection.executemany("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", map(_row, some))
        except sqlite3.IntegrityError as error:
            raise TaskError(f"two passages have the id {_twin(connection, some)!r}; ids must be unique") from error
        words = ((number, segmented(f"{one.title}\n{one.text}")) for number, one in some)
        connection.executemany("INSERT INTO words (rowid, passage) VALUES (?, ?)", words)
        count = some[-1][0]
        on_progress(count)
    if not count:
        raise TaskError("the corpus holds no passage, so there is nothing to index")
    digest = whole.hexdigest()
    said = {"format": FORMAT, "digest": digest, "passages": str(count), "tokenizer": TOKENIZER}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", sorted(said.items()))
    connection.execute("CREATE INDEX titles ON passages (title COLLATE NOCASE)")
    connection.execute("INSERT INTO words (words) VALUES ('optimize')")
    connection.execute("COMMIT")
    connection.executescript(_FREQUENT)
    return count, digest


def _row(numbered: tuple[int, Passage]) -> tuple[int, str, str, str, str]:
    number, one = numbered
    return number, one.id, one.title, one.text, json.dumps(list(one.links), ensure_ascii=False)


def _twin(connection: sqlite3.Connection, some: Iterable[tuple[int, Passage]]) -> str:
    seen: set[str] = set()
    for number, one in some:
        known = connection.execute("SELECT number FROM passages WHERE id = ?", (one.id,)).fetchone()
        if one.id in seen or (known is not None and known[0] != number):
            return one.id
        seen.add(one.id)
    return "unknown"


def _keep(part: Path, target: Path) -> None:
    """Put the finished file in its place, and make sure that it is on disk before its name is."""
    part.chmod(0o644)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(target)
    with suppress(OSError):  # some file systems have no such thing as a folder's sync
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
