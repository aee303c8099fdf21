"""`agentgym play`: a person acts in an environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentgym.cli.console import say
from agentgym.cli.places import Place
from agentgym.errors import AgentgymError
from agentgym.toolcalls.common import UnreadableError, read_call, read_json
from agentgym.types import Message

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_STYLES = {"system": "dim", "user": "cyan", "tool": "yellow", "assistant": "green"}


def play(place: Place, task: str | None, hint: bool, seed: int) -> None:
    """Run one episode with a person as the policy; the end of input ends it too."""
    try:
        env = place.maker()()
        options: dict[str, Any] = {} if task is None else {"task": task}
        if hint:
            options |= _hint(env, task, seed)
        observation, info = env.reset(seed=seed, options=options)
        say(f"task {info['task_id']} ({info['split']}); tools: {', '.join(env.tools)}", "bold")
        say("a message is one line, or a fenced block such as ```" + next(iter(env.tools), "") + "; Ctrl-D ends", "dim")
        show(observation)
        while (message := read_message()) is not None:
            observation, reward, terminated, truncated, info = env.step(message)
            show(observation)
            if terminated or truncated:
                _settled(info, reward)
                return
        say("\nleft before the end; nothing was scored")
    finally:
        place.close()


def show(messages: Sequence[Message]) -> None:
    """Print messages, each in its role's colour; tool calls laid out with the texts that their JSON means."""
    for one in messages:
        content = readable(one.content) if one.role == "assistant" else one.content
        calls = "".join(f"\n{_told(call.name, call.arguments)}" for call in one.tool_calls)
        say(f"{one.role}: {content}{one.guidance}{calls}", _STYLES[one.role])


def readable(text: str) -> str:
    r"""Return what an assistant said, the JSON of its tool calls laid out; what is no such call stays as it is.

    >>> print(readable('Look.<tool_call>{"name": "edit", "arguments": {"path": "a", "text": "1\\n2"}}</tool_call>'))
    Look.→ edit(path="a")
        text:
        | 1
        | 2
    """
    parts, place = [], 0
    while (start := text.find(_OPEN, place)) >= 0:
        try:
            found, end = read_json(text, start + len(_OPEN))
        except UnreadableError:
            end = -1
        call = read_call(found) if end >= 0 else ""
        parts.append(text[place:start])
        if isinstance(call, str):
            parts.append(_OPEN)
            place = start + len(_OPEN)
            continue
        parts.append(_told(call.name, call.arguments))
        rest = text[end:]
        place = len(text) - len(rest.lstrip().removeprefix(_CLOSE)) if rest.lstrip().startswith(_CLOSE) else end
    return "".join([*parts, text[place:]])


def _told(name: str, arguments: Mapping[str, Any]) -> str:
    short = {key: value for key, value in arguments.items() if not (isinstance(value, str) and "\n" in value)}
    lines = [f"→ {name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in short.items())})"]
    for key in [one for one in arguments if one not in short]:
        lines += [f"    {key}:", *(f"    | {line}" for line in str(arguments[key]).split("\n"))]
    return "\n".join(lines)


def read_message() -> str | None:
    """Read a line, or a fenced block to its end; None at the end of input."""
    lines: list[str] = []
    try:
        lines.append(input("> "))
        while lines[0].startswith("```") and (len(lines) == 1 or lines[-1].rstrip() != "```"):
            lines.append(input("… "))
    except EOFError:
        return "\n".join(lines) if lines else None
    return "\n".join(lines)


def _settled(info: dict[str, Any], reward: float) -> None:
    verdict = info["verdict"]
    value = "unscored" if verdict.value is None else f"{verdict.value:g}"
    say(f"the episode ended: {info['end']}; verdict {value} ({verdict.level}); reward {reward:g}", "bold")
    if verdict.feedback:
        say(verdict.feedback)


def _hint(env: Any, task: str | None, seed: int) -> dict[str, Any]:
    name = task or env.reset(seed=seed)[1]["task_id"]
    chosen = env.tasks[name]
    if not chosen.hints:
        raise AgentgymError(f"task {name!r} has no hints; play without --hint")
    return {"task": chosen, "hint": chosen.hints[-1]}
