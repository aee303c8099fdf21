"""Whether two queries gave the same: rows as multisets, or in order where order was asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Cell = None | int | float | str | bytes
Row = tuple[Cell, ...]

REL_TOL = ABS_TOL = 1e-9
"""Sums in another order differ by less than this; rounded results differ by more."""
_MOST_ARRANGEMENTS = 500


@dataclass(frozen=True, slots=True)
class Table:
    """What a query gave: rows of as many cells as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the gold query gave on one database: as written, and with each choice that it leaves open made in two ways.

    Where these differ the question leaves the choice open too: between rows that tie in an order, or for a limit.
    """

    given: Table
    first: Table
    last: Table


def same(wanted: Sequence[Wanted], found: Sequence[Table], *, ordered: bool, any_columns: bool) -> bool:
    """Whether results agree on every database.

    Names of columns do not matter. Their order does not either with `any_columns`, but it is one order for all
    databases. Integers, texts and blobs are compared exactly, an integer equals the same real number, other real
    numbers agree within `REL_TOL`, and NULL equals NULL alone.

    >>> one, two = Table(("a", "b"), ((1, "x"), (2, "y"))), Table(("c", "d"), (("y", 2.0), ("x", 1)))
    >>> same([Wanted(one, one, one)], [two], ordered=False, any_columns=True)
    True
    >>> same([Wanted(one, one, one)], [two], ordered=True, any_columns=True)
    False
    """
    if any(len(want.given.columns) != len(table.columns) for want, table in zip(wanted, found, strict=True)):
        return False
    for tables in ([one.given for one in wanted], [one.first for one in wanted], [one.last for one in wanted]):
        if any(len(want.rows) != len(table.rows) for want, table in zip(tables, found, strict=True)):
            continue
        blocks = [_blocks(one) if ordered else [len(one.given.rows)] for one in wanted]
        names = _representatives(cell for table in (*tables, *found) for row in table.rows for cell in row)
        golds = [_plain(table, names) for table in tables]
        others = [_plain(table, names) for table in found]
        width = len(tables[0].columns)
        arrangements = _arrangements(golds, others, width) if any_columns else iter([tuple(range(width))])
        if any(_agree(golds, others, blocks, one) for one in arrangements):
            return True
    return False


def _agree(
    golds: Sequence[Sequence[Any]],
    others: Sequence[Sequence[Any]],
    blocks: Sequence[Sequence[int]],
    order: Sequence[int],
) -> bool:
    for gold, other, lengths in zip(golds, others, blocks, strict=True):
        arranged = [tuple(row[index] for index in order) for row in other]
        start = 0
        for length in lengths:
            if Counter(gold[start : start + length]) != Counter(arranged[start : start + length]):
                return False
            start += length
    return True


def _blocks(wanted: Wanted) -> list[int]:
    """Return the lengths of the runs of rows whose order among themselves is open."""
    if len(wanted.first.rows) != len(wanted.last.rows):
        return [1] * len(wanted.given.rows)
    lengths: list[int] = []
    open_rows: Counter[Row] = Counter()
    length = 0
    for one, other in zip(wanted.first.rows, wanted.last.rows, strict=True):
        open_rows[one] += 1
        open_rows[other] -= 1
        length += 1
        if not any(open_rows.values()):
            lengths.append(length)
            length = 0
    return [*lengths, *[1] * length]


def _arrangements(
    golds: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]], width: int
) -> Iterator[tuple[int, ...]]:
    """Yield the orders of columns under which every column holds what its counterpart holds, as given first."""

    def held(tables: Sequence[Sequence[Any]], index: int) -> list[Counter[Any]]:
        return [Counter(row[index] for row in table) for table in tables]

    gold_columns, other_columns = ([held(tables, index) for index in range(width)] for tables in (golds, others))
    fitting = [[k for k in _near_first(j, width) if other_columns[k] == gold_columns[j]] for j in range(width)]
    left = [_MOST_ARRANGEMENTS]

    def extended(taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(taken) == width:
            left[0] -= 1
            yield taken
            return
        for index in fitting[len(taken)]:
            if index not in taken and left[0] > 0:
                yield from extended((*taken, index))

    yield from extended(())


def _near_first(index: int, width: int) -> list[int]:
    return [index, *(one for one in range(width) if one != index)]


def _plain(table: Table, names: dict[float, float]) -> list[tuple[Any, ...]]:
    return [tuple(_key(cell, names) for cell in row) for row in table.rows]


def _key(cell: Cell, names: dict[float, float]) -> tuple[str, Any]:
    if cell is None:
        return "null", None
    if isinstance(cell, bytes | str):
        return type(cell).__name__, cell
    if math.isnan(cell):
        return "number", "nan"
    return "number", names.get(cell, cell)


def _representatives(cells: Iterable[Cell]) -> dict[float, float]:
    """Map numbers that agree within the tolerance to one of them; two integers never agree unless they are equal."""
    numbers = sorted({one for one in cells if isinstance(one, int | float) and not math.isnan(one)})
    names: dict[float, float] = {}
    last: float | None = None
    for one in numbers:
        whole = float(one).is_integer() and last is not None and float(last).is_integer()
        if last is not None and not whole and math.isclose(one, last, rel_tol=REL_TOL, abs_tol=ABS_TOL):
            names[one] = names[last]
        else:
            names[one] = one
        last = one
    return names
