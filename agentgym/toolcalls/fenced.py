"""Calls as fenced blocks: a way of writing that any model can be asked for in words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agentgym.toolcalls.common import Parsed
from agentgym.tools import Tool
from agentgym.types import ToolCall

_FENCED = re.compile(r"^```([A-Za-z_]\w*)[ \t]*\n(.*?)(?:\n?^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def fenced_sign(text: str, tools: Mapping[str, Tool]) -> int:
    """Return where the first block that is a call begins, -1 if there is none."""
    return next((found.start() for found, _ in _calls(text, tools)), -1)


def fenced(text: str, tools: Mapping[str, Tool]) -> Parsed:
    """Read blocks whose info string names a tool with one text argument, whose value is the block's body."""
    return Parsed(tuple(call for _, call in _calls(text, tools)))


def _calls(text: str, tools: Mapping[str, Tool]) -> Iterator[tuple[re.Match[str], ToolCall]]:
    for found in _FENCED.finditer(text):
        name, body = found.groups()
        argument = tools[name].text_argument if name in tools else None
        if argument is not None:
            yield found, ToolCall(name=name, arguments={argument: body})
