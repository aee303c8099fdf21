"""Curves, as text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

_BARS = "▁▂▃▄▅▆▇█"
_PLOTTED = 12
ALARM = "watch/divergence"
PREFERRED = (
    "eval/pass@1",
    "rollout/reward",
    "rollout/outcome",
    "rollout/step_reward",
    "rollout/pass_rate",
    "rollout/infrastructure",
    "train/loss",
    "train/entropy",
    "train/kl",
    "train/kl_ref",
    "speed/sampled_tokens",
    "speed/trained_tokens",
)
"""What to look at first, of what a trainer may log; the alarm, once it was raised, before all of it."""
_GROUPS = ("eval/", "rollout/", "train/", "sft/")
_BOUNDS = ("_low", "_high")

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


def alarms(series: Series) -> list[int]:
    """Return the steps at which step rewards rose while outcomes fell.

    >>> alarms({"watch/divergence": [(20, 0.0), (21, 1.0)]})
    [21]
    """
    return [step for step, value in series.get(ALARM, ()) if value == 1]


def arrange(series: Series) -> list[str]:
    """Return the curves' names, what matters most first; an estimate's bounds are its band and no curves.

    >>> arrange({"eval/turns": [], "rollout/reward": [], "eval/pass@1": [], "eval/pass@1_low": []})
    ['eval/pass@1', 'rollout/reward', 'eval/turns']
    """
    first = (ALARM, *PREFERRED) if alarms(series) else PREFERRED

    def rank(name: str) -> tuple[int, int, str]:
        place = first.index(name) if name in first else len(first)
        return place, next((at for at, one in enumerate(_GROUPS) if name.startswith(one)), len(_GROUPS)), name

    bounds = {f"{name}{end}" for name in series for end in _BOUNDS}
    return sorted(series.keys() - bounds, key=rank)


def plot(series: Series, path: Path) -> Path | None:
    """Draw the curves that have a course into a PNG file; None without matplotlib or without such a curve."""
    names = [name for name in arrange(series) if len(series[name]) > 1][:_PLOTTED]
    if not names:
        return None
    try:
        figure = draw(series, names)
    except ImportError:
        return None
    figure.savefig(path, dpi=110)
    return path


def draw(series: Series, names: Sequence[str]) -> Any:
    """Return a figure of some curves.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        steps, values = zip(*series[name], strict=True)
        axes.plot(steps, values, marker="." if len(steps) < 40 else "")
        if band := _band(series, name):
            where, lows, highs = zip(*band, strict=True)
            axes.fill_between(where, lows, highs, alpha=0.2)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return figure


def _band(series: Series, name: str) -> list[tuple[int, float, float]]:
    """Return where an estimate's bounds are known: step, lower, upper."""
    lows, highs = (series.get(f"{name}{end}") for end in _BOUNDS)
    if not lows or not highs:
        return []
    low, high = dict(lows), dict(highs)
    both = ((step, low[step], high[step]) for step in sorted(low.keys() & high.keys()))
    return [one for one in both if all(map(math.isfinite, one))]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
