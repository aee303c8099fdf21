"""Make an expectation in a test wrong where it is written: in place, in an assignment, or in a table of cases."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable

from agentgym.graders.twins import is_literal, wrong

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Scope:
    """A test function and what its names stand for."""

    def __init__(self, module: ast.Module, function: Function) -> None:
        self.module = module
        self.function = function

    def rows(self, node: ast.expr) -> list[ast.expr]:
        """Return the elements of a list or tuple that is written out, here or in an assignment to a name."""
        match node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return elements
            case ast.Name(id=name) if (assigned := self.assigned(name)) is not None:
                return self.rows(assigned.value) if not isinstance(assigned.value, ast.Name) else []
        return []

    def assigned(self, name: str) -> ast.Assign | None:
        """Return the one assignment to a name that is read once, so that changing it changes nothing else."""
        names = [one for one in ast.walk(self.module) if isinstance(one, ast.Name) and one.id == name]
        reads = [one for one in names if isinstance(one.ctx, ast.Load)]
        if len(reads) != 1 or len(names) != 2:
            return None
        for one in (*self.function.body, *self.module.body):
            match one:
                case ast.Assign(targets=[ast.Name(id=target)]) if target == name:
                    return one
        return None

    def only_compared(self, name: str) -> bool:
        """Whether a name is read in the test's comparisons and nowhere else."""
        compared: set[int] = set()
        for one in ast.walk(self.function):
            match one:
                case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
                    compared |= {id(left), id(right)}
                case ast.Expr(value=ast.Call(func=ast.Attribute(attr=method), args=args)) if "Equal" in method:
                    compared |= {id(arg) for arg in args}
        decorators = {id(part) for top in self.function.decorator_list for part in ast.walk(top)}
        reads = [
            one
            for one in ast.walk(self.function)
            if isinstance(one, ast.Name) and one.id == name and isinstance(one.ctx, ast.Load)
        ]
        return all(id(one) in compared for one in reads if id(one) not in decorators)


def falsify(node: ast.expr, rng: random.Random, scope: Scope, *, ordered: bool = True) -> ast.expr | None:
    """Return what to write instead of an expected value, perhaps after a change elsewhere; None: it is no literal."""
    if is_literal(node):
        return wrong(node, rng, ordered=ordered)
    match node:
        case ast.Call(func=ast.Attribute(attr="approx") | ast.Name(id="approx"), args=[value], keywords=[]):
            if (new := falsify(value, rng, scope)) is not None:
                node.args = [new]
                return node
        case ast.List(elts=elements) | ast.Tuple(elts=elements) if ordered:
            return node if _any_of(elements, rng, scope) else None
        case ast.Dict(values=values):
            return node if _any_of(values, rng, scope) else None
        case ast.JoinedStr(values=[*_, ast.Constant(value=str()) as text]) if text.value:
            text.value = ast.literal_eval(wrong(ast.Constant(text.value), rng, ordered=True))
            return node
        case ast.Name(id=name):
            return node if _falsify_name(name, rng, scope, ordered=ordered) else None
    return None


def _any_of(places: list[ast.expr], rng: random.Random, scope: Scope) -> bool:
    """Make one element wrong; a name in it stays, because it may be an input, too."""
    for index in rng.sample(range(len(places)), len(places)):
        if not isinstance(places[index], ast.Name) and (new := falsify(places[index], rng, scope)) is not None:
            places[index] = new
            return True
    return False


def _falsify_name(name: str, rng: random.Random, scope: Scope, *, ordered: bool) -> bool:
    if (assigned := scope.assigned(name)) is not None:
        if is_literal(assigned.value):
            assigned.value = wrong(assigned.value, rng, ordered=ordered)
            return True
        return False
    if not scope.only_compared(name):
        return False
    for one in ast.walk(scope.function):
        if isinstance(one, ast.For) and (place := _place(one.target, name)) is not None:
            return _falsify_rows(scope.rows(one.iter), place, rng, ordered)
    for decorator in scope.function.decorator_list:
        match decorator:
            case ast.Call(func=ast.Attribute(attr="parametrize"), args=[names, table], keywords=[]):
                if name in (known := _parameters(names)):
                    single = isinstance(names, ast.Constant) and len(known) == 1
                    return _falsify_rows(scope.rows(table), None if single else known.index(name), rng, ordered)
    return False


def _place(target: ast.expr, name: str) -> int | None:
    """Return where a loop's target holds a name; -1: it is the name."""
    match target:
        case ast.Name(id=one) if one == name:
            return -1
        case ast.Tuple(elts=elements):
            names = [one.id if isinstance(one, ast.Name) else "" for one in elements]
            return names.index(name) if name in names else None
    return None


def _parameters(names: ast.expr) -> list[str]:
    match names:
        case ast.Constant(value=str(text)):
            return [one.strip() for one in text.split(",") if one.strip()]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [str(one.value) for one in elements if isinstance(one, ast.Constant)]
    return []


def _falsify_rows(rows: list[ast.expr], place: int | None, rng: random.Random, ordered: bool) -> bool:
    """Make one column wrong in every row, so that every case fails; all or nothing."""
    changes: list[Callable[[], None]] = []
    for index, row in enumerate(rows):
        cells, cell = rows, index
        if isinstance(row, ast.Call):
            if not (isinstance(row.func, ast.Attribute) and row.func.attr == "param"):
                return False
            cells, cell = row.args, 0 if place is None else place
        elif place is not None and place >= 0:
            if not isinstance(row, ast.Tuple | ast.List):
                return False
            cells, cell = row.elts, place
        if cell >= len(cells) or not is_literal(cells[cell]):
            return False
        new = wrong(cells[cell], rng, ordered=ordered)
        changes.append(lambda cells=cells, cell=cell, new=new: cells.__setitem__(cell, new))  # type: ignore[misc]
    for change in changes:
        change()
    return bool(changes)
