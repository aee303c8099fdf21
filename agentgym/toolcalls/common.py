"""What the formats share: the record they return, and JSON that is read once and trusted with nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from agentgym.types import ToolCall


def _integer(text: str) -> int:
    if math.isinf(float(text)):
        raise ValueError("an integer is out of the range of numbers")
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_integer)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The calls found in a message, and what was wrong with those that could not be read."""

    calls: tuple[ToolCall, ...]
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Iterable[ToolCall | str]) -> Parsed:
        """Sort calls from problems."""
        each = list(found)
        calls = tuple(one for one in each if isinstance(one, ToolCall))
        return cls(calls, tuple(one for one in each if isinstance(one, str)))


class UnreadableError(ValueError):
    """What stands there is not the JSON that was wanted; says why."""


def read_json(text: str, start: int = 0) -> tuple[Any, int]:
    """Return the JSON value that begins at `start`, after any space, and where it ends.

    Reading by the value's own grammar keeps a string that spells the end of a call from ending it.

    Raises:
        UnreadableError: it is no JSON, or holds what JSON text cannot: a lone surrogate, an infinity, or an integer
            that is as large.
    """
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    try:
        value, end = _DECODER.raw_decode(text, start)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"the tool call is not valid JSON: {error}") from error
    return value, end


def read_call(found: Any, shape: str = '{"name": …, "arguments": {…}}') -> ToolCall | str:
    """Return the call that a JSON value describes, or what is wrong with it."""
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return f"wanted {shape} as a tool call"
    arguments = found.get("arguments", found.get("parameters", {}))
    if not isinstance(arguments, dict):
        return f"the arguments of {found['name']!r} must be a JSON object"
    call_id = found.get("id")
    return make_call(found["name"], arguments, call_id if isinstance(call_id, str) else "")


def make_call(name: str, arguments: dict[str, Any], call_id: str = "") -> ToolCall | str:
    """Return a call, or what is wrong with its arguments.

    They are held to what JSON text can say, for some servers send them parsed, and not everybody parses as strictly.
    """
    try:
        read_json(json.dumps(arguments))
        return ToolCall(name=name, arguments=arguments, id=call_id)
    except UnreadableError as error:
        return f"{name[:80]}: {error}"
    except (ValidationError, RecursionError):
        return f"the arguments of {name[:80]!r} are nested too deeply"
