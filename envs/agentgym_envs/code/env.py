"""Write a function over several turns: run the visible tests, read the failure, mend, hand in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import TaskError
from agentgym.task import Task, TaskSet
from agentgym.types import Message, Record
from agentgym_envs.code.splits import DEFAULT_FILE
from agentgym_envs.code.tasks import family_tasks

EXPLANATION = """Solve the programming task over several turns. Each message is one fenced block named after a tool.
```test
<all of your code>
```
runs the visible tests and answers `ok` or the first failure. In the task, `?` stands for a number to find out that way.
```submit
<all of your code>
```
hands in your code and ends the episode; hidden tests decide."""


class CodeEnv(AgentEnv):
    """Function-level programming tasks with visible tests to run and hidden tests that decide."""

    sandboxed = True
    grader = "function"
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "broken", "failed", "passed")
    signals: ClassVar[tuple[str, ...]] = ("tests_run", "compiles", "visible_passed")

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        family: str = "repair",
        path: str | None = None,
        count: int = 1000,
        difficulty: float = 1.0,
        task_seed: int = 0,
        hard: float = 0.0,
        bad: float = 0.65,
        explain: bool | None = None,
        **options: Any,
    ) -> None:
        """Choose the tasks.

        Args:
            tasks: a task set; without one, `family` makes it.
            family: `repair` or `functions` (generated), or `mbpp`, `humaneval`, `exercism`, `quixbugs`,
                `classeval`, `cruxeval` (read from `path`).
            path: the file of a family that is read from one.
            count: how many tasks to generate.
            difficulty: the generated family's dial.
            task_seed: which tasks to generate.
            hard: the share of `repair` tasks that need their hint.
            bad: the share of demonstrations that deliberately fail.
            explain: open with a system message that explains the tools; by default for all but `repair`, whose prompts
                are kept short for small models.
            **options: those of `AgentEnv`.
        """
        made = tasks or family_tasks(family, path=path, count=count, difficulty=difficulty, seed=task_seed, hard=hard)
        super().__init__(made, **options)
        if not 0.0 <= bad <= 1.0:
            raise ValueError(f"wanted a share of bad demonstrations between 0 and 1, found {bad}")
        self.bad = bad
        self.explain = (tasks is not None or family != "repair") if explain is None else explain

    def prompt(self) -> Sequence[Message]:
        """The task, after an explanation of the tools if wanted."""
        opening = (Message(role="system", content=EXPLANATION),) if self.explain else ()
        return (*opening, *super().prompt())

    @tool
    def test(self, code: str) -> str:
        """Run the visible examples on this code; the answer is `ok` or the first failure."""
        task = self._full_task
        found = registry.create("graders", task.grader or self.grader or "").preview(task.public, code, self.sandbox)
        self.emit("tests_run", 1.0)
        self.emit("compiles", float(found.compiles))
        self.emit("visible_passed", found.passed / found.total if found.total else 0.0)
        return cast(str, found.text)

    @tool
    def submit(self, code: str) -> Submit:
        """Hand in this code; hidden tests decide, and the episode ends."""
        return Submit(files={str(self.task.data.get("file", DEFAULT_FILE)): code})

    def oracle(self, task: Task) -> Sequence[str]:
        """Test the reference's first attempts, if it has any, and hand in the reference."""
        tried = cast(list[str], task.hidden.reference.get("attempts", []))
        return [*(_call("test", one) for one in tried), _call("submit", _reference(task, "code"))]

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return one scripted attempt; the share `bad` of them guesses, or hands in an attempt that it saw fail.

        It does not know the hints: a task that needs one is attempted in vain.
        """
        script = _script(task)
        if rng.random() < self.bad:
            if rng.random() < 0.2 or not script.tests:
                return [_call("submit", script.guess)]
            return [*(_call("test", one) for one in (*script.tests, script.code)), _call("submit", script.tests[-1])]
        return [*(_call("test", one) for one in (*script.tests, script.code)), _call("submit", script.code)]


class _Script(Record):
    tests: tuple[str, ...] = ()
    code: str
    guess: str = "pass"


def _script(task: Task) -> _Script:
    reference = task.hidden.reference
    tests = reference.get("attempts", [])
    own = reference.get("demonstration") or {"tests": tests, "code": _reference(task, "code")}
    return _Script.model_validate(own)


def _call(name: str, code: str) -> str:
    return f"```{name}\n{code.rstrip()}\n```"


def _reference(task: Task, name: str) -> str:
    found = task.hidden.reference.get(name)
    if not isinstance(found, str):
        raise TaskError(f"task {task.id!r} has no reference solution; put it in hidden.reference[{name!r}]")
    return found
