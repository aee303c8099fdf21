"""How far an episode came: which records are as wanted, which are spoiled, which sub-goals are solved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgym.task import Task
from agentgym.types import Verdict

Changes = Mapping[str, Mapping[str, Any]]


class Progress:
    """Measures one episode against what its task wants: records to change, and things to tell."""

    def __init__(self, task: Task) -> None:
        """Take a task that is not sealed."""
        parts: Any = task.hidden.data["parts"]
        told: Any = task.hidden.data.get("communicate", [])
        self._gold = _records(parts["records"]["gold"])
        self._tell = len(told)
        self._solved: set[tuple[str, str]] = set()

    def met(self, changes: Changes) -> float:
        """Return which share of the records to change is as wanted."""
        return len(self._right(changes)) / max(1, len(self._gold))

    def spoiled(self, changes: Changes) -> int:
        """Return how many records are changed that should not be."""
        return sum(key not in self._gold for key in _records(changes))

    def solve(self, changes: Changes) -> int:
        """Return how many records are as wanted for the first time: to undo and to do again solves nothing."""
        new = self._right(changes) - self._solved
        self._solved |= new
        return len(new)

    def told(self, verdict: Verdict) -> int:
        """Return how many things were told."""
        return round((verdict.components.get("said") or 0.0) * self._tell)

    def left(self, changes: Changes, verdict: Verdict) -> int:
        """Return how many sub-goals are unsolved in the end; a spoiled record is one more to mend."""
        wrong = len(self._gold) - len(self._right(changes))
        return wrong + self.spoiled(changes) + self._tell - self.told(verdict)

    def _right(self, changes: Changes) -> set[tuple[str, str]]:
        found = _records(changes)
        return {key for key, one in self._gold.items() if key in found and found[key] == one}


def _records(changes: Changes) -> dict[tuple[str, str], Any]:
    return {(table, key): one for table, records in changes.items() for key, one in records.items()}
