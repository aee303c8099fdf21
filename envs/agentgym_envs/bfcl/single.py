"""Single questions: make the right calls at once, and say what none of the tools can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic import JsonValue

from agentgym.env import AgentEnv, Observation, Submit, tool
from agentgym.task import Task, TaskSet
from agentgym.tools import Tool, tools_of
from agentgym.types import Message, Submission, Trust, Verdict
from agentgym_envs.bfcl.env import CALLS, line
from agentgym_envs.bfcl.matching import example, matches
from agentgym_envs.bfcl.single_rows import DECLINE, SingleTurnTasks, functions_of, generated_questions, wanted_of
from agentgym_envs.bfcl.world import Call, written

_EXPLANATION = """Make the calls that answer the user's request, all of them and no other, then end with a message
that calls nothing. The tools only take the calls down. For what none of them can do, call no_tool_fits instead."""


class FunctionCallEnv(AgentEnv):
    """BFCL's single questions: nothing is executed, and the calls are compared with the acceptable ones."""

    conversational = True
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "malformed", "failed", "passed")

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        path: str | None = None,
        count: int = 400,
        task_seed: int = 0,
        **options: Any,
    ) -> None:
        """Choose the questions.

        Args:
            tasks: a task set; without one they are read from `path`, or generated.
            path: a folder with BFCL's single-turn files.
            count: how many questions to generate.
            task_seed: which questions to generate.
            **options: those of `AgentEnv`.
        """
        if tasks is None:
            tasks = SingleTurnTasks(path) if path is not None else generated_questions(count=count, seed=task_seed)
        super().__init__(tasks, **options)
        self._calls: list[Call] = []

    @tool
    def no_tool_fits(self) -> str:
        """Say that no other tool can do what the user asks for."""
        return "noted"

    def tools_for(self, task: Task) -> dict[str, Tool]:
        """Return the task's functions, and the way to decline."""
        return {**functions_of(task), **tools_of(type(self))}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode."""
        self._calls = []
        return super().reset(seed=seed, options=options)

    def prompt(self) -> Sequence[Message]:
        """The rules, and the question."""
        return (Message(role="system", content=_EXPLANATION), *super().prompt())

    def call_tool(self, one: Tool, arguments: Mapping[str, Any]) -> Any:
        """Take a call down."""
        self._calls.append(Call(name=one.name, arguments=dict(arguments)))
        return "taken down"

    def on_text(self, text: str) -> Submit:
        """Hand in the calls."""
        return Submit(text, calls=cast(JsonValue, written(self._calls)))

    def oracle(self, task: Task) -> Sequence[str]:
        """Make acceptable calls, and end."""
        return ["\n".join(line(example(one)) for one in wanted_of(task)), "Done."]

    def grade(self, task: Task, submission: Submission) -> Verdict:
        """Compare the calls with the acceptable ones."""
        if submission.empty:
            return _verdict("empty", "nothing was submitted")
        try:
            calls = CALLS.validate_python(submission.data.get("calls"))
        except ValueError:
            return _verdict("malformed", "wanted calls, by name and arguments")
        problem = matches(calls, wanted_of(task))
        return _verdict("failed", problem) if problem else _verdict("passed", "")

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Say the calls, make the right ones twice, or make them and decline too."""
        right = [line(example(one)) for one in wanted_of(task)]
        names = [next(iter(one)) for one in wanted_of(task)]
        wild = cast(JsonValue, [{"name": name, "arguments": {"*": "*"}} for name in names])
        return {
            "says the calls": ["\n".join(right).replace("tool_call>", "done>")],
            "makes the calls twice": [*right, *right, "Done."],
            "makes the calls and declines": [*right, line(Call(name=DECLINE)), "Done."],
            "hands in wildcards": Submission(data={"calls": wild}),
        }


def _verdict(level: str, feedback: str) -> Verdict:
    return Verdict(value=float(level == "passed"), level=level, trust=Trust.RPC, feedback=feedback)
