"""Tools: typed methods of an environment, their JSON schemas, and the checking of arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, cleandoc, signature
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from agentgym.types import Submission

Function = TypeVar("Function", bound=Callable[..., Any])


class Submit(Exception):  # noqa: N818 -- may also be raised, from deep inside a tool
    """What a tool returns (or raises) to hand in the agent's work and end the episode.

    >>> Submit("42").submission.answer
    '42'
    """

    def __init__(self, answer: str | None = None, *, files: Mapping[str, str] | None = None, **data: Any) -> None:
        super().__init__("submitted")
        self.submission = Submission(answer=answer, files=dict(files or {}), data=data)


@dataclass(frozen=True, slots=True)
class Tool:
    """A callable that the agent may use."""

    name: str
    description: str
    arguments: type[BaseModel]
    method: str

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's function-calling shape."""
        return _schema(self)

    @property
    def text_argument(self) -> str | None:
        """The only required argument, if it is a string: what the body of a fenced call fills."""
        required = [name for name, one in self.arguments.model_fields.items() if one.is_required()]
        if len(required) == 1 and self.arguments.model_fields[required[0]].annotation is str:
            return required[0]
        return None

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return validated arguments.

        Raises:
            ValueError: with one sentence that says what was wanted.
        """
        try:
            model = self.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "arguments"
            raise ValueError(f"{self.name}: {where}: {first['msg']}") from error
        return {name: getattr(model, name) for name in self.arguments.model_fields}


@lru_cache(maxsize=1024)
def _schema(tool: Tool) -> dict[str, Any]:
    # Made once: every episode asks for it, and pydantic takes a millisecond.
    parameters = tool.arguments.model_json_schema()
    parameters.pop("title", None)
    for one in parameters.get("properties", {}).values():
        one.pop("title", None)
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def tool(function: Function) -> Function:
    """Mark a method of an environment as a tool; its docstring and type hints become its schema."""
    function.__agentgym_tool__ = True  # type: ignore[attr-defined]
    return function


def tools_of(owner: type) -> dict[str, Tool]:
    """Return the tools that a class defines or inherits, by name, in definition order."""
    return dict(_tools_of(owner))


@lru_cache(maxsize=256)
def _tools_of(owner: type) -> dict[str, Tool]:
    found: dict[str, Tool] = {}
    for base in reversed(owner.__mro__):
        for name, member in vars(base).items():
            if getattr(member, "__agentgym_tool__", False):
                found[name] = _describe(name, member)
            elif name in found:
                del found[name]  # a subclass that overrides a tool without @tool takes it away
    return found


def _describe(name: str, function: Callable[..., Any]) -> Tool:
    doc = cleandoc(function.__doc__ or "")
    if not doc:
        raise TypeError(f"the tool {name!r} has no docstring; the agent reads it as the tool's description")
    hints = get_type_hints(function)
    fields: dict[str, Any] = {}
    for parameter in list(signature(function).parameters.values())[1:]:
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            raise TypeError(f"the tool {name!r} takes *{parameter.name}; name every argument, so that it has a schema")
        if parameter.name not in hints:
            raise TypeError(f"the argument {parameter.name!r} of the tool {name!r} has no type; add a type hint")
        default = ... if parameter.default is Parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    config = ConfigDict(extra="forbid", strict=True)
    return Tool(name, doc, create_model(f"{name}_arguments", __config__=config, **fields), name)
