"""Policies without a model, for validating environments and evaluations: none of them is ever trained."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentgym import parquet
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.policy import Action, Episode, Policy, ScriptedPolicy
from agentgym.spaces import ActionSpace
from agentgym.task import Task
from agentgym.tokens import TokenBuffer
from agentgym.tools import Tool
from agentgym.types import Message, ToolCall

_JUNK: dict[str, Any] = {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}}
_GUESSES = ("yes", "no", "true", "false", "none", "0", "1", "A")
_HEARD = 20_000
"""Characters that a recital repeats, and of which random words are drawn."""


def oracle(env: AgentEnv, tasks: Iterable[Task]) -> ScriptedPolicy:
    """Say what the environment's scripted expert says."""
    known = {task.id: task for task in tasks}
    return ScriptedPolicy(lambda episode: env.oracle(known[episode.task_id]))


def noop() -> ScriptedPolicy:
    """Say nothing until the turns run out."""
    return ScriptedPolicy(lambda _: [""])


def hasty() -> ScriptedPolicy:
    """Call every tool once in the first message, those that hand in among them, with meaningless arguments."""
    return ScriptedPolicy(lambda episode: ["\n".join(junk_call(one) for one in episode.tools), ""])


def spam(env: AgentEnv, name: str | None = None, tasks: Iterable[Task] = ()) -> ScriptedPolicy:
    """Call one tool, or every tool in turn, with meaningless arguments until the episode ends.

    Args:
        env: the environment.
        name: the tool; without it, every one.
        tasks: what is played, where each task has tools of its own.

    Raises:
        UnknownNameError: if there is no tool of that name.
    """
    if name is not None:
        known = {*env.tools, *(own for task in tasks for own in env.tools_for(task))}
        if name not in known:
            raise UnknownNameError("tool", name, known)

    def script(episode: Episode) -> list[str]:
        calls = [junk_call(one) for one in episode.tools if name in (None, one["function"]["name"])]
        return (calls or [""]) * env.max_turns

    return ScriptedPolicy(script)


def recital() -> Policy:
    """Repeat all that was heard, as text and as an argument of every tool in turn, until the episode ends."""
    return _Hearing(_Recital)


def random() -> Policy:
    """Call random tools with random arguments of the right types, or say random text; the episode's seed decides.

    Strings are random characters, numbers, or words of what was heard, so that a guess may well be an answer.
    """
    return _Hearing(_Babble)


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


class _Hearing:
    """A policy whose sessions hear."""

    def __init__(self, kind: Callable[[Episode], _Session]) -> None:
        self._kind = kind

    def session(self, episode: Episode) -> _Session:
        return self._kind(episode)


class _Session(ABC):
    """One episode of what hears and needs no model."""

    def __init__(self, episode: Episode) -> None:
        self.tokens: TokenBuffer | None = None
        self.functions = [one["function"] for one in episode.tools]
        self.heard = ""
        self.turn = 0

    async def act(self, new_messages: Sequence[Message]) -> Action:
        self.observe(new_messages)
        message = self.speak()
        self.turn += 1
        return Action(message)

    @abstractmethod
    def speak(self) -> Message:
        """Say the next message."""

    def observe(self, new_messages: Sequence[Message]) -> None:
        self.heard = "\n".join([self.heard, *(one.content for one in new_messages)])[-_HEARD:]

    def close(self) -> None:
        """Release nothing."""
        self.heard = ""


class _Recital(_Session):
    def speak(self) -> Message:
        place = self.turn % (len(self.functions) + 1)
        if place == 0:
            return Message(role="assistant", content=self.heard)
        function = self.functions[place - 1]
        arguments = {name: _junk(one, self.heard) for name, one in _properties(function).items()}
        return Message(role="assistant", tool_calls=(ToolCall(name=function["name"], arguments=arguments),))


class _Babble(_Session):
    def __init__(self, episode: Episode) -> None:
        super().__init__(episode)
        self.rng = np.random.default_rng(episode.seed)

    def speak(self) -> Message:
        if not self.functions or self.rng.random() < 0.2:
            return Message(role="assistant", content=self.text())
        function = self.functions[int(self.rng.integers(len(self.functions)))]
        wanted = set(function["parameters"].get("required", ()))
        chosen = {
            name: self.value(one)
            for name, one in _properties(function).items()
            if name in wanted or self.rng.random() < 0.5
        }
        return Message(role="assistant", tool_calls=(ToolCall(name=function["name"], arguments=chosen),))

    def text(self) -> str:
        words = re.findall(r"[\w.@#+-]+", self.heard) or list(_GUESSES)
        match int(self.rng.integers(4)):
            case 0:
                return str(ActionSpace(self.rng).sample().content)
            case 1:
                return str(self.rng.choice(_GUESSES))
            case 2:
                return str(int(self.rng.integers(100)))
        return " ".join(words[int(self.rng.integers(len(words)))] for _ in range(int(self.rng.integers(1, 4))))

    def value(self, schema: Mapping[str, Any]) -> Any:
        if "enum" in schema:
            return schema["enum"][int(self.rng.integers(len(schema["enum"])))]
        if "anyOf" in schema:
            return self.value(schema["anyOf"][int(self.rng.integers(len(schema["anyOf"])))])
        match _kind(schema):
            case "string":
                return self.text()
            case "integer":
                return int(self.rng.integers(-1, 100))
            case "number":
                return round(float(self.rng.normal(0.0, 10.0)), 2)
            case "boolean":
                return bool(self.rng.integers(2))
            case "array":
                return [self.value(schema.get("items", {})) for _ in range(int(self.rng.integers(4)))]
            case "object":
                return {name: self.value(one) for name, one in schema.get("properties", {}).items()}
        return None


def junk_call(tool: Tool | Mapping[str, Any], text: str = "x") -> str:
    """Return a call of a tool, or of its schema, with arguments of the right types and no meaning."""
    function = (tool if isinstance(tool, Mapping) else tool.schema)["function"]
    return _call(function["name"], {name: _junk(one, text) for name, one in _properties(function).items()})


def _properties(function: Mapping[str, Any]) -> dict[str, Any]:
    return dict(function["parameters"].get("properties", {}))


def _junk(schema: dict[str, Any], text: str) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _junk(schema["anyOf"][0], text)
    kind = _kind(schema)
    return text if kind == "string" else _JUNK.get(kind)


def _kind(schema: Mapping[str, Any]) -> str:
    """Return a schema's type; of several the first."""
    kind = schema.get("type", "null")
    return str(kind[0] if isinstance(kind, list) and kind else kind)


def _spoken(message: Message) -> str:
    calls = [_call(one.name, one.arguments) for one in message.tool_calls]
    return "\n".join([message.content, *calls]) if calls else message.content


def _call(name: str, arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


Script = Callable[[AgentEnv, Sequence[Task], str], Policy]
SCRIPTS: dict[str, Script] = {
    "oracle": lambda env, tasks, _: oracle(env, tasks),
    "noop": lambda *_: noop(),
    "hasty": lambda *_: hasty(),
    "spam": lambda env, tasks, name: spam(env, name or None, tasks),
    "recital": lambda *_: recital(),
    "random": lambda *_: random(),
    "replay": lambda _, __, path: replay(Path(path)),
}
"""How each policy is made from the environment, the tasks, and what follows the colon in `replay:FILE`."""
