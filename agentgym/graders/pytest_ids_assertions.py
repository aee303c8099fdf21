"""The assertions of one test function, and how each is made to contradict itself."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agentgym.graders.pytest_ids_values import Scope, falsify

Function = ast.FunctionDef | ast.AsyncFunctionDef
_EQUAL = frozenset(
    ("assertEqual", "assertListEqual", "assertTupleEqual", "assertSetEqual", "assertDictEqual", "assertAlmostEqual")
) | {"assertMultiLineEqual", "assertSequenceEqual", "assertCountEqual"}
_PAIRS = (
    *(("assertTrue", "assertFalse"), ("assertIsNone", "assertIsNotNone"), ("assertIn", "assertNotIn")),
    *(("assertIs", "assertIsNot"), ("assertIsInstance", "assertNotIsInstance"), ("assertRegex", "assertNotRegex")),
    *(("assertLess", "assertGreaterEqual"), ("assertGreater", "assertLessEqual")),
)
_OPPOSITE = {**dict(_PAIRS), **{other: one for one, other in _PAIRS}, "assertNotEqual": "assertEqual"}
_RAISES = frozenset(("raises", "assertRaises", "assertRaisesRegex"))
_LEAVING = _RAISES | {"suppress", "warns", "skip"}
_OPERATORS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
}
# Hardly anything that a library raises is one of these, or derives from one.
_RARE = ("BufferError", "FloatingPointError", "ConnectionResetError", "UnboundLocalError", "ChildProcessError")
_WORDS = ("assert", "check", "verify", "expect")


@dataclass(frozen=True, slots=True)
class Assertion:
    """One assertion of a test."""

    node: ast.AST
    contradict: Callable[[random.Random], bool | None] | None
    """Changes the tree and says whether only an expectation differs; None, here or as the answer: it cannot be done,
    or a passing test is not sure to have reached the place."""


def assertions(module: ast.Module, function: Function) -> list[Assertion]:
    """Return every assertion of a function, in order; also what looks like one and is not understood."""
    scope = Scope(module, function)
    leaves = any(isinstance(one, ast.Return | ast.Yield | ast.Break | ast.Continue) for one in own_nodes(function))
    reached = set() if leaves else {id(one) for one in _reached(function.body, scope)}
    helpers = _helpers(module)
    found: list[Assertion] = []
    claimed: set[int] = set()
    for node in ast.walk(function):
        contradict, call = _contradiction(node, scope)
        if contradict is not None:
            claimed.add(id(call))
            found.append(Assertion(node, contradict if id(node) in reached else None))
        elif id(node) not in claimed and (_looks_like_one(node) or _name(node) in helpers):
            found.append(Assertion(node, None))
    return found


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function without those of the functions inside it."""
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from own_nodes(child)


def _reached(body: Sequence[ast.stmt], scope: Scope) -> Iterator[ast.AST]:
    """Yield the statements that a passing test is sure to have run to their end."""
    for one in body:
        yield one
        if isinstance(one, ast.With | ast.AsyncWith):
            if not any(_name(item.context_expr) in _LEAVING for item in one.items):
                yield from _reached(one.body, scope)
        elif isinstance(one, ast.For) and scope.rows(one.iter):
            yield from _reached(one.body, scope)


def _name(node: ast.AST) -> str:
    """Return the last name of a call such as `pytest.raises(…)`."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
    return ""


def _helpers(module: ast.Module) -> set[str]:
    """Return the names of functions of the file that make assertions themselves."""
    functions = [one for one in ast.walk(module) if isinstance(one, Function)]
    return {one.name for one in functions if any(_looks_like_one(part) for part in ast.walk(one))}


def _looks_like_one(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    name = _name(node).lower()
    return name in ("fail", "raises", "warns", "deprecated_call") or name.startswith(_WORDS)


def _contradiction(node: ast.AST, scope: Scope) -> tuple[Callable[[random.Random], bool | None] | None, ast.AST | None]:
    """Return how to contradict a statement, and the call in it that is thereby accounted for."""
    match node:
        case ast.Assert():
            return (lambda rng: _flip(node, rng, scope)), None
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name)) as call) if name in _OPPOSITE or name in _EQUAL:
            return (lambda rng: _flip_call(call, name, rng, scope)), call
        case ast.Expr(value=ast.Call() as call) if _name(call) in _RAISES:
            return (lambda rng: _other_error(call, rng)), call
        case ast.With(items=[ast.withitem(context_expr=ast.Call() as call)]) if _name(call) in _RAISES:
            return (lambda rng: _other_error(call, rng)), call
    return None, None


def _flip(node: ast.Assert, rng: random.Random, scope: Scope) -> bool:
    match node.test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            node.test = operand
            return True
        case ast.Compare(ops=[ast.Eq()], comparators=[right]) as compare:
            if (new := falsify(right, rng, scope)) is not None:
                compare.comparators = [new]
            elif (new := falsify(compare.left, rng, scope)) is not None:
                compare.left = new
            else:
                compare.ops = [ast.NotEq()]
            return new is not None
        case ast.Compare(ops=[operator]) as compare if type(operator) in _OPERATORS:
            compare.ops = [_OPERATORS[type(operator)]()]
            return True
        case ast.BoolOp() | ast.Compare() as whole:
            node.test = ast.UnaryOp(ast.Not(), whole)
            return False
        case whole:
            node.test = ast.UnaryOp(ast.Not(), whole)
            return True


def _flip_call(call: ast.Call, name: str, rng: random.Random, scope: Scope) -> bool | None:
    assert isinstance(call.func, ast.Attribute)
    if name in _OPPOSITE:
        call.func.attr = _OPPOSITE[name]
        return True
    if len(call.args) < 2 or call.keywords:
        return None
    for index in (1, 0):
        if (new := falsify(call.args[index], rng, scope, ordered=name != "assertCountEqual")) is not None:
            call.args[index] = new
            return True
    if name in ("assertCountEqual", "assertAlmostEqual"):
        return None
    call.func.attr = "assertNotEqual"
    return False


def _other_error(call: ast.Call, rng: random.Random) -> bool | None:
    if not call.args:
        return None
    named = {one.id for one in ast.walk(call.args[0]) if isinstance(one, ast.Name)}
    call.args[0] = ast.Name(rng.choice([one for one in _RARE if one not in named]), ast.Load())
    return True
