"""The environment `agentgym/Calculator-v0`: call the calculator in turns, then answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from agentgym.env import AgentEnv, Submit, tool
from agentgym.task import Task
from agentgym.types import Submission
from agentgym_envs.calculator.tasks import SECRET, calculator_tasks, merge

_TWO_OPERANDS = re.compile(r"(\d{1,6})([+-])(\d{1,6})")
_MERGE = re.compile(rf"(\d{{1,6}}){SECRET}(\d{{1,6}})")
_TERM = re.compile(r"[+-]\d+")


class CalculatorEnv(AgentEnv):
    """Reward 1 only for the exact value of the expression in the prompt. Its tools need no sandbox."""

    tasks = calculator_tasks()

    @tool
    def calc(self, expression: str) -> str:
        """Add or subtract two numbers, as in 38+47."""
        found = _TWO_OPERANDS.fullmatch(expression.strip())
        if not found:
            raise ValueError("wanted a+b or a-b")
        left, sign, right = found.groups()
        return str(int(left) + int(right) if sign == "+" else int(left) - int(right))

    @tool
    def merge(self, expression: str) -> str:
        """Merge two numbers, as in 38@47."""
        found = _MERGE.fullmatch(expression.strip())
        if not found:
            raise ValueError(f"wanted a{SECRET}b")
        return str(merge(int(found[1]), int(found[2])))

    @tool
    def answer(self, value: str) -> Submit:
        """Hand in the value of the expression and end."""
        return Submit(value)

    def grade(self, task: Task, submission: Submission) -> bool:
        """Compare with the exact value."""
        return (submission.answer or "").strip() == task.hidden.data["answer"]

    def oracle(self, task: Task) -> Sequence[str]:
        """Calculate from left to right, then answer."""
        if SECRET in task.public.prompt:
            return [_say("merge", task.public.prompt), _say("answer", str(task.hidden.data["answer"]))]
        calls, total = _calculate(task.public.prompt)
        return [*calls, _say("answer", total)]

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return the oracle's way, or as often one that answers too early. Hard tasks are never shown solved."""
        if SECRET in task.public.prompt:
            return [_say("calc", task.public.prompt), _say("answer", str(int(rng.integers(10, 100))))]
        if rng.random() < 0.5:
            return self.oracle(task)
        calls, _ = _calculate(task.public.prompt)
        shown = calls[: int(rng.integers(0, len(calls)))]
        return [*shown, _say("answer", _partial(task.public.prompt, len(shown)))]


def _calculate(text: str) -> tuple[list[str], str]:
    """Return the calls that evaluate an expression from left to right, and its value."""
    calls = []
    total = text.partition("+")[0].partition("-")[0]
    for term in _TERM.findall(text):
        calls.append(_say("calc", f"{total}{term}"))
        total = str(int(total) + int(term))
    return calls, total


def _partial(text: str, terms: int) -> str:
    """Return the value after so many terms."""
    first = text.partition("+")[0].partition("-")[0]
    return str(int(first) + sum(int(term) for term in _TERM.findall(text)[:terms]))


def _say(name: str, text: str) -> str:
    return f"```{name}\n{text}"
