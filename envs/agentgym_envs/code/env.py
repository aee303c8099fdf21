"""Write a function over several turns: run the visible tests, read the failure, mend, hand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from agentgym import registry
from agentgym.env import AgentEnv, Observation, Submit, tool
from agentgym.errors import TaskError, VerifierError
from agentgym.graders.languages import read as read_language
from agentgym.task import Public, Task, TaskSet
from agentgym.types import Message, Record, Verdict
from agentgym_envs.code.splits import DEFAULT_FILE
from agentgym_envs.code.tasks import Source, family_tasks

EXPLANATION = """Solve the programming task over several turns. Each message is one fenced block named after a tool.
```test
<all of your code>
```
runs the visible tests and answers `ok` or the first failure.{open_places}
```submit
<all of your code>
```
hands in your code and ends the episode; hidden tests decide."""
_TELLING = 16
"""Shorter solutions, such as `print(input())`, may stand in a statement by chance."""
OPEN_PLACES = " In the task, `?` stands for a number to find out that way."


class CodeEnv(AgentEnv):
    """Programming tasks, functions, classes or programs, with visible tests to run and hidden tests that decide."""

    sandboxed = True
    sandbox_at = "first use"
    grader = "function"
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "broken", "failed", "passed")
    signals: ClassVar[tuple[str, ...]] = (
        "tests_run",
        "compiles",
        "runs",
        "visible_passed",
        "visible_gained",
        "suites_passed",
        "suites_gained",
        "submitted",
    )

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
        language: str | Sequence[str] | None = None,
        images: Mapping[str, str] | None = None,
        dataset: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Choose the tasks.

        Args:
            tasks: a task set; without one, `family` makes it.
            family: `repair` or `functions` (generated); `mbpp`, `humaneval`, `exercism`, `quixbugs`, `classeval`,
                `cruxeval`, `stdio`, `exercism_canonical` (read from `path`); `dataset` (any rows).
            path: the file of a family that is read from one.
            count: how many tasks to generate.
            difficulty: the generated family's dial.
            task_seed: which tasks to generate.
            hard: the share of `repair` tasks that need their hint.
            bad: the share of demonstrations that deliberately fail.
            explain: open with a system message that explains the tools; by default for all but `repair`, whose prompts
                are kept short for small models.
            language: what programs are written in, where a task does not say; of several, the task's id chooses.
            images: the image of a language's sandboxes, by the language's name.
            dataset: where rows come from and what their columns are, for the family `dataset`.
            **options: those of `AgentEnv`.
        """
        source = Source(path, count, difficulty, task_seed, hard, language, images, dataset)
        super().__init__(tasks or family_tasks(family, source), **options)
        if not 0.0 <= bad <= 1.0:
            raise ValueError(f"wanted a share of bad demonstrations between 0 and 1, found {bad}")
        self.bad = bad
        self.explain = (tasks is not None or family != "repair") if explain is None else explain
        self._open_places = OPEN_PLACES if family == "repair" else ""
        self._best: dict[str, float] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, in which nothing has been gained."""
        self._best = {}
        return super().reset(seed=seed, options=options)

    def prompt(self) -> Sequence[Message]:
        """The task, after an explanation of the tools if wanted."""
        text = EXPLANATION.format(open_places=self._open_places)
        opening = (Message(role="system", content=text),) if self.explain else ()
        return (*opening, *super().prompt())

    @tool
    def test(self, code: str) -> str:
        """Run the visible examples on this code; the answer is `ok` or the first failure."""
        task = self._full_task
        found = registry.create("graders", task.grader or self.grader or "").preview(task.public, code, self.sandbox)
        self.emit("tests_run", 1.0)
        self.emit("compiles", float(found.compiles))
        self.emit("runs", found.ran / found.total if found.total else 0.0)
        self._emit_progress("visible", found.passed / found.total if found.total else 0.0)
        if found.suites:
            self._emit_progress("suites", sum(found.suites.values()) / len(found.suites))
        return cast(str, found.text)

    @tool
    def submit(self, code: str) -> Submit:
        """Hand in this code; hidden tests decide, and the episode ends."""
        return Submit(files={_file(self.task): code})

    def check_task(self, task: Task) -> None:
        """Refuse a task that its grader cannot judge, or that shows its solution or a whole hidden test file.

        Raises:
            VerifierError: saying what is wrong.
        """
        super().check_task(task)
        shown = "\n".join(_texts(task.public.model_dump()))
        tests = task.hidden.data.get("tests")
        hidden = {"its solution": task.hidden.reference.get("code"), **(tests if isinstance(tests, dict) else {})}
        for name, text in hidden.items():
            if isinstance(text, str) and len(text.strip()) >= _TELLING and text.strip() in shown:
                raise VerifierError(f"the task {task.id!r} shows {name} to the agent; take it out of the public part")

    def on_verdict(self, verdict: Verdict) -> None:
        """Emit of the submission what `test` emits of its code; hidden tests are no part of it."""
        self.emit("submitted", 1.0)
        if verdict.value is None:
            return
        self.emit("compiles", float(verdict.level not in ("empty", "broken")))
        visible = verdict.components.get("visible")
        if visible is not None:
            self._emit_progress("visible", visible)

    def _emit_progress(self, name: str, share: float) -> None:
        """Emit a share, and by how much it beats the best of the episode: gains of all turns sum to the best share."""
        best = self._best.get(name, 0.0)
        self.emit(f"{name}_passed", share)
        self.emit(f"{name}_gained", max(0.0, share - best))
        self._best[name] = max(best, share)

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


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


class _Script(Record):
    tests: tuple[str, ...] = ()
    code: str
    guess: str = "pass"


def _script(task: Task) -> _Script:
    reference = task.hidden.reference
    tests = reference.get("attempts", [])
    own = reference.get("demonstration") or {"tests": tests, "code": _reference(task, "code")}
    return _Script.model_validate(own)


def _file(public: Public) -> str:
    """Return what the submission's file is called; of a program, so that its name tells the language."""
    languages = public.data.get("languages")
    if isinstance(languages, list):
        return f"solution{read_language(languages[0]).extension}"
    return str(public.data.get("file", DEFAULT_FILE))


def _call(name: str, code: str) -> str:
    return f"```{name}\n{code.rstrip()}\n```"


def _reference(task: Task, name: str) -> str:
    found = task.hidden.reference.get(name)
    if not isinstance(found, str):
        raise TaskError(f"task {task.id!r} has no reference solution; put it in hidden.reference[{name!r}]")
    return found
