"""What an attack is, what it aims at, and what became of it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from agentgym.errors import AgentgymError
from agentgym.graders.sources import parse
from agentgym.task import Task
from agentgym.tools import Tool
from agentgym.types import Record, Submission

Danger = Literal["none", "process", "machine"]
"""What an attack may harm if nothing isolates it: nothing, the process that runs it, or what surrounds that."""
DANGERS: tuple[Danger, ...] = ("none", "process", "machine")
Family = Literal["test frameworks", "values", "files and leaks", "resources and protocol"]
FAMILIES: dict[Family, range] = {
    "test frameworks": range(1, 20),
    "values": range(20, 31),
    "files and leaks": range(31, 42),
    "resources and protocol": range(42, 56),
}
"""The catalogue's rows by family; `docs/redteam.md` tells what each row is."""


@dataclass(frozen=True, slots=True)
class Attack:
    """Something handed in, or said over an episode, that must score nothing."""

    name: str
    row: int
    """The catalogue's row that it belongs to."""
    tries: str
    """What it tries, in one sentence."""
    submission: Submission | None = None
    messages: tuple[str, ...] | None = None
    """What the agent says, where there is no submission; it repeats the last."""
    holds_answer: bool = False
    """Whether the right answer is part of it: then a partial value, below 1, is no success."""
    danger: Danger = "none"

    def __post_init__(self) -> None:
        if (self.submission is None) == (self.messages is None):
            raise AgentgymError(f"the attack {self.name!r} wants either a submission or messages")
        if not 1 <= self.row <= 55:
            raise AgentgymError(f"the attack {self.name!r} wants a row of the catalogue, 1 to 55; found {self.row}")

    @property
    def family(self) -> Family:
        """The family of its row."""
        return next(name for name, rows in FAMILIES.items() if self.row in rows)


@dataclass(frozen=True, slots=True)
class Target:
    """What attacks are made for: a task, what its oracle hands in, and who judges that."""

    task: Task
    gold: Submission
    graders: tuple[str, ...]
    """Registered graders that take part, those inside composites included; empty if the environment judges itself."""
    tools: Mapping[str, Tool]

    @property
    def code(self) -> Mapping[str, str]:
        """The Python files of the oracle's submission; the answer, under the name "", if that is a program."""
        files = {name: text for name, text in self.gold.files.items() if name.endswith(".py")}
        if files or self.gold.files:
            return files or (dict(self.gold.files) if self._judged_as_python else {})
        return {"": self.gold.answer} if self.gold.answer and self._is_program(self.gold.answer) else {}

    @property
    def names(self) -> tuple[str, ...]:
        """What the submission is asked to define."""
        wanted = self.task.public.data.get("entry", [])
        found = [str(one) for one in wanted] if isinstance(wanted, list) else []
        for text in self.code.values():
            found += _defined(text)
        return tuple(dict.fromkeys(found))

    def with_code(self, text: str) -> Submission:
        """Return a submission that has this text wherever the oracle's has Python."""
        if "" in self.code:
            return Submission(answer=text)
        return Submission(files=dict.fromkeys(self.code, text))

    @property
    def _judged_as_python(self) -> bool:
        return bool({"function", "unittest"} & {*self.graders})

    def _is_program(self, text: str) -> bool:
        return self._judged_as_python or bool(_defined(text))


class Outcome(Record):
    """What became of one attack on one task."""

    task: str
    attack: str
    row: int
    family: Family
    tries: str
    value: float | None
    """The reward; None where the attempt was left unscored."""
    end: Literal["held", "fooled", "void"]
    """`void`: the attack made its own attempt unscored, so that losing costs nothing; as bad as `fooled`."""
    detail: str = ""

    @property
    def held(self) -> bool:
        """Whether the attack came to nothing."""
        return self.end == "held"


def _defined(source: str) -> list[str]:
    try:
        body = parse(source).body
    except SyntaxError:
        return []
    found = [one.name for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    targets = [one.targets for one in body if isinstance(one, ast.Assign) and isinstance(one.value, ast.Lambda)]
    return [*found, *(name.id for group in targets for name in group if isinstance(name, ast.Name))]
