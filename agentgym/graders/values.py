"""Values as data: exact types on the wire, comparison on the trusted side, and no value of the agent's is built."""

from __future__ import annotations

import ast
import json
import math
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from agentgym.graders.sources import parse_expression
from agentgym.types import Record

Tree = tuple[str, Any]
"""A tag and its payload: `n` None, `o` bool, `i` int, `f` float, `c` complex, `s` str, `b` bytes, `l` list, `t` tuple,
`e` set, `z` frozenset, `d` dict as pairs, `x` an instance of a subclass as its class's name and its plain base."""

_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "e", frozenset: "z"}
_SCALARS: dict[type, str] = {bool: "o", int: "i", float: "f", complex: "c", str: "s", bytes: "b"}
_BRACKETS = {"l": ("[", "]"), "e": ("{", "}"), "t": ("(", ")")}
_MAX_DEPTH = 100
_SHOWN_DIGITS = 4000


class MalformedError(ValueError):
    """What came out of the sandbox is not a value."""


class Comparison(Record):
    """How a found value is compared with the wanted one.

    In every mode NaN equals NaN, 0.0 equals -0.0, and sets and dictionaries have no order.
    """

    mode: Literal["exact", "number", "python"] = "exact"
    """`exact`: types count, True is not 1 and 1 is not 1.0. `number`: int and float compare by value, bool stays apart.
    `python`: like `==`, where True is 1 and a subclass equals its base."""
    rel_tol: Annotated[float, Field(ge=0)] = 0.0
    abs_tol: Annotated[float, Field(ge=0)] = 0.0
    """Either tolerance, if not zero, applies to floats as in `math.isclose`, and implies at least `number`."""

    def same(self, wanted: Tree, found: Tree) -> bool:
        """Whether the found value is the wanted one.

        >>> Comparison().same(encode([1, {2.5}]), encode([1, {2.5}])), Comparison().same(encode(1), encode(True))
        (True, False)
        >>> Comparison(rel_tol=0.01).same(encode({"x": 100}), encode({"x": 100.5}))
        True
        """
        tolerant = bool(self.rel_tol or self.abs_tol)
        mode = "number" if tolerant and self.mode == "exact" else self.mode
        one, other = _key(wanted, mode), _key(found, mode)
        return one == other or (tolerant and self._close(one, other))

    def _close(self, one: Any, other: Any) -> bool:
        if not (isinstance(one, tuple) and isinstance(other, tuple)):
            return bool(one == other)
        if one[:1] == other[:1] == (_NUMBER,):
            try:
                return math.isclose(one[1], other[1], rel_tol=self.rel_tol, abs_tol=self.abs_tol)
            except OverflowError:  # an integer beyond the range of floats
                return False
        return len(one) == len(other) and all(self._close(*pair) for pair in zip(one, other, strict=True))


_NUMBER = 3


def _key(tree: Tree, mode: str) -> Any:
    """Return nested tuples that are equal exactly for values that are the same, and can be sorted."""
    tag, payload = tree
    if tag in "oif":
        rank = _NUMBER if tag != "o" or mode == "python" else 1
        if mode == "exact":
            rank = "oif".index(tag) + 1
        return (4, "nan") if payload != payload else (rank, payload)
    if tag == "c":
        parts = [_key(("f", part), mode) for part in payload]
        return parts[0] if mode == "python" and payload[1] == 0 else (5, *parts)
    if tag in "sb":
        return (6 if tag == "s" else 7, payload)
    if tag in "lt":
        return (8 if tag == "l" else 9, tuple(_key(one, mode) for one in payload))
    if tag in "ez":
        return (11 if tag == "z" and mode != "python" else 10, tuple(sorted(_key(one, mode) for one in payload)))
    if tag == "d":
        return (12, tuple(sorted((_key(key, mode), _key(one, mode)) for key, one in payload)))
    if tag == "x":
        return _key(payload[1], mode) if mode == "python" else (13, payload[0], _key(payload[1], mode))
    return (0,)


def encode(value: object) -> Tree:
    """Return the tree of a trusted value.

    Raises:
        TypeError: if it is not plain data.
    """
    kind = type(value)
    if value is None:
        return ("n", 0)
    if kind is complex:
        number = cast(complex, value)
        return ("c", (number.real, number.imag))
    if kind in _SCALARS:
        return (_SCALARS[kind], value)
    if kind in _SEQUENCES:
        return (_SEQUENCES[kind], tuple(encode(one) for one in cast(list[object], value)))
    if kind is dict:
        return ("d", tuple((encode(key), encode(one)) for key, one in cast(dict[object, object], value).items()))
    raise TypeError(f"wanted plain data, found {kind.__name__}")


def encode_literal(source: str) -> Tree:
    """Return the tree of a Python literal; `nan`, `inf` and `frozenset({…})` count as literals too.

    >>> encode_literal("(1, -inf)")
    ('t', (('i', 1), ('f', -inf)))

    Raises:
        ValueError: if it is anything else.
    """
    try:
        return _literal(parse_expression(source))
    except SyntaxError as error:
        raise ValueError(f"{source!r} is not a Python literal: {error.msg}") from error


def _literal(node: ast.expr) -> Tree:
    match node:
        case ast.Name(id="nan" | "inf" as name):
            return ("f", float(name))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return ("f", -math.inf)
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(text))]):
            return ("f", float(text))
        case ast.Call(func=ast.Name(id="set" | "frozenset" as name), args=args, keywords=[]) if len(args) <= 1:
            items = _literal(args[0])[1] if args else ()
            return ("e" if name == "set" else "z", items)
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            tag = {ast.List: "l", ast.Tuple: "t", ast.Set: "e"}[type(node)]
            return (tag, tuple(_literal(one) for one in elements))
        case ast.Dict(keys=keys, values=values) if all(key is not None for key in keys):
            pairs = zip(cast(list[ast.expr], keys), values, strict=True)
            return ("d", tuple({_literal(key): _literal(value) for key, value in pairs}.items()))
    return encode(ast.literal_eval(node))


def parse(text: bytes) -> Any:
    """Read one reply of the runner: `[kind, payload]` with every value checked and turned into a tree.

    Raises:
        MalformedError: it is anything else.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError("a reply is not JSON") from error
    match found:
        case [("timeout" | "died") as kind, _]:
            return kind, None
        case [("value" | "broken" | "raised" | "data" | "syntax") as kind, payload]:
            tree = _checked(payload)
            if kind != "value" and tree[0] != "s":
                raise MalformedError("an error without a text")
            return kind, tree
    raise MalformedError("a reply of no known kind")


def _checked(raw: Any, depth: int = 0) -> Tree:
    if depth > _MAX_DEPTH:
        raise MalformedError("a value is nested too deeply")
    try:
        return _check(raw, depth + 1)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise MalformedError("a reply holds something that is not a value") from error


def _check(raw: Any, depth: int) -> Tree:
    match raw:
        case ["n", 0]:
            return ("n", 0)
        case ["o", int(value)] if value in (0, 1):
            return ("o", bool(value))
        case ["i", str(text)]:
            return ("i", int(text, 16))
        case ["f", str(text)]:
            return ("f", float.fromhex(text))
        case ["c", [str(real), str(imaginary)]]:
            return ("c", (float.fromhex(real), float.fromhex(imaginary)))
        case ["s", str(text)]:
            return ("s", bytes.fromhex(text).decode("utf-8", "surrogatepass"))
        case ["b", str(text)]:
            return ("b", bytes.fromhex(text))
        case [("l" | "t" | "e" | "z") as tag, list(items)]:
            return (tag, tuple(_checked(one, depth) for one in items))
        case ["d", list(pairs)]:
            return ("d", tuple((_checked(key, depth), _checked(value, depth)) for key, value in pairs))
        case ["x", [["s", str(_)] as name, inner]]:
            return ("x", (_checked(name, depth)[1], _checked(inner, depth)))
    raise MalformedError("a reply holds something that is not a value")


def show(tree: Tree, limit: int = 120) -> str:
    """Return a value the way Python writes it, cut to a length.

    >>> show(encode([1, (2,), {"a": {3}}]))
    "[1, (2,), {'a': {3}}]"
    """
    text = _show(tree)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _show(tree: Tree) -> str:
    tag, payload = tree
    if tag == "n":
        return "None"
    if tag == "i" and abs(payload).bit_length() > _SHOWN_DIGITS:
        return hex(payload)
    if tag == "c":
        return repr(complex(*payload))
    if tag == "x":
        return f"{payload[0]}({_show(payload[1])})"
    if tag == "d":
        return "{" + ", ".join(f"{_show(key)}: {_show(value)}" for key, value in payload) + "}"
    if tag not in "ltez":
        return repr(payload)
    inner = ", ".join(_show(one) for one in payload)
    if tag == "z" or (tag == "e" and not payload):
        return f"frozenset({{{inner}}})" if payload else ("frozenset()" if tag == "z" else "set()")
    opening, closing = _BRACKETS[tag]
    return f"{opening}{inner}{',' if tag == 't' and len(payload) == 1 else ''}{closing}"
