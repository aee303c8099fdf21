"""Task files whose unusable rows are listed with a reason instead of dropped in silence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentgym.errors import TaskError
from agentgym.task import Task, TaskSet

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]


class Refused(Exception):  # noqa: N818 -- a finding about a row
    """A row that is well-formed but cannot be a task."""


class FileTasks(TaskSet):
    """One task per line of a file, read lazily; `refused` says which rows cannot be tasks, and why."""

    def __init__(self, name: str, path: Path, convert: Callable[[Row], Task], identify: Callable[[Row], str]) -> None:
        super().__init__(name, self._tasks)
        self.path = path
        self._convert = convert
        self._identify = identify
        self._told = False

    def refused(self) -> dict[str, str]:
        """Read the whole file and return the reason for each row that cannot be a task."""
        return {name: str(found) for name, found in self._rows() if isinstance(found, Refused)}

    def _tasks(self) -> Iterator[Task]:
        count = 0
        for _, found in self._rows():
            if isinstance(found, Refused):
                count += 1
            else:
                yield found
        if count and not self._told:
            self._told = True
            logger.warning("refused tasks file=%s count=%d; refused() lists the reasons", self.path, count)

    def _rows(self) -> Iterator[tuple[str, Task | Refused]]:
        if not self.path.is_file():
            raise TaskError(f"no task file at {self.path}; wanted JSON Lines with one task per line")
        with self.path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield self._row(number, line)

    def _row(self, number: int, line: str) -> tuple[str, Task | Refused]:
        try:
            row = json.loads(line)
            name = self._identify(row)
            try:
                return name, self._convert(row)
            except Refused as reason:
                return name, reason
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"the field {error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise TaskError(f"{self.path}:{number} is not a row of the {self.name} format: {detail}") from error
