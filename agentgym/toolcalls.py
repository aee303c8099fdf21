"""Find tool calls in text that the assistant itself wrote; nothing else is ever parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentgym.tools import Tool
from agentgym.types import ToolCall

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"^```([A-Za-z_]\w*)[ \t]*\n(.*?)(?:\n?^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The calls found in a message, and what was wrong with those that could not be read."""

    calls: tuple[ToolCall, ...]
    problems: tuple[str, ...] = ()


def parse_calls(text: str, tools: Mapping[str, Tool]) -> Parsed:
    r"""Read tool calls in either of two ways of writing them.

    Tagged JSON (Hermes, Qwen): `<tool_call>{"name": "run", "arguments": {"code": "1"}}</tool_call>`; or a fenced
    block whose info string names a tool with one text argument, whose value is the block's body.

    >>> from agentgym.tools import tool, tools_of
    >>> class Shell:
    ...     @tool
    ...     def run(self, code: str) -> str:
    ...         "Run code."
    >>> parse_calls("Let me see.\n```run\nprint(1)\n```", tools_of(Shell)).calls[0].arguments
    {'code': 'print(1)'}
    """
    tagged = _TAGGED.findall(text)
    if tagged:
        return _read_tagged(tagged)
    calls = []
    for name, body in _FENCED.findall(text):
        argument = tools[name].text_argument if name in tools else None
        if argument is not None:
            calls.append(ToolCall(name=name, arguments={argument: body}))
    return Parsed(tuple(calls))


def _read_tagged(bodies: list[str]) -> Parsed:
    calls, problems = [], []
    for body in bodies:
        try:
            found = json.loads(body)
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # no lone surrogate, no infinity
        except (ValueError, RecursionError) as error:
            problems.append(f"the tool call is not valid JSON: {error}")
            continue
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            problems.append('wanted {"name": …, "arguments": {…}} inside <tool_call>')
        elif not isinstance(found.get("arguments", {}), dict):
            problems.append(f"the arguments of {found['name']!r} must be a JSON object")
        else:
            calls.append(ToolCall(name=found["name"], arguments=found.get("arguments", {})))
    return Parsed(tuple(calls), tuple(problems))
