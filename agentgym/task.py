"""Tasks, with what the agent may see and what only the grader may see apart by type; and lazy collections of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from agentgym.errors import TaskError, UnknownNameError
from agentgym.sandbox import SandboxSpec
from agentgym.types import Record, Split

_MOST_TEXT = 1 << 16
"""Characters of files that are told apart as text."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Public(Record):
    """The part of a task that the agent may see. Everything here may reach an observation."""

    prompt: str
    files: dict[str, str] = {}
    """Put into the agent's sandbox before the first turn, by path."""
    data: dict[str, JsonValue] = {}
    """Whatever the task family shows or uses in its tools, such as visible examples."""


class Hidden(BaseModel):
    """The part that only the grader may see: cases, gold answers, references. Its text form shows nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: dict[str, JsonValue] = {}
    """What the grader needs, such as hidden cases."""
    reference: dict[str, JsonValue] = {}
    """A known-good solution, for the oracle and for validation; never needed to grade."""

    def __repr__(self) -> str:
        return "Hidden(…)"

    __str__ = __repr__


class Task(Record):
    """One problem. Environments hand `public` to the agent and the whole task to the grader."""

    id: str
    split: Split
    public: Public
    hidden: Hidden = Hidden()
    hints: tuple[str, ...] = ()
    """Guidance material, weakest first; shown only when the guidance strategy says so."""
    sandbox: SandboxSpec = SandboxSpec()
    grader: str | None = None
    """A registered grader's name; None leaves it to the environment."""
    difficulty: float | None = None
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """How long an episode may take, in place of the recipe's `limits.episode_timeout_s`."""

    @property
    def content(self) -> str:
        """What identifies this task beside its id: all that the agent may see, as text; large files by their digest.

        Tasks in one repository share almost all of its text, and are not each other's twins for that.
        """
        shown = self.public.model_dump(exclude={"prompt"}, exclude_defaults=True)
        if sum(map(len, self.public.files.values())) > _MOST_TEXT:
            files = json.dumps(self.public.files, sort_keys=True)
            shown["files"] = hashlib.sha256(files.encode()).hexdigest()
        return self.public.prompt + ("\n" + json.dumps(shown, sort_keys=True, ensure_ascii=False) if shown else "")


Source = Callable[[], Iterable[Task]]


class TaskSet:
    """An ordered, lazily loaded collection of tasks with splits.

    The source is called anew for each pass and nothing is read before it is needed.

    >>> toys = [Task(id=f"t{i}", split="train", public=Public(prompt=str(i))) for i in range(3)]
    >>> tasks = TaskSet("toy", lambda: iter(toys))
    >>> [task.id for task in tasks.split("train").take(2)]
    ['t0', 't1']
    """

    def __init__(self, name: str, source: Source) -> None:
        self.name = name
        self._source = source

    def __iter__(self) -> Iterator[Task]:
        seen: set[str] = set()
        for task in self._source():
            if task.id in seen:
                raise TaskError(f"the task set {self.name!r} holds two tasks with id {task.id!r}; ids must be unique")
            seen.add(task.id)
            yield task

    def __getitem__(self, task_id: str) -> Task:
        ids: list[str] = []
        for task in self:
            if task.id == task_id:
                return task
            ids.append(task.id)
        raise UnknownNameError(f"task of {self.name!r}", task_id, ids)

    def split(self, name: Split) -> TaskSet:
        """Return the tasks of one split."""
        if name not in SPLITS:
            raise UnknownNameError("split", name, SPLITS)
        return self.filter(lambda task: task.split == name)

    def filter(self, keep: Callable[[Task], bool]) -> TaskSet:
        """Return the tasks for which `keep` is true."""
        return TaskSet(self.name, lambda: (task for task in self if keep(task)))

    def take(self, count: int | None) -> TaskSet:
        """Return the first `count` tasks; None keeps all."""
        return TaskSet(self.name, lambda: islice(self, count))

    def quarantine(self, path: str | Path) -> TaskSet:
        """Leave out the tasks that a quarantine file names, as `agentgym validate --quarantine FILE` writes it.

        The file is YAML: reasons, by the ids of the tasks.

        Raises:
            TaskError: the file cannot be read, or is of another form.
        """
        reasons = read_quarantine(path)
        return self.filter(lambda task: task.id not in reasons)

    @classmethod
    def from_jsonl(
        cls, path: str | Path, parse: Callable[[Mapping[str, Any]], Task] = Task.model_validate, name: str | None = None
    ) -> Self:
        """Read one task per line; `parse` turns a row of another format into a task.

        Raises:
            TaskError: while iterating, naming the file and the line that is malformed.
        """
        file = Path(path)
        return cls(name or file.stem, lambda: _read_jsonl(file, parse))

    @classmethod
    def from_directory(
        cls, path: str | Path, parse: Callable[[Path], Task] | None = None, name: str | None = None
    ) -> Self:
        """Read one task per subfolder, in name order; without `parse`, from its `task.json`."""
        folder = Path(path)
        return cls(name or folder.name, lambda: _read_directory(folder, parse or _parse_folder))

    @classmethod
    def from_generator(
        cls, name: str, generate: Callable[[int, float], Task], *, count: int, difficulty: float = 1.0, seed: int = 0
    ) -> Self:
        """Generate tasks from consecutive seeds; `generate(seed, difficulty)` must be deterministic."""
        return cls(name, lambda: (generate(seed + index, difficulty) for index in range(count)))


def scripted_messages(task: Task) -> list[str]:
    """Return the messages of the scripted expert that a task brings along, in `hidden.reference["messages"]`.

    Raises:
        TaskError: it brings none.
    """
    found = task.hidden.reference.get("messages")
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise TaskError(f'task {task.id!r} has no list of an expert\'s messages as hidden.reference["messages"]')
    return [str(one) for one in found]


def read_quarantine(path: str | Path) -> dict[str, str]:
    """Return the reasons of a quarantine file, by the ids of the tasks.

    Raises:
        TaskError: it cannot be read, or is of another form.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TaskError(f"no quarantine file can be read at {path}: {' '.join(str(error).split())}") from error
    reasons = {} if found is None else found
    if not isinstance(reasons, dict) or not all(isinstance(one, str) for pair in reasons.items() for one in pair):
        raise TaskError(f"{path} is no quarantine file; wanted a mapping of task ids to reasons")
    return reasons


def _read_jsonl(file: Path, parse: Callable[[Mapping[str, Any]], Task]) -> Iterator[Task]:
    if not file.is_file():
        raise TaskError(f"no task file at {file}; wanted JSON Lines with one task per line")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield parse(json.loads(line))
            except (json.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
                raise TaskError(f"{file}:{number} is not a task of the wanted format: {_first_line(error)}") from error


def _read_directory(folder: Path, parse: Callable[[Path], Task]) -> Iterator[Task]:
    if not folder.is_dir():
        raise TaskError(f"no task folder at {folder}; wanted one subfolder per task")
    for child in sorted(one for one in folder.iterdir() if one.is_dir()):
        try:
            yield parse(child)
        except (OSError, json.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
            raise TaskError(f"{child} is not a task folder of the wanted format: {_first_line(error)}") from error


def _parse_folder(folder: Path) -> Task:
    return Task.model_validate({"id": folder.name, **json.loads((folder / "task.json").read_text(encoding="utf-8"))})


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    return str(error).splitlines()[0]
