"""What was tried, one line per commit, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgym.errors import TaskError
from agentgym.types import Record


class Entry(Record):
    """What became of one commit: a task, or a reason why not."""

    commit: str
    instance_id: str = ""
    reason: str = ""
    detail: str = ""
    infrastructure: bool = False
    """It was the sandboxes' fault, and is not written down."""


class Journal:
    """A file of JSON lines: the settings, then the entries."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin it.

        Raises:
            TaskError: it was begun with other settings.
        """
        self.file = file
        self._settings = json.loads(json.dumps(settings))
        self._entries = self._read()

    def entries(self) -> list[Entry]:
        """Return what was written down, in order."""
        return list(self._entries)

    def add(self, entry: Entry) -> None:
        """Write an entry down, before anything else may happen."""
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps({"settings": self._settings}) + "\n", encoding="utf-8")
        with self.file.open("a", encoding="utf-8") as file:
            file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
        self._entries.append(entry)

    def _read(self) -> list[Entry]:
        if not self.file.exists():
            return []
        whole = self.file.read_text(encoding="utf-8")
        # A line that a kill cut in two counts for nothing: its commit is tried again.
        lines = whole[: whole.rfind("\n") + 1].splitlines()
        if len(whole) > whole.rfind("\n") + 1:
            self.file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if not lines:
            self.file.unlink()
            return []
        before = json.loads(lines[0])["settings"]
        if before != self._settings:
            names = sorted(name for name in {*before, *self._settings} if before.get(name) != self._settings.get(name))
            raise TaskError(
                f"{self.file} was begun with another {', '.join(names)}: use the same, or another folder for the tasks"
            )
        return [Entry.model_validate_json(line) for line in lines[1:]]
