"""Curves, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

_BARS = "▁▂▃▄▅▆▇█"
_PLOTTED = 12

Series = Mapping[str, Sequence[tuple[int, float]]]


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw values as a line of blocks; unknown ones are blank.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    >>> sparkline([2.0, 2.0])
    '▁▁'
    """
    if len(values) > width:
        edges = [round(index * len(values) / width) for index in range(width + 1)]
        values = [_mean(values[start:end]) for start, end in pairwise(edges)]
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[int((value - low) * scale + 0.5)] if math.isfinite(value) else " " for value in values)


def plot(series: Series, path: Path) -> Path | None:
    """Draw the curves that have a course into a PNG file; None without matplotlib or without such a curve."""
    drawn = {name: points for name, points in series.items() if len(points) > 1 and not name.startswith("time")}
    if not drawn:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    chosen = sorted(drawn, key=lambda name: (not name.startswith(("eval/", "rollout/")), name))[:_PLOTTED]
    columns = min(3, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for place, name in enumerate(chosen, start=1):
        axes = figure.add_subplot(rows, columns, place)
        steps, values = zip(*drawn[name], strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 40 else "")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return path


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
