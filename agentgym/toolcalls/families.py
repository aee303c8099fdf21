"""Calls in the ways of Llama 3, Mistral and DeepSeek."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from agentgym.toolcalls.common import Parsed, UnreadableError, read_call, read_json
from agentgym.tools import Tool
from agentgym.types import ToolCall

_PYTHON = "<|python_tag|>"
_BARE = re.compile(r'\s*\{\s*"(?:name|type)"\s*:')
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAME = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\])?")
_DEEPSEEK, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_DEEPSEEK_HEAD = re.compile(r"(?:function\s*<｜tool▁sep｜>)?([^\n<{`]*)(?:<｜tool▁sep｜>)?\s*(?:```json\s*)?")


def bare_json_sign(text: str, tools: Mapping[str, Tool]) -> int:  # noqa: ARG001 -- for any tool
    """Return where `<|python_tag|>` stands, or 0 where the message begins like a call."""
    return 0 if _BARE.match(text) else text.find(_PYTHON)


def known_json_sign(text: str, tools: Mapping[str, Tool]) -> int:
    """Return the same, but 0 only where a tool that exists is called."""
    if _BARE.match(text) and any(one.name in tools for one in bare_json(text, tools).calls):
        return 0
    return text.find(_PYTHON)


def bare_json(text: str, tools: Mapping[str, Tool]) -> Parsed:  # noqa: ARG001 -- JSON carries its types
    """Read Llama 3's `{"name": "run", "parameters": {"code": "1"}}`, several of them apart by `;`.

    Calls begin the message, or follow `<|python_tag|>`; other JSON is an answer and no call.
    """
    return Parsed.of(_objects(text if _BARE.match(text) else text.partition(_PYTHON)[2]))


def mistral(text: str, tools: Mapping[str, Tool]) -> Parsed:  # noqa: ARG001 -- JSON carries its types
    """Read `[TOOL_CALLS][{"name": "run", "arguments": {"code": "1"}}]`, or `[TOOL_CALLS]run[ARGS]{"code": "1"}`."""
    return Parsed.of(_mistral(text))


def deepseek(text: str, tools: Mapping[str, Tool]) -> Parsed:  # noqa: ARG001 -- JSON carries its types
    """Read V3.1's `<｜tool▁call▁begin｜>run<｜tool▁sep｜>{"code": "1"}<｜tool▁call▁end｜>`, and V3's with its fence."""
    return Parsed.of(_deepseek(text))


def _objects(text: str) -> Iterator[ToolCall | str]:
    text = text.strip()
    while text:
        try:
            found, end = read_json(text)
        except UnreadableError as error:
            yield str(error)
            return
        yield read_call(found, '{"name": …, "parameters": {…}}')
        text = text[end:].lstrip("; \t\r\n")


def _mistral(text: str) -> Iterator[ToolCall | str]:
    place = 0
    while (start := text.find(_MISTRAL, place)) >= 0:
        place = start + len(_MISTRAL)
        try:
            if text[place:].lstrip().startswith(("[", "{")):
                found, place = read_json(text, place)
                yield from (read_call(one) for one in (found if isinstance(found, list) else [found]))
                continue
            head = _MISTRAL_NAME.match(text, place)
            if head is None:
                yield f"wanted a list of calls after {_MISTRAL}"
                continue
            arguments, place = read_json(text, head.end())
            yield read_call({"name": head.group(1), "arguments": arguments, "id": head.group(2)})
        except UnreadableError as error:
            yield str(error)


def _deepseek(text: str) -> Iterator[ToolCall | str]:
    place = 0
    while (start := text.find(_DEEPSEEK, place)) >= 0:
        place = start + len(_DEEPSEEK)
        head = _DEEPSEEK_HEAD.match(text, place)
        name = head.group(1).strip() if head else ""
        if head is None or not name or _SEPARATOR not in head.group():
            yield f"wanted a tool's name and {_SEPARATOR} after {_DEEPSEEK}"
            continue
        try:
            arguments, place = read_json(text, head.end())
        except UnreadableError as error:
            yield str(error)
        else:
            yield read_call({"name": name, "arguments": arguments})
