"""Latin squares and sudoku: fill a square so that no number repeats in a row, a column, or a box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from agentgym.types import Record
from agentgym_envs.puzzles.family import Family, Found, Made, malformed, scaled

Cells = tuple[tuple[int, int], ...]


class Square(Record):
    """A square with 0 for what is open; boxes of this height and width, (0, 0) for none."""

    rows: tuple[tuple[int, ...], ...]
    box: tuple[int, int] = (0, 0)


def make_latin(rng: np.random.Generator, difficulty: float) -> Made:
    """Shuffle the rows, columns and numbers of a cyclic square, and leave cells open."""
    size = round(scaled(difficulty, 4, 8))
    base = (np.arange(size)[:, None] + np.arange(size)[None, :]) % size
    solved = base[rng.permutation(size)][:, rng.permutation(size)]
    return _open(rng, rng.permutation(size)[solved] + 1, (0, 0), scaled(difficulty, 0.25, 0.7))


def make_sudoku(rng: np.random.Generator, difficulty: float) -> Made:
    """Shuffle bands, stacks, rows and columns within them, and numbers of a regular square, and leave cells open."""
    high, wide = (2, 2) if difficulty < 4 else (2, 3) if difficulty < 7 else (3, 3)
    size = high * wide
    row, column = np.arange(size)[:, None], np.arange(size)[None, :]
    base = (wide * (row % high) + row // high + column) % size
    solved = base[_shuffled(rng, wide, high)][:, _shuffled(rng, high, wide)]
    start = {4: 1, 6: 4, 9: 7}[size]
    share = 0.3 + 0.1 * min(difficulty - start, 3.0)
    return _open(rng, rng.permutation(size)[solved] + 1, (high, wide), share)


def _shuffled(rng: np.random.Generator, groups: int, each: int) -> np.ndarray[Any, Any]:
    """Return an order of rows that keeps the rows of a band together."""
    return np.concatenate([group * each + rng.permutation(each) for group in rng.permutation(groups)])


def _open(rng: np.random.Generator, solved: np.ndarray[Any, Any], box: tuple[int, int], share: float) -> Made:
    size = len(solved)
    count = max(2, round(share * size * size))
    shown = solved.copy()
    shown.flat[rng.choice(size * size, size=count, replace=False)] = 0
    square = Square(rows=tuple(map(tuple, shown.tolist())), box=box)
    boxes = f", in boxes of {box[0]} rows and {box[1]} columns" if box[0] else ""
    return Made(
        prompt=f"Numbers: 1 to {size}{boxes}\n" + _text(shown).replace("0", "."),
        data=square.model_dump(mode="json"),
        answer=_text(solved),
        start=f"the first row of one solution is {_text(solved[:1])}",
    )


def _text(rows: np.ndarray[Any, Any]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows.tolist())


def judge(data: Mapping[str, Any], _: Mapping[str, Any], answer: str) -> Found:
    """Count the rows, columns and boxes without a repeated number, and whether what was given stands."""
    square = Square.model_validate(data)
    size = len(square.rows)
    groups = list(_groups(square))
    total = len(groups) + 1
    lines = [line.split() for line in answer.strip().splitlines()]
    wanted = {str(number) for number in range(1, size + 1)}
    if len(lines) != size or any(len(line) != size or not set(line) <= wanted for line in lines):
        return malformed(f"wanted {size} lines of {size} numbers from 1 to {size}", total)
    rows = [[int(word) for word in line] for line in lines]
    changed = [
        (row, column)
        for row in range(size)
        for column in range(size)
        if square.rows[row][column] not in (0, rows[row][column])
    ]
    repeated = [name for name, cells in groups if len({rows[row][column] for row, column in cells}) < size]
    problems = [f"a number that was given is changed in row {row + 1}, column {column + 1}" for row, column in changed]
    problems += [f"a number repeats in {name}" for name in repeated]
    return Found(total - len(repeated) - bool(changed), total, problems[0] if problems else "")


def _groups(square: Square) -> Iterator[tuple[str, Cells]]:
    size = len(square.rows)
    for one in range(size):
        yield f"row {one + 1}", tuple((one, other) for other in range(size))
        yield f"column {one + 1}", tuple((other, one) for other in range(size))
    high, wide = square.box
    if high:
        for top in range(0, size, high):
            for left in range(0, size, wide):
                cells = tuple((top + row, left + column) for row in range(high) for column in range(wide))
                yield f"the box whose first cell is row {top + 1}, column {left + 1}", cells


_FORM = "A dot is open. Answer with all lines of the filled square, numbers between blanks."
_PLAN = (
    "List for each open cell the numbers that its row and column (and box) leave, fill the cells that have only one, "
    "and repeat; where none has one, try the cell with the fewest."
)
LATIN = Family(
    "latin", f"Fill the square so that no row and no column holds a number twice. {_FORM}", _PLAN, make_latin, judge
)
SUDOKU = Family(
    "sudoku", f"Fill the square so that no row, no column and no box holds a number twice. {_FORM}", _PLAN, make_sudoku,
    judge,
)  # fmt: skip
