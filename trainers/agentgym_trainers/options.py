"""Options of advantages, losses and engines, held against what these say that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, isclass, signature
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from agentgym.errors import RecipeError

GIVEN = frozenset(
    ("credit", "value_BL", "logp_BL", "logp_old_BL", "logp_ref_BL", "advantage_BL", "mask_BL", "weight_BL",
     "off_policy_B")
)  # fmt: skip
"""Parameters that the trainer fills itself."""


def checked_options(where: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the types that a function's annotations name: YAML reads `3e-4` as text.

    Args:
        where: the recipe's field, for error messages.
        name: the function's, as it is registered.
        function: what takes the options as keywords; or a class.
        options: as the recipe gives them.

    Raises:
        RecipeError: the function does not take one of them, or not this value.
    """
    accepted = {key: one for key, one in signature(function).parameters.items() if key not in GIVEN}
    if any(one.kind is Parameter.VAR_KEYWORD for one in accepted.values()):
        return dict(options)
    unknown = next((key for key in options if key not in accepted), None)
    if unknown is not None:
        takes = ", ".join(accepted) or "none"
        raise RecipeError(f"{where}: {name!r} has no option {unknown!r}; it takes: {takes}")
    hints = _hints(function)
    return {key: _typed(f"{where}.{key}", hints[key], one) if key in hints else one for key, one in options.items()}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function.__init__ if isclass(function) else function, include_extras=True)
    except (NameError, TypeError):  # a stranger's function may be annotated for type checkers alone, or be an object
        return {}


def _typed(where: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except PydanticSchemaGenerationError:  # annotated with a class that nobody can check values against
        return value
    except ValidationError as error:
        raise RecipeError(f"{where}: {error.errors()[0]['msg']}, found {value!r}") from error
