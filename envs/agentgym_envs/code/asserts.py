"""Turn assert statements into cases: what the submission computes on one side, what is asked of it on the other."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from agentgym.graders.sources import parse, parse_expression
from agentgym.graders.values import encode_literal

Cased = dict[str, JsonValue]
_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)


class Inexpressible(ValueError):  # noqa: N818 -- a finding about a task, not a failure
    """A test cannot be told as calls and conditions."""


def cases_of(statements: Iterable[ast.stmt], names: frozenset[str]) -> list[Cased]:
    r"""Return the cases that a block of tests asks for.

    Assignments to one name are put in place of that name; any other statement but an assertion is refused.

    >>> cases_of(ast.parse("x = 2\nassert f(x) == (4,)\nassert sorted(f(1)) != [1]").body, frozenset({"f"}))
    [{'call': 'f(2)', 'literal': '(4,)'}, {'call': 'f(1)', 'check': 'sorted(_) != [1]'}]

    Raises:
        Inexpressible: naming the statement.
    """
    known: dict[str, ast.expr] = {}
    found = []
    for one in statements:
        match one:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                known[name] = _Put(known).visit(value)
            case ast.Assert(test=test):
                if (case := _case(_Put(known).visit(test), names)) is not None:
                    found.append(case)
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                continue
            case _:
                raise Inexpressible(f"a test with the statement {ast.unparse(one).splitlines()[0]!r}")
    return found


def _case(test: ast.expr, names: frozenset[str]) -> Cased | None:
    finder = _Calls(names)
    asked = cast(ast.expr, finder.visit(_copy(test)))
    if any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(asked)):
        raise Inexpressible(f"an assertion that passes the solution on as a value: {ast.unparse(test)!r}")
    if not finder.calls:
        if isinstance(test, ast.Constant) and test.value:
            return None
        raise Inexpressible(f"an assertion that does not call the solution: {ast.unparse(test)!r}")
    if len(finder.calls) == 1:
        call = ast.unparse(finder.calls[0])
    else:  # each is `_[index]`
        call = ast.unparse(ast.Tuple(elts=cast(list[ast.expr], finder.calls), ctx=ast.Load()))
        asked = _Numbered().visit(asked)
    literal = _literal(asked) if len(finder.calls) == 1 else None
    return {"call": call, "literal": literal} if literal else {"call": call, "check": ast.unparse(asked)}


def _literal(asked: ast.expr) -> str | None:
    match asked:
        case ast.Compare(left=one, ops=[ast.Eq()], comparators=[other]):
            sides = [ast.unparse(side) for side in (one, other)]
            if "_" in sides:
                wanted = sides[1 - sides.index("_")]
                try:
                    encode_literal(wanted)
                except (ValueError, TypeError):
                    return None
                return wanted
    return None


class _Put(ast.NodeTransformer):
    """Replaces names by the expressions that they stand for."""

    def __init__(self, known: Mapping[str, ast.expr]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _copy(self.known[node.id]) if node.id in self.known else node


class _Calls(ast.NodeTransformer):
    """Takes the outermost calls of some functions out of an expression and leaves `_` in their place."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.calls: list[ast.Call] = []
        self._bound: list[frozenset[str]] = []

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, _SCOPES):
            self._bound.append(_bound_names(node))
            try:
                return self.generic_visit(node)
            finally:
                self._bound.pop()
        if isinstance(node, ast.Call) and _root(node.func) in self.names:
            free = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            if any(free & bound for bound in self._bound):
                raise Inexpressible(f"a call that depends on a loop's variable: {ast.unparse(node)!r}")
            self.calls.append(node)
            return ast.Name(id="_", ctx=ast.Load())
        return self.generic_visit(node)


class _Numbered(ast.NodeTransformer):
    """Turns each `_` into `_[0]`, `_[1]`, … in order."""

    def __init__(self) -> None:
        self._next = 0

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id != "_":
            return node
        self._next += 1
        return ast.Subscript(value=node, slice=ast.Constant(value=self._next - 1), ctx=ast.Load())


def _root(function: ast.expr) -> str | None:
    """Return the name that a call starts from: `f` in `f(1)`, `Stack` in `Stack().pop()`."""
    while isinstance(function, (ast.Attribute, ast.Call)):
        function = function.value if isinstance(function, ast.Attribute) else function.func
    return function.id if isinstance(function, ast.Name) else None


def _bound_names(node: ast.AST) -> frozenset[str]:
    stored = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return frozenset(stored | {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)})


def _copy(node: ast.expr) -> ast.expr:
    return parse_expression(ast.unparse(node))


def defined(source: str) -> frozenset[str]:
    """Return the names of the functions and classes, and of the other names, that a module defines at its top."""
    found: set[str] = set()
    for node in parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {one.id for one in node.targets if isinstance(one, ast.Name)}
    return frozenset(found)


def used(cases: Sequence[Cased], names: frozenset[str]) -> list[str]:
    """Return which of these names the calls of cases start from or pass on, sorted."""
    calls = [parse_expression(str(one["call"])) for one in cases]
    return sorted({node.id for call in calls for node in ast.walk(call) if isinstance(node, ast.Name)} & names)
