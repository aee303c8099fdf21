"""Our tools as Python methods, from whose type hints and Google docstrings transformers reads a schema again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from inspect import Parameter, Signature
from operator import or_
from types import GenericAlias
from typing import Any, Literal

from agentgym.errors import CapabilityError
from agentgym.policy import ToolSchema

RESERVED = ("reset", "get_reward")
_PLAIN: Mapping[str, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": None,
}
_SAID_BY_A_HINT = {"type", "enum", "anyOf", "items", "description", "title", "default"}


def method_of(schema: ToolSchema, call: Callable[[Any, str, dict[str, Any]], str]) -> Callable[..., str]:
    """Return a tool as a method.

    Args:
        schema: the tool in OpenAI's function-calling shape.
        call: is given the instance, the tool's name and the arguments.

    Raises:
        CapabilityError: the tool or an argument has a name that no method can have here.
    """
    function = schema["function"]
    name, parameters = function["name"], function.get("parameters", {})
    properties: Mapping[str, Any] = parameters.get("properties", {})
    _check_names(name, properties)

    def method(self: Any, **arguments: Any) -> str:
        return call(self, name, arguments)

    hints = {one: hint_of(shape) for one, shape in properties.items()}
    required = set(parameters.get("required", ()))
    ordered = sorted(properties, key=lambda one: one not in required)
    given = [
        Parameter(
            one, Parameter.KEYWORD_ONLY, annotation=hints[one], default=_default(properties[one], one in required)
        )
        for one in ordered
    ]
    method.__name__ = method.__qualname__ = name
    method.__doc__ = docstring_of(function["description"], properties)
    method.__annotations__ = {**{one: hints[one] for one in ordered}, "return": str}
    own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    vars(method)["__signature__"] = Signature([own, *given], return_annotation=str)
    return method


def hint_of(shape: Mapping[str, Any]) -> Any:
    """Return the Python type that says as much of a JSON schema as transformers can read of one.

    >>> hint_of({"type": "array", "items": {"type": "integer"}}), hint_of({"enum": ["a", "b"]})
    (list[int], typing.Literal['a', 'b'])
    """
    if "enum" in shape:
        return Literal[tuple(shape["enum"])]
    if "anyOf" in shape:
        return _either([hint_of(one) for one in shape["anyOf"]])
    kind = shape.get("type")
    if isinstance(kind, list):
        return _either([_PLAIN.get(one, Any) for one in kind])
    if kind == "array" and isinstance(shape.get("items"), Mapping):
        inner = hint_of(shape["items"])
        return list if inner is Any else GenericAlias(list, (inner,))
    return _PLAIN.get(str(kind), Any)


def docstring_of(description: str, properties: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Google docstring; one that describes every argument already stays as it is.

    What a type hint cannot say, such as bounds or the fields of an object, is told as a JSON schema.
    """
    before, _, section = description.partition("\nArgs:\n")
    if not properties or all(re.search(rf"^\s+{re.escape(one)}\b[^:\n]*:", section, re.M) for one in properties):
        return description
    lines = [f"    {name}: {_told(shape)}" for name, shape in properties.items()]
    return "\n".join([before.rstrip(), "", "Args:", *lines])


def _told(shape: Mapping[str, Any]) -> str:
    text = " ".join(str(shape.get("description") or "As described above.").split())
    more = {key: value for key, value in shape.items() if key not in _SAID_BY_A_HINT}
    return f"{text} As a JSON schema: {json.dumps(more)}." if more else text


def _default(shape: Mapping[str, Any], required: bool) -> Any:
    return Parameter.empty if required else shape.get("default")


def _either(hints: Sequence[Any]) -> Any:
    return Any if Any in hints else reduce(or_, hints[1:], hints[0])


def _check_names(tool: str, arguments: Mapping[str, Any]) -> None:
    if not tool.isidentifier() or tool.startswith("_") or tool in RESERVED:
        raise CapabilityError(
            f"TRL's environments have tools as methods, and {tool!r} cannot be the name of one; use rollout_func"
        )
    for one in arguments:
        if not one.isidentifier() or one == "self":
            raise CapabilityError(
                f"TRL's environments have tools as methods, and {one!r} of {tool!r} cannot be the name of an argument; "
                "use rollout_func"
            )
