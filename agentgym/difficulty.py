"""What the difficulties of tasks are called where results are split by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from agentgym.task import Task

_DIFFICULTIES = 12


def difficulties_of(tasks: Iterable[Task]) -> dict[str, str]:
    """Return what the difficulty of each task is called, by its id.

    More different ones than curves can tell apart are put into at most twelve bands of about as many tasks each, called
    by the lowest and the highest difficulty in them; the easiest come first.
    """
    found = {task.id: task.difficulty for task in tasks if task.difficulty is not None}
    names = _bands(Counter(found.values()))
    return {name: names[found[name]] for name in sorted(found, key=found.__getitem__)}


def _bands(counts: Mapping[float, int]) -> dict[float, str]:
    """Return the name of each difficulty's band, from how many tasks have it.

    >>> _bands({1.0: 5, 2.5: 1})
    {1.0: '1', 2.5: '2.5'}
    """
    if len(counts) <= _DIFFICULTIES:
        return {one: f"{one:g}" for one in counts}
    bands: dict[int, list[float]] = {}
    below, total = 0, sum(counts.values())
    for one in sorted(counts):
        middle = below + counts[one] / 2
        bands.setdefault(int(_DIFFICULTIES * middle / total), []).append(one)
        below += counts[one]
    return {one: _between(band[0], band[-1]) for band in bands.values() for one in band}


def _between(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g}_to_{high:g}"
