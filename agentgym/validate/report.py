"""What a validation asked, and what it found."""

from __future__ import annotations

import json
import threading

from agentgym.types import Record


class Finding(Record):
    """One broken promise."""

    check: str
    task: str
    """The task's id; `-` for the environment itself."""
    problem: str


class Validation(Record):
    """What was asked of an environment, and what it failed."""

    tasks: int
    checks: dict[str, int]
    """How often each check was asked: once for the environment or once or more per task."""
    findings: tuple[Finding, ...]
    complete: bool = True
    """False where it was interrupted: what was found until then is all here."""

    @property
    def passed(self) -> bool:
        """Whether every check held for every task, and there was a task."""
        return self.complete and self.tasks > 0 and not self.findings

    def failed(self, check: str) -> list[Finding]:
        """Return what was found by one check."""
        return [one for one in self.findings if one.check == check]

    def quarantine(self) -> str:
        """Return the tasks that failed, as YAML that `TaskSet.quarantine` and `quarantine=FILE` read."""
        reasons: dict[str, dict[str, None]] = {}
        for one in self.findings:
            if one.task != "-":
                reasons.setdefault(one.task, {})[f"{one.check}: {one.problem}"] = None
        # JSON strings are YAML strings, whatever an id or a problem has in it.
        lines = [f"{json.dumps(task)}: {json.dumps('; '.join(found))}\n" for task, found in reasons.items()]
        return "# Tasks that are not to be used, and why.\n" + ("".join(lines) or "{}\n")


class Notes:
    """Findings as they come, from many threads; nothing that was noted is lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._findings: list[Finding] = []

    def note(self, check: str, task: str, problem: str | None) -> None:
        """Count a question; a problem is a finding."""
        with self._lock:
            self._counts[check] = self._counts.get(check, 0) + 1
            if problem is not None:
                self._findings.append(Finding(check=check, task=task, problem=problem))

    def report(self, tasks: int, complete: bool) -> Validation:
        """Return what was noted so far."""
        with self._lock:
            return Validation(tasks=tasks, checks=dict(self._counts), findings=tuple(self._findings), complete=complete)
