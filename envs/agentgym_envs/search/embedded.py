"""BM25 over an index file, in this process: SQLite's FTS5, read-only, from any number of threads."""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from agentgym.errors import InfrastructureError, TaskError
from agentgym_envs.search.index import read_meta
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.query import match_expression, words
from agentgym_envs.search.retriever import Hit, check_k

_SECONDS = 30.0
_MOST_FREQUENT = 8
"""So many frequent words are searched where a query has no others; each reads more than half of the passages."""
KEPT = 16
"""So many connections wait for their next search; each is an open file. More are opened while more search at once."""
_STEPS = 100_000
"""SQLite's instructions between two looks at the clock."""
_COLUMNS = "number, id, title, text, links"
_opened: dict[tuple[str, int, int, int], EmbeddedRetriever] = {}
_lock = threading.Lock()


class EmbeddedRetriever:
    """BM25 as FTS5 has it, with k1 = 1.2 and b = 0.75, over title and text as one.

    A word that stands in more than half of the passages has a weight of a millionth in FTS5's BM25. It is left out of
    a query that has others: that changes nothing but the order of ties, and finds in a quarter of the time. Of a query
    that has no others, the first eight are searched.
    """

    def __init__(self, path: str | Path) -> None:
        """Open an index file.

        Raises:
            TaskError: it is missing, or is no index file.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise TaskError(f"no search index at {path}; make one with: agentgym search index CORPUS --to {path}")
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._using = threading.Lock()
        self._closed = False
        connection = self._connect()
        try:
            meta = read_meta(connection, self.path)
            self._frequent = frozenset(word for (word,) in connection.execute("SELECT word FROM frequent"))
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        self.digest = meta["digest"]
        """Of the passages, as `agentgym search index` told it."""
        self.passages = int(meta["passages"])
        """How many there are."""

    @classmethod
    def shared(cls, path: str | Path) -> EmbeddedRetriever:
        """Return the one of this file that all environments of a process use; a file that was replaced is opened anew.

        Raises:
            TaskError: it is missing, or is no index file.
        """
        file = Path(path).resolve()
        if not file.is_file():
            return cls(path)
        found = file.stat()
        key = (str(file), found.st_ino, found.st_mtime_ns, found.st_size)
        with _lock:
            if key not in _opened:
                _opened[key] = cls(file)
            return _opened[key]

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the best hits; ties stand in the corpus's order.

        Raises:
            ValueError: the query takes too long.
        """
        check_k(k)
        chosen = self._weighty(words(query))
        if not chosen:
            return []
        with self._connection() as connection:
            try:
                found = connection.execute(
                    "SELECT rowid, bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT ?",
                    (match_expression(chosen), k),
                ).fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                    raise ValueError("the query takes too long; use rarer words") from error
                raise
            passages = self._fetch(connection, [number for number, _ in found])
        return [Hit(passages[number], -score) for number, score in found]

    def get(self, name: str) -> Passage | None:
        """Return the passage with this id, else the first with this title, in any case."""
        wanted = name.encode("utf-8", "replace").decode()
        with self._connection() as connection:
            row = connection.execute(f"SELECT {_COLUMNS} FROM passages WHERE id = ?", (wanted,)).fetchone()
            row = (
                row
                or connection.execute(
                    f"SELECT {_COLUMNS} FROM passages WHERE title = ? COLLATE NOCASE ORDER BY number LIMIT 1", (wanted,)
                ).fetchone()
            )
        return _passage(row) if row else None

    def has(self, name: str) -> bool:
        """Whether there is a passage with this id."""
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM passages WHERE id = ?", (name,)).fetchone() is not None

    def all(self) -> Iterator[Passage]:
        """Yield every passage, in the corpus's order."""
        last = 0
        while True:
            with self._connection() as connection:
                rows = connection.execute(
                    f"SELECT {_COLUMNS} FROM passages WHERE number > ? ORDER BY number LIMIT 1000", (last,)
                ).fetchall()
            if not rows:
                return
            yield from map(_passage, rows)
            last = rows[-1][0]

    def numbered(self, numbers: Sequence[int]) -> list[Passage]:
        """Return the passages at these places of the corpus, counted from 0."""
        with self._connection() as connection:
            found = self._fetch(connection, [one + 1 for one in numbers])
        return [found[one + 1] for one in numbers]

    def enter(self, user: object) -> None:
        """Keep connections for a user, such as an environment with an episode, until it leaves."""
        with self._using:
            self._users.add(user)

    def leave(self, user: object) -> None:
        """Let go of a user; the last one takes every idle connection with it. A later search opens one again."""
        with self._using:
            self._users.discard(user)
            if not self._users:
                self._rest()

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        self._rest()

    def _rest(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _weighty(self, query: list[str]) -> list[str]:
        return [one for one in query if one.lower() not in self._frequent] or query[:_MOST_FREQUENT]

    def _fetch(self, connection: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, Passage]:
        marks = ", ".join("?" * len(numbers))
        rows = connection.execute(f"SELECT {_COLUMNS} FROM passages WHERE number IN ({marks})", list(numbers))
        return {row[0]: _passage(row) for row in rows}

    def _connect(self) -> sqlite3.Connection:
        # Immutable: no lock is taken and nothing is written beside the file, which is only ever replaced as a whole.
        where = f"file:{quote(str(self.path.resolve()))}?mode=ro&immutable=1"
        return sqlite3.connect(where, uri=True, check_same_thread=False, isolation_level=None)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        deadline = time.monotonic() + _SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        try:
            yield connection
        except sqlite3.Error as error:
            raise InfrastructureError(f"the search index {self.path} cannot be read: {error}") from error
        finally:
            if self._closed or self._idle.qsize() >= KEPT:
                connection.close()
            else:
                self._idle.put(connection)


def _passage(row: tuple[int, str, str, str, str]) -> Passage:
    _, name, title, text, links = row
    return Passage.model_construct(id=name, title=title, text=text, links=tuple(json.loads(links)))
