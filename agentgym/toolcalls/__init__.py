"""Find tool calls in text that the assistant itself wrote; nothing else is ever parsed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentgym.errors import UnknownNameError
from agentgym.toolcalls.common import Parsed
from agentgym.toolcalls.families import bare_json, bare_json_sign, deepseek, known_json_sign, mistral
from agentgym.toolcalls.fenced import fenced, fenced_sign
from agentgym.toolcalls.tagged import hermes, qwen3_coder, tagged
from agentgym.tools import Tool

__all__ = ["FORMATS", "Parsed", "detect_format", "parse_calls"]

Reader = Callable[[str, Mapping[str, Tool]], Parsed]


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing calls."""

    sign: Callable[[str, Mapping[str, Tool]], int]
    """Says where the first call begins, -1 if nowhere."""
    read: Reader


def _at(pattern: str) -> Callable[[str, Mapping[str, Tool]], int]:
    compiled = re.compile(pattern)

    def sign(text: str, tools: Mapping[str, Tool]) -> int:  # noqa: ARG001 -- the mark is the same for all tools
        found = compiled.search(text)
        return found.start() if found else -1

    return sign


FORMATS: Mapping[str, Format] = {
    "hermes": Format(_at("<tool_call>"), hermes),
    "qwen3_coder": Format(_at("<tool_call>|<function="), qwen3_coder),
    "llama3_json": Format(bare_json_sign, bare_json),
    "mistral": Format(_at(r"\[TOOL_CALLS\]"), mistral),
    "deepseek": Format(_at("<｜tool▁call▁begin｜>"), deepseek),
    "fenced": Format(fenced_sign, fenced),
}
"""The ways of writing calls that models are trained on, by the names that inference servers give them."""

_ANY = (
    Format(_at(r"<tool_call>|<function=[\w.-]+>"), tagged),
    *(FORMATS[name] for name in ("mistral", "deepseek", "fenced")),
    # Where nothing says that bare JSON is a call, only the name of a tool tells it from an answer.
    Format(known_json_sign, bare_json),
)
_SIGNS = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<｜tool▁calls▁begin｜>", "deepseek"),
    ("<|python_tag|>", "llama3_json"),
    ("<|start_header_id|>", "llama3_json"),
)


def parse_calls(text: str, tools: Mapping[str, Tool], format_name: str | None = None) -> Parsed:
    r"""Read the tool calls of one assistant message. No text whatever makes this raise.

    A thought, `<think>…</think>` at the beginning, calls nothing. A call's arguments are never searched for calls.

    Args:
        text: what the assistant said.
        tools: those of the environment; unknown names are kept, for the environment to answer.
        format_name: one of `FORMATS`; None looks for all of them. Fenced blocks are read in any case, for they are how
            an environment's own prompt may ask for calls. One message writes its calls in one way: the first one's.

    Returns:
        The calls in order, and what was wrong with those that could not be read.

    Raises:
        UnknownNameError: there is no such format.

    >>> from agentgym.tools import tool, tools_of
    >>> class Shell:
    ...     @tool
    ...     def run(self, code: str) -> str:
    ...         "Run code."
    >>> parse_calls("Let me see.\n```run\nprint(1)\n```", tools_of(Shell)).calls[0].arguments
    {'code': 'print(1)'}
    >>> parse_calls('[TOOL_CALLS][{"name": "run", "arguments": {"code": "1"}}]', tools_of(Shell)).calls[0].arguments
    {'code': '1'}
    """
    if format_name is not None and format_name not in FORMATS:
        raise UnknownNameError("tool-call format", format_name, FORMATS)
    said = _without_thought(text)
    formats = (FORMATS[format_name], FORMATS["fenced"]) if format_name else _ANY
    # Whatever comes first is the call, and what looks like others may be part of its arguments.
    places = [(place, one) for one in formats if (place := one.sign(said, tools)) >= 0]
    return min(places, key=lambda each: each[0])[1].read(said, tools) if places else Parsed(())


def detect_format(template: str) -> str | None:
    """Return the format that a chat template teaches; None if it shows none.

    >>> detect_format("{{ '<tool_call>' }}")
    'hermes'
    """
    return next((name for sign, name in _SIGNS if sign in template), None)


def _without_thought(text: str) -> str:
    if not text.lstrip().startswith("<think>"):
        return text
    return text.partition("</think>")[2]
