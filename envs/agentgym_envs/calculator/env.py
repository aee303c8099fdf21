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
_NUMBER = re.compile(r"\d+")
_TERM = re.compile(rf"([+-]|{SECRET})(\d+)")


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
        calls, total = _calculate(task.public.prompt)
        return [*calls, _say("answer", total)]

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return the oracle's way, or as often a bad one: too early an answer, or needless calls before the right one.

        Hard tasks are never shown solved: their demonstrations try the wrong tool, then give up with the first operand.
        """
        if SECRET in task.public.prompt:
            left, right, *_ = _NUMBER.findall(task.public.prompt)
            return [_say("calc", f"{left}{SECRET}{right}"), _say("answer", left)]
        calls, total = _calculate(task.public.prompt)
        kind = rng.random()
        if kind < 0.5:
            return self.oracle(task)
        if kind < 0.65:
            return [*calls, *[calls[-1]] * int(rng.integers(1, 4)), _say("answer", total)]
        early = int(rng.integers(0, len(calls)))
        return [*calls[:early], _say("answer", _value(task.public.prompt, early))]


def _calculate(text: str) -> tuple[list[str], str]:
    """Return the calls that evaluate an expression from left to right, and its value."""
    terms = _TERM.findall(text)
    names = ["merge" if sign == SECRET else "calc" for sign, _ in terms]
    calls = [_say(name, f"{_value(text, done)}{''.join(terms[done])}") for done, name in enumerate(names)]
    return calls, _value(text, len(terms))


def _value(text: str, operators: int) -> str:
    """Return the value of an expression up to so many operators."""
    total = int(_NUMBER.findall(text)[0])
    for sign, operand in _TERM.findall(text)[:operators]:
        right = int(operand)
        total = merge(total, right) if sign == SECRET else total + right if sign == "+" else total - right
    return str(total)


def _say(name: str, text: str) -> str:
    return f"```{name}\n{text}"
