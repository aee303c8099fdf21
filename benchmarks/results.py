"""Medians, tails, ratios and the table."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table

Unit = Literal["ms", "per s", "MB"]
_SCALE = {"ms": 1000.0, "per s": 1.0, "MB": 1.0}


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table."""

    key: str
    title: str
    asks: str
    """The question to a worker that answers with this figure, perhaps among others."""
    unit: Unit = "ms"


@dataclass(frozen=True, slots=True)
class Ratio:
    """What is promised of two medians of one run: `slow` / `fast`, or for rates `fast` / `slow`."""

    title: str
    better: tuple[str, str]
    """System and measure."""
    other: tuple[str, str]
    wanted: float
    at_most: bool = False
    """The ratio better / other must not exceed `wanted`, rather than other / better reach it."""


class Results:
    """Figures by system and measure; what is missing has a reason."""

    def __init__(self) -> None:
        self.figures: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.reasons: dict[tuple[str, str], str] = {}

    def add(self, system: str, found: Mapping[str, Iterable[float]]) -> None:
        """Take figures in."""
        for measure, figures in found.items():
            self.figures[system, measure].extend(figures)

    def median(self, system: str, measure: str) -> float | None:
        """Return a median in seconds, MB or per second."""
        found = self.figures.get((system, measure))
        return statistics.median(found) if found else None

    def tail(self, system: str, measure: str, unit: Unit) -> float | None:
        """Return the 95th percentile, or of a rate the 5th: what one in twenty is worse than."""
        found = self.figures.get((system, measure))
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        return statistics.quantiles(found, n=20, method="inclusive")[0 if unit == "per s" else -1]

    def table(self, title: str, measures: Iterable[Measure], systems: Mapping[str, str]) -> Table:
        """Return one table of all, `median / p95`."""
        table = Table(title=title, box=box.MARKDOWN)
        table.add_column("median / p95")
        for name in systems.values():
            table.add_column(name, justify="right")
        for measure in measures:
            cells = [self._cell(system, measure) for system in systems]
            if any(cell not in ("", "-") for cell in cells):
                table.add_row(f"{measure.title}, {measure.unit}", *cells)
        return table

    def _cell(self, system: str, measure: Measure) -> str:
        median, tail = self.median(system, measure.key), self.tail(system, measure.key, measure.unit)
        if median is None or tail is None:
            return "failed" if self.reasons.get((system, measure.asks), "").startswith("failed") else "-"
        scale = _SCALE[measure.unit]
        if len(self.figures[system, measure.key]) == 1:
            return _short(scale * median)
        return f"{_short(scale * median)} / {_short(scale * tail)}"

    def verdicts(self, ratios: Iterable[Ratio], systems: Mapping[str, str]) -> Table:
        """Return the table of what is promised and what was measured."""
        table = Table(title="promised", box=box.MARKDOWN)
        table.add_column("ratio of medians")
        table.add_column("wanted", justify="right")
        table.add_column("measured", justify="right")
        table.add_column("")
        for ratio in ratios:
            if ratio.better[0] in systems and ratio.other[0] in systems:
                measured = self.ratio(ratio)
                wanted = f"{'<=' if ratio.at_most else '>='} {ratio.wanted:g}"
                said = "not measured" if measured is None else "met" if _is_met(ratio, measured) else "MISSED"
                table.add_row(ratio.title, wanted, "-" if measured is None else f"{measured:.3g}", said)
        return table

    def ratio(self, ratio: Ratio) -> float | None:
        """Return a ratio as it is promised: large is good, unless it is bounded from above."""
        better, other = self.median(*ratio.better), self.median(*ratio.other)
        if not better or not other:
            return None
        is_rate = ratio.better[1].startswith("at-")
        return better / other if ratio.at_most or is_rate else other / better

    def as_json(self, ratios: Iterable[Ratio], units: Mapping[str, Unit]) -> dict[str, object]:
        """Return everything, figures in the units of the table."""
        rows = []
        for (system, measure), found in self.figures.items():
            unit = units[measure]
            scaled = [_SCALE[unit] * figure for figure in found]
            median, tail = self.median(system, measure), self.tail(system, measure, unit)
            about = {"system": system, "measure": measure, "unit": unit, "n": len(found)}
            late = {"median": _SCALE[unit] * (median or 0.0), "p95": _SCALE[unit] * (tail or 0.0)}
            rows.append({**about, **late, "figures": scaled})
        promised = []
        for ratio in ratios:
            measured = self.ratio(ratio)
            met = None if measured is None else _is_met(ratio, measured)
            promised.append({"ratio": ratio.title, "wanted": ratio.wanted, "measured": measured, "met": met})
        missing = [{"system": system, "asked": asked, "why": why} for (system, asked), why in self.reasons.items()]
        return {"figures": rows, "promised": promised, "missing": missing}


def _is_met(ratio: Ratio, measured: float) -> bool:
    return measured <= ratio.wanted if ratio.at_most else measured >= ratio.wanted


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
