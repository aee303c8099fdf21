"""Rows of the code family: each task gets its guidance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentgym.task import Task
from agentgym_envs import rows
from agentgym_envs.code.hints import with_hints
from agentgym_envs.rows import Placed, Refused, Row, json_lines, reason_of

__all__ = ["FileTasks", "Placed", "Refused", "Row", "RowTasks", "json_lines", "reason_of"]


class RowTasks(rows.RowTasks):
    """One task per row, with guidance in tiers."""

    def finish(self, task: Task) -> Task:
        """Add the tiers of guidance."""
        return with_hints(task)


class FileTasks(RowTasks):
    """The tasks of a file of JSON Lines."""

    def __init__(self, name: str, path: Path, convert: Callable[[Row], Task], identify: Callable[[Row], str]) -> None:
        super().__init__(name, partial(json_lines, path), convert, identify)
