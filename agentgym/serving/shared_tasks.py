"""Tasks that all sessions of a server share, so that each is generated or read once and not once for every session."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

from agentgym.errors import TaskError
from agentgym.task import Task, TaskSet


class Remembered:
    """The source of a task set that remembers what another one gave; as lazy as that, and safe for many threads."""

    def __init__(self, tasks: TaskSet) -> None:
        self._lock = threading.Lock()
        self._tasks = tasks
        self._rest = iter(tasks)
        self._known: list[Task] = []
        self._error: TaskError | None = None

    def __call__(self) -> Iterator[Task]:
        """Yield every task; a malformed one fails in the same way each time, any other failure is tried again."""
        index = 0
        while self._has(index):
            yield self._known[index]
            index += 1

    def _has(self, index: int) -> bool:
        with self._lock:
            if index < len(self._known):
                return True
            if self._error is not None:
                raise self._error.with_traceback(None)  # else it would grow with every session
            try:
                self._known.append(next(self._rest))
            except StopIteration:
                return False
            except TaskError as error:
                self._error = error
                raise
            except Exception:
                self._rest = islice(iter(self._tasks), len(self._known), None)
                raise
            return True


def shared(tasks: TaskSet) -> TaskSet:
    """Return a set with the same tasks, each of which is made once."""
    return TaskSet(tasks.name, Remembered(tasks))
