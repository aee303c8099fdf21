"""Options behind what a policy's name points to: `checkpoint:runs/first,which=best`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from agentgym.errors import RecipeError
from agentgym.types import Record

Made = TypeVar("Made", bound=Record)


def read_options(
    text: str, kind: Callable[..., Made], accepted: list[str], *, owner: str, example: str, words: Collection[str] = ()
) -> Made:
    """Read `name=value` words with commas between them into a record; values are YAML.

    Args:
        text: the words.
        kind: the record, or what makes it.
        accepted: names of options, for the error sentence.
        owner: whose options they are.
        example: one of them, with a value.
        words: options whose values are text as it stands.

    Raises:
        RecipeError: a word of another form, a name that does not exist, or a value that does not fit.
    """
    try:
        return kind(**dict(_options(text, owner, example, words)))
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        field = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"the {owner}'s option {field!r}: {first['msg']}; the options are: {', '.join(accepted)}"
        ) from error


def _options(text: str, owner: str, example: str, words: Collection[str]) -> Iterator[tuple[str, Any]]:
    for word in text.split(","):
        name, sign, value = word.partition("=")
        if sign:
            try:
                yield name.strip(), value if name.strip() in words else yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise RecipeError(
                    f"wanted a value after the sign in the {owner}'s option {word!r}, found {value!r}"
                ) from error
        elif word:
            raise RecipeError(f"wanted an option like {example} after the {owner}, found {word!r}")
