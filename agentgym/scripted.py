"""Policies without a model, for validating environments and evaluations: none of them is ever trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentgym import parquet
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.policy import Episode, ScriptedPolicy
from agentgym.spaces import ActionSpace
from agentgym.task import Task
from agentgym.tools import Tool
from agentgym.types import Message

_JUNK: dict[str, Any] = {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}


def oracle(env: AgentEnv, tasks: Iterable[Task]) -> ScriptedPolicy:
    """Say what the environment's scripted expert says."""
    known = {task.id: task for task in tasks}
    return ScriptedPolicy(lambda episode: env.oracle(known[episode.task_id]))


def noop() -> ScriptedPolicy:
    """Say nothing until the turns run out."""
    return ScriptedPolicy(lambda _: [""])


def spam(env: AgentEnv, name: str | None = None) -> ScriptedPolicy:
    """Call one tool, or every tool in turn, with meaningless arguments until the episode ends.

    Raises:
        UnknownNameError: if there is no tool of that name.
    """
    if name is not None and name not in env.tools:
        raise UnknownNameError("tool", name, env.tools)
    calls = [junk_call(one) for one in env.tools.values() if name in (None, one.name)]
    return ScriptedPolicy(lambda _: (calls or [""]) * env.max_turns)


def random(env: AgentEnv) -> ScriptedPolicy:
    """Say random text or call random tools; the episode's seed decides."""

    def script(episode: Episode) -> list[str]:
        rng = np.random.default_rng(episode.seed)
        space, tools = ActionSpace(rng), list(env.tools.values())
        lines = []
        for _ in range(env.max_turns):
            text = space.sample().content
            called = bool(tools) and rng.random() < 0.8
            lines.append(junk_call(tools[int(rng.integers(len(tools)))], text) if called else text)
        return lines

    return ScriptedPolicy(script)


def replay(path: Path) -> ScriptedPolicy:
    """Say again what the trajectories of a file said: of the same seed if there are any, else of the same task."""
    said: dict[str, dict[int, Sequence[str]]] = {}
    for one in parquet.read(path):
        said.setdefault(one.task_id, {})[one.seed] = [_spoken(turn.action) for turn in one.turns]

    def script(episode: Episode) -> Sequence[str]:
        if episode.task_id not in said:
            raise AgentgymError(f"{path} holds no attempt at task {episode.task_id!r}; replay the tasks it was made of")
        attempts = said[episode.task_id]
        return attempts.get(episode.seed) or next(iter(attempts.values()))

    return ScriptedPolicy(script)


def junk_call(tool: Tool, text: str = "x") -> str:
    """Return a call with arguments of the right types and no meaning."""
    function = tool.schema["function"]["parameters"]
    arguments = {name: _junk(one, text) for name, one in function.get("properties", {}).items()}
    return _call(tool.name, arguments)


def _junk(schema: dict[str, Any], text: str) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _junk(schema["anyOf"][0], text)
    kind = schema.get("type", "null")
    return text if kind == "string" else _JUNK.get(kind)


def _spoken(message: Message) -> str:
    calls = [_call(one.name, one.arguments) for one in message.tool_calls]
    return "\n".join([message.content, *calls]) if calls else message.content


def _call(name: str, arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


Script = Callable[[AgentEnv, Sequence[Task], str], ScriptedPolicy]
SCRIPTS: dict[str, Script] = {
    "oracle": lambda env, tasks, _: oracle(env, tasks),
    "noop": lambda *_: noop(),
    "spam": lambda env, _, name: spam(env, name or None),
    "random": lambda env, *_: random(env),
    "replay": lambda _, __, path: replay(Path(path)),
}
"""How each policy is made from the environment, the tasks, and what follows the colon in `replay:FILE`."""
