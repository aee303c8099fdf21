"""Programming languages as data: how a program is built and run, a YAML file for each."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from agentgym.errors import UnknownNameError, VerifierError
from agentgym.types import Record

_Text = Annotated[str, Field(min_length=1)]


class Language(Record):
    """How programs of one language are built and run; every command is a `/bin/sh` script beside the source.

    >>> language("c").file
    'main.c'
    """

    name: _Text
    install: str
    """The Debian packages that the sandbox needs."""
    file: Annotated[str, Field(pattern=r"^[A-Za-z][\w.]*$")]
    """What the source is called where it is built and run."""
    extension: Annotated[str, Field(pattern=r"^\.\w+$")]
    """How a submission's file name ends, which tells its language."""
    build: str | None = None
    """Compiles the source, or checks its syntax; what it leaves beside the source is there when the program runs."""
    run: _Text
    control: _Text
    """A harmless program that copies its input to its output: where it fails, the sandbox is broken."""
    memory_mb: Annotated[int, Field(ge=16)] = 16
    """The address space that the runtime itself must be given; a task's smaller limit is raised to it."""


@cache
def language(name: str) -> Language:
    """Return a language that comes with the package.

    Raises:
        UnknownNameError: there is no such language.
    """
    if name not in names():
        raise UnknownNameError("language", name, names())
    file = resources.files(__name__).joinpath(f"{name}.yaml")
    return Language.model_validate({"name": name, **yaml.safe_load(file.read_text(encoding="utf-8"))})


@cache
def names() -> tuple[str, ...]:
    """Return the languages that come with the package."""
    files = (one.name for one in resources.files(__name__).iterdir())
    return tuple(sorted(one.removesuffix(".yaml") for one in files if one.endswith(".yaml")))


def read(given: Any) -> Language:
    """Return a language by its name, or from a task's own description of it.

    Raises:
        UnknownNameError: there is no language of that name.
        VerifierError: the description is malformed.
    """
    if isinstance(given, str):
        return language(given)
    try:
        return Language.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(
            f"a language is described wrongly: {where}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
