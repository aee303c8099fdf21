"""Task files whose unusable rows are listed with a reason instead of dropped in silence."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentgym.errors import TaskError
from agentgym.task import Task, TaskSet

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]
Placed = tuple[str, Any]
"""Where a row stands, such as `tasks.jsonl:3`, and the row."""


class Refused(Exception):  # noqa: N818 -- a finding about a row
    """A row that is well-formed but cannot be a task."""


class RowTasks(TaskSet):
    """One task per row, read lazily; `refused` says which rows cannot be tasks, and why."""

    def __init__(
        self,
        name: str,
        rows: Callable[[], Iterable[Placed]],
        convert: Callable[[Row], Task],
        identify: Callable[[Row], str],
    ) -> None:
        super().__init__(name, self._tasks)
        self._placed = rows
        self._convert = convert
        self._identify = identify
        self._told = False

    def refused(self) -> dict[str, str]:
        """Read all rows and return the reason for each that cannot be a task."""
        return {name: str(found) for name, found in self._rows() if isinstance(found, Refused)}

    def finish(self, task: Task) -> Task:
        """Return a task with what all tasks of its family have; for subclasses."""
        return task

    def _tasks(self) -> Iterator[Task]:
        count = 0
        for _, found in self._rows():
            if isinstance(found, Refused):
                count += 1
            else:
                yield found
        if count and not self._told:
            self._told = True
            logger.warning("refused tasks set=%s count=%d; refused() lists the reasons", self.name, count)

    def _rows(self) -> Iterator[tuple[str, Task | Refused]]:
        for place, row in self._placed():
            yield self._row(place, row)

    def _row(self, place: str, row: Any) -> tuple[str, Task | Refused]:
        try:
            if isinstance(row, str):
                row = json.loads(row)
            name = self._identify(row)
            try:
                return name, self.finish(self._convert(row))
            except Refused as reason:
                return name, reason
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TaskError(f"{place} is not a row of the {self.name} format: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return in one line what is wrong with a row."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]


class FileTasks(RowTasks):
    """The tasks of a file of JSON Lines."""

    def __init__(self, name: str, path: Path, convert: Callable[[Row], Task], identify: Callable[[Row], str]) -> None:
        super().__init__(name, partial(json_lines, path), convert, identify)


def json_lines(path: Path) -> Iterator[Placed]:
    """Yield the lines of a file that are not empty, as text, each with its place; the file may be gzip.

    Raises:
        TaskError: there is no such file.
    """
    if not path.is_file():
        raise TaskError(f"no task file at {path}; wanted JSON Lines with one task per line")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", line
