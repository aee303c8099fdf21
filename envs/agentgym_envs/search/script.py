"""What scripted agents say: the expert that knows the way, and those that do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentgym.errors import TaskError
from agentgym.task import Task
from agentgym_envs.search.spec import read_gold


def call(name: str, **arguments: Any) -> str:
    """Return a message that calls a tool."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"


def fenced(name: str, text: str) -> str:
    """Return a message that calls a tool with one text."""
    return f"```{name}\n{text}\n```"


def expert(task: Task) -> list[str]:
    """Ask every step of the known way in as few turns as possible, name what each reveals, answer and cite."""
    hidden, asked = read_gold(task), queries(task)
    known = " ".join(dict.fromkeys(one.reveals for one in hidden.facts if one.reveals))
    found = "\n".join(call("search", query=one, k=5) for one in asked)
    opened = "\n".join(call("open", doc=one) for one in sorted(hidden.documents))
    answer = call("answer", text=_answer(task), citations=sorted(hidden.documents))
    return [found, *([opened] if opened else []), f"{known}\n{answer}" if known else answer]


def plain(task: Task) -> list[str]:
    """Search step by step, then answer without citations: short enough for a small model to learn."""
    return [*(fenced("search", one) for one in queries(task)), fenced("answer", _answer(task))]


def hasty(task: Task, rng: np.random.Generator) -> list[str]:
    """Answer before the last step, with what was revealed so far."""
    asked, facts = queries(task), read_gold(task).facts
    met = [one.reveals for one in facts if one.reveals and one.reveals != _answer(task)] or ["unknown"]
    early = int(rng.integers(0, len(asked)))
    return [*(fenced("search", one) for one in asked[:early]), fenced("answer", met[min(early, len(met) - 1)])]


def queries(task: Task) -> Sequence[str]:
    """Return the known way's queries."""
    found = task.hidden.reference.get("queries")
    if not isinstance(found, list) or not found:
        raise TaskError(f"task {task.id!r} has no known way; put its queries in hidden.reference['queries']")
    return [str(one) for one in found]


def _answer(task: Task) -> str:
    return str(task.hidden.reference.get("answer") or read_gold(task).golds[0])
