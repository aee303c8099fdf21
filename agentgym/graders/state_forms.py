"""States of a world in one canonical form: equal worlds have equal hashes, however they are written down."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue

from agentgym.types import Record

Path = tuple[str, ...]
Form = Any
"""Nested pairs of a tag and its payload: `o` object, `l` list, `m` list without order; scalars keep their type."""


class Equality(Record):
    """What does not matter when two states are compared. Everything not named here does; types always do.

    Paths are keys joined by dots, where `*` stands for any one key or index; a table's rows are at its name, and a
    row's cells at its columns' names.
    """

    unordered: tuple[str, ...] = ()
    """Lists, or tables, whose order does not matter."""
    ignored: tuple[str, ...] = ()
    """Values that do not matter at all, such as `orders.*.created_at`."""
    float_digits: Annotated[int, Field(ge=1, le=17)] | None = None
    """Significant digits to which floats are compared; None compares them exactly."""
    one_number_type: bool = False
    """Whether 1 and 1.0 are the same."""
    trailing_space: bool = True
    """Whether spaces at the ends of lines, and empty lines at the end of a text, matter."""


def form(value: JsonValue | bytes, how: Equality, path: Path = ()) -> Form:
    """Return a value's canonical form; ignored places are gone.

    >>> form({"b": [1], "a": 1.50}, Equality()) == form({"a": 1.5, "b": [1]}, Equality())
    True
    >>> form({"a": 1}, Equality()) == form({"a": True}, Equality())
    False
    """
    match value:
        case dict():
            kept = {name: path_of for name in value if not _at(path_of := (*path, name), how.ignored)}
            return ("o", tuple(sorted((name, form(value[name], how, at)) for name, at in kept.items())))
        case list():
            places = [((*path, str(index)), one) for index, one in enumerate(value)]
            items = [form(one, how, at) for at, one in places if not _at(at, how.ignored)]
            return ("m", tuple(sorted(items, key=repr))) if _at(path, how.unordered) else ("l", tuple(items))
        case bool():
            return ("b", value)
        case int() if not how.one_number_type:
            return ("i", value)
        case int() | float():
            return ("f", _float(value, how))
        case str():
            return ("s", value if how.trailing_space else _trimmed(value))
        case bytes():
            return ("y", value.hex())
    return ("n", None)


def _float(value: float, how: Equality) -> str | int:
    if isinstance(value, int) or (how.one_number_type and math.isfinite(value) and value == int(value)):
        return int(value)
    if math.isfinite(value) and how.float_digits is not None:
        value = float(f"{value:.{how.float_digits - 1}e}")
    return "nan" if math.isnan(value) else (value + 0.0).hex() if value else (0.0).hex()


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


def _at(path: Path, patterns: Sequence[str]) -> bool:
    for one in patterns:
        parts = one.split(".")
        if len(parts) == len(path) and all(part in ("*", key) for part, key in zip(parts, path, strict=True)):
            return True
    return False


def semantic_hash(one: Form) -> str:
    """Return the SHA-256 of a canonical form."""
    return hashlib.sha256(json.dumps(one, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def differences(gold: Form, found: Form, known: frozenset[str], path: Path = ()) -> Iterator[str]:
    """Yield what differs, in words; of the gold state only how much is missing, never what.

    Args:
        gold: the wanted state.
        found: the state that the agent left; its keys may be named.
        known: further names that the agent knows, such as those of the start.
        path: where both are.
    """
    where = ".".join(path) or "the state"
    if gold == found:
        return
    if gold[0] != found[0]:
        yield f"{where} has another type than it should"
    elif gold[0] == "o":
        yield from _object_differences(dict(gold[1]), dict(found[1]), known, path)
    elif gold[0] in "lm":
        yield from _list_differences(gold, found, where)
    else:
        yield f"{where} has another value than it should"


def _object_differences(
    gold: Mapping[str, Form], found: Mapping[str, Form], known: frozenset[str], path: Path
) -> Iterator[str]:
    where = f" in {'.'.join(path)}" if path else ""
    for name in found:
        if name not in gold:
            yield f"{'.'.join((*path, name))} should not be there"
        else:
            yield from differences(gold[name], found[name], known, (*path, name))
    missing = [name for name in gold if name not in found]
    for name in (one for one in missing if one in known):
        yield f"{'.'.join((*path, name))} is missing"
    if secret := sum(one not in known for one in missing):
        yield f"{secret} {'entry is' if secret == 1 else 'entries are'} missing{where}"


def _list_differences(gold: Form, found: Form, where: str) -> Iterator[str]:
    wanted, given = (Counter(repr(one) for one in side[1]) for side in (gold, found))
    missing, extra = (wanted - given).total(), (given - wanted).total()
    if not missing and not extra:
        yield f"{where} is in another order than it should be"
        return
    parts = [f"{missing} missing"] * bool(missing) + [f"{extra} too many"] * bool(extra)
    yield f"{where}: {', '.join(parts)} (a changed one counts as both)"
