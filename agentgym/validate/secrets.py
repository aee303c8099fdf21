"""The texts that only the grader may know, and where an agent could have read them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

from agentgym.graders.sources import parse_expression
from agentgym.task import Task
from agentgym.types import Trajectory

SHORT, LONG = 8, 24
"""Hidden texts below SHORT characters prove nothing; below LONG an oracle may have found them out by itself."""


def secrets(task: Task, shortest: int) -> Iterator[str]:
    """Yield the hidden texts of a task, and the longer lines of each.

    What stands in the public part or in a hint is no secret, nor is a literal whose value does: `'string'` is a hidden
    expectation, but no hidden text, of a task that speaks of a string.
    """
    public = _public(task)
    for text in texts([task.hidden.data, task.hidden.reference]):
        for part in {text.strip(), *(line.strip() for line in text.splitlines() if len(line.strip()) >= LONG)}:
            if _is_secret(part, shortest, public):
                yield part


def whole_secrets(task: Task, shortest: int) -> Iterator[str]:
    """Yield the hidden texts of a task, each as a whole."""
    public = _public(task)
    for text in texts([task.hidden.data, task.hidden.reference]):
        if _is_secret(text.strip(), shortest, public):
            yield text.strip()


def _public(task: Task) -> str:
    return "\n".join([*texts(task.public.model_dump()), *task.hints])


def _is_secret(text: str, shortest: int, public: str) -> bool:
    return len(text) >= shortest and text not in public and _value(text) not in public


def shown(task: Task, found: Trajectory, shortest: int) -> str | None:
    """Return what an episode showed of a task's secrets and the agent had not said itself."""
    said = "\n".join(turn.action.content for turn in found.turns)
    messages = [*found.prompt, *(message for turn in found.turns for message in turn.observation)]
    heard = "\n".join([*(message.content for message in messages), found.verdict.feedback if found.verdict else ""])
    for secret in secrets(task, shortest):
        if secret in heard and secret not in said:
            return f"after {len(found.turns)} turns: {quote(secret)}"
    return None


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a tree of JSON values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts(one)


def quote(secret: str) -> str:
    """Return the beginning of a text, to be shown in a report."""
    return json.dumps(secret if len(secret) <= 40 else secret[:40] + "…", ensure_ascii=False)


def _value(text: str) -> str:
    """Return what a text says if it is a Python string literal, else the text."""
    if text[:1] not in "'\"" or "\n" in text:
        return text
    try:
        value = ast.literal_eval(parse_expression(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, str) and value.strip() else text
