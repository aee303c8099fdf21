"""Calls between tags: JSON (Hermes, Qwen2.5, Qwen3) and Qwen3-Coder's elements."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentgym.toolcalls.common import Parsed, UnreadableError, make_call, read_call, read_json
from agentgym.tools import Tool
from agentgym.types import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"<function=([^>\n]*)>")
_FIRST = re.compile(r"<tool_call>\s*(<function=)?|(<function=)[\w.-]+>")
_FUNCTION_END = re.compile(r"</function>(?=\s*(?:</tool_call>|<tool_call>|<function=|\Z))")
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|\Z))", re.DOTALL)


def hermes(text: str, tools: Mapping[str, Tool]) -> Parsed:  # noqa: ARG001 -- JSON carries its types
    """Read `<tool_call>{"name": "run", "arguments": {"code": "1"}}</tool_call>`; the last tag may be left open."""
    return Parsed.of(_hermes(text))


def qwen3_coder(text: str, tools: Mapping[str, Tool]) -> Parsed:
    r"""Read `<tool_call><function=run><parameter=code>\n1\n</parameter></function></tool_call>`.

    The outer tag may be missing. Values are text, read as JSON where the tool wants anything but text.
    """
    if not _FUNCTION.search(text):
        return Parsed((), ("wanted <function=…> inside <tool_call>",))
    return Parsed.of(_elements(text, tools))


def tagged(text: str, tools: Mapping[str, Tool]) -> Parsed:
    """Read whichever of the two the first tag announces."""
    first = _FIRST.search(text)
    return hermes(text, tools) if first and not (first.group(1) or first.group(2)) else qwen3_coder(text, tools)


def _hermes(text: str) -> Iterator[ToolCall | str]:
    place = 0
    while (start := text.find(_OPEN, place)) >= 0:
        body = start + len(_OPEN)
        try:
            found, place = read_json(text, body)
        except UnreadableError as error:
            yield str(error)
            place = _after_close(text, body)
            continue
        rest = text[place:].lstrip()
        if rest and not rest.startswith((_OPEN, _CLOSE)):
            yield f"the tool call is not valid JSON: more follows the object before {_CLOSE}"
            place = _after_close(text, place)
        else:
            yield read_call(found, '{"name": …, "arguments": {…}} inside <tool_call>')


def _after_close(text: str, start: int) -> int:
    found = text.find(_CLOSE, start)
    return len(text) if found < 0 else found + len(_CLOSE)


def _elements(text: str, tools: Mapping[str, Tool]) -> Iterator[ToolCall | str]:
    place = 0
    while (opened := _FUNCTION.search(text, place)) is not None:
        ended = _FUNCTION_END.search(text, opened.end())
        stop = ended.start() if ended else text.find("</function>", opened.end())
        body = text[opened.end() : stop if stop >= 0 else len(text)]
        place = len(text) if stop < 0 else stop
        yield _element(opened.group(1).strip(), body.replace(_CLOSE, "") if stop < 0 else body, tools)


def _element(name: str, body: str, tools: Mapping[str, Tool]) -> ToolCall | str:
    if not name:
        return "wanted a tool's name in <function=…>"
    body = body.strip()
    values = {key.strip(): value for key, value in _PARAMETER.findall(body)}
    if (left := _PARAMETER.sub("", body).strip()) != "":
        return f"the call of {name[:80]!r} holds something else than <parameter=…>…</parameter>: {left[:40]!r}"
    schemas = tools[name].schema["function"]["parameters"].get("properties", {}) if name in tools else {}
    return make_call(name, {key: _typed(value, schemas.get(key, {})) for key, value in values.items()})


def _typed(value: str, schema: Mapping[str, Any]) -> Any:
    """Return text as what the schema wants; what cannot be read stays text, for the argument check to refuse."""
    kinds = {one.get("type") for one in schema.get("anyOf", [schema])}
    if kinds <= {"string", None} or ("string" in kinds and value != "null"):
        return value
    try:
        found, end = read_json(value.lower() if value in ("True", "False") else value)
    except UnreadableError:
        return value
    return value if value[end:].strip() else found
