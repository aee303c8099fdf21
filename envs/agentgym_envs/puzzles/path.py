"""Grid paths: walk around walls to the goal in as few moves as possible."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentgym.types import Record
from agentgym_envs.puzzles.family import Family, Found, Made, malformed, scaled

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
Place = tuple[int, int]


class Grid(Record):
    """Rows of `.` free, `#` wall, one `S` and one `G`; and how many moves are allowed."""

    rows: tuple[str, ...]
    moves: int


def make(rng: np.random.Generator, difficulty: float) -> Made:
    """Draw walls until the shortest way is long enough for the size."""
    size = round(scaled(difficulty, 4, 13))
    while True:
        cells = np.where(rng.random((size, size)) < 0.35, "#", ".")
        start, goal = (tuple(map(int, one)) for one in rng.integers(0, size, (2, 2)))
        cells[start], cells[goal] = "S", "G"
        rows = tuple("".join(row) for row in cells.tolist())
        moves, _ = shortest(rows)
        if moves is not None and len(moves) >= 1.2 * size:
            grid = Grid(rows=rows, moves=len(moves))
            return Made(
                prompt=f"Reach G within {grid.moves} moves.\n" + "\n".join(rows),
                data=grid.model_dump(mode="json"),
                answer=moves,
                start=f"one shortest way begins with {moves[: max(1, len(moves) // 3)]}",
            )


def shortest(rows: Sequence[str]) -> tuple[str | None, int]:
    """Return a shortest way from S to G, None where there is none, and how many places were visited to find it."""
    start, goal = _find(rows, "S"), _find(rows, "G")
    ways: dict[Place, str] = {start: ""} if start is not None else {}
    waiting = deque(ways)
    while waiting:
        place = waiting.popleft()
        if place == goal:
            return ways[place], len(ways)
        for name in MOVES:
            other = _moved(rows, place, name)
            if other is not None and other not in ways:
                ways[other] = ways[place] + name
                waiting.append(other)
    return None, len(ways)


def judge(data: Mapping[str, Any], _: Mapping[str, Any], answer: str) -> Found:
    """Ask three things: whether every move is free, whether it ends at the goal, whether it is short enough."""
    grid = Grid.model_validate(data)
    moves = answer.strip()
    if not moves or set(moves) - set(MOVES):
        return malformed("wanted moves as letters out of U, D, L, R, and nothing between them", 3)
    place = _find(grid.rows, "S")
    free = 0
    for name in moves:
        ahead = _moved(grid.rows, place, name) if place is not None else None
        if ahead is None:
            break
        place, free = ahead, free + 1
    walked, arrived = free == len(moves), place == _find(grid.rows, "G")
    problems = {
        f"move {free + 1} runs into a wall or off the grid": walked,
        "it does not end at G": walked and arrived,
        f"it takes {len(moves)} moves, more than {grid.moves}": len(moves) <= grid.moves,
    }
    return Found(sum(problems.values()), 3, next((text for text, holds in problems.items() if not holds), ""))


def _find(rows: Sequence[str], letter: str) -> Place | None:
    return next(((y, x) for y, row in enumerate(rows) for x, one in enumerate(row) if one == letter), None)


def _moved(rows: Sequence[str], place: Place, name: str) -> Place | None:
    y, x = place[0] + MOVES[name][0], place[1] + MOVES[name][1]
    inside = 0 <= y < len(rows) and 0 <= x < len(rows[0])
    return (y, x) if inside and rows[y][x] != "#" else None


PATH = Family(
    "path",
    "Walk from S to G. A dot is free and # is a wall; a move goes one place up, down, left or right. Answer with the "
    "moves as letters U, D, L, R without blanks, such as: RRDD",
    "Number the places by their distance from S, neighbour by neighbour, until G has a number; then walk back from G "
    "along falling numbers.",
    make,
    judge,
)
