"""Tools: typed methods of an environment, their JSON schemas, and the checking of arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from inspect import Parameter, cleandoc, signature
from typing import Any, Protocol, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from agentgym.errors import MissingExtraError, UnknownNameError
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


class Tool(Protocol):
    """Something that the agent may call."""

    @property
    def name(self) -> str:
        """What the agent calls it."""
        ...

    @property
    def description(self) -> str:
        """What it does."""
        ...

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's function-calling shape."""
        ...

    @property
    def text_argument(self) -> str | None:
        """The only required argument, if it is a string: what the body of a fenced call fills."""
        ...

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return validated arguments.

        Raises:
            ValueError: with one sentence that says what was wanted.
        """
        ...


@dataclass(frozen=True, slots=True)
class MethodTool:
    """A typed method as a tool."""

    name: str
    description: str
    arguments: type[BaseModel]

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


@dataclass(frozen=True, eq=False)
class SchemaTool:
    """A tool that is known by its JSON Schema alone, such as one of another server.

    Raises:
        MissingExtraError: the package `jsonschema` is not installed.
        ValueError: the schema itself is malformed.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        if find_spec("jsonschema") is None:
            raise MissingExtraError("jsonschema", "tools")
        from jsonschema import Draft202012Validator, SchemaError
        from referencing.exceptions import Unresolvable

        try:
            Draft202012Validator.check_schema(self.parameters)
            for place in _references(self.parameters):
                self._resolver.lookup(place)
        except SchemaError as error:
            raise ValueError(f"the schema of the tool {self.name!r} is malformed: {error.message}") from error
        except Unresolvable as error:
            raise ValueError(
                f"the schema of the tool {self.name!r} refers to {error.ref!r}, which is not in it"
            ) from error

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator
        from referencing import Registry

        return Draft202012Validator(self.parameters, registry=Registry())

    @property
    def _resolver(self) -> Any:
        from referencing import Registry
        from referencing.jsonschema import DRAFT202012

        return Registry().resolver_with_root(DRAFT202012.create_resource(self.parameters))

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's function-calling shape."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @property
    def text_argument(self) -> str | None:
        """The only required argument, if it is a string: what the body of a fenced call fills."""
        required = self.parameters.get("required", [])
        if len(required) == 1 and self.parameters.get("properties", {}).get(required[0], {}).get("type") == "string":
            return str(required[0])
        return None

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return validated arguments; one that the schema does not name is refused.

        Raises:
            ValueError: with one sentence that says what was wanted.
        """
        given = dict(arguments)
        known = self.parameters.get("properties", {})
        if "additionalProperties" not in self.parameters and (extra := sorted(given.keys() - known.keys())):
            raise ValueError(f"{self.name}: {UnknownNameError('argument', extra[0], known)}")
        found = min(self._validator.iter_errors(given), key=lambda one: len(one.absolute_path), default=None)
        if found is not None:
            where = ".".join(map(str, found.absolute_path)) or "arguments"
            raise ValueError(f"{self.name}: {where}: {found.message[:200]}")
        return given


def _references(schema: Any) -> Iterator[str]:
    """Yield what a schema refers to; none of it is ever fetched."""
    if isinstance(schema, Mapping):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from _references(one)


@lru_cache(maxsize=1024)
def _schema(tool: MethodTool) -> dict[str, Any]:
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
    return MethodTool(name, doc, create_model(f"{name}_arguments", __config__=config, **fields))
