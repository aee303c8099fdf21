"""`agentgym show`: what a run did, from its folder alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from agentgym.cli.console import out, say
from agentgym.cli.curves import ALARM, alarms, arrange, plot, sparkline
from agentgym.cli.terminal import show as show_messages
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.run import STOPPED, RunDirectory
from agentgym.types import Trajectory

_SHOWN_METRICS = 24


def run(folder: Path, task: str | None, step: int | None, attempt: int | None) -> None:
    """Print a summary, or the transcripts of one task."""
    kept = RunDirectory.open(folder)
    if task is not None:
        _show_task(kept, task, step, attempt)
        return
    _show_manifest(kept)
    if (kept.path / STOPPED).exists():
        say(json.loads((kept.path / STOPPED).read_text(encoding="utf-8"))["reason"], "bold")
    if (kept.path / "report.json").exists():
        _show_report(kept)
    show_curves(kept)
    _show_attempts(kept, step)


def _show_manifest(kept: RunDirectory) -> None:
    manifest = kept.manifest
    git = "no git" if manifest.git is None else manifest.git.commit[:12] + ("+changes" if manifest.git.dirty else "")
    versions = " ".join(f"{name} {version}" for name, version in manifest.packages.items() if name in _NAMED)
    say(f"{manifest.recipe.get('name', kept.path.name)}: {manifest.kind}, seed {manifest.seed}", "bold")
    say(f"{manifest.created:%Y-%m-%d %H:%M} UTC, {git}, python {manifest.python} {versions}, {manifest.platform}")


_NAMED = ("agentgym-rlvr", "torch", "transformers")


def _show_report(kept: RunDirectory) -> None:
    from agentgym.cli.evaluation import show_report
    from agentgym.evaluate import Report

    show_report(Report.model_validate_json((kept.path / "report.json").read_text(encoding="utf-8")))


def show_curves(kept: RunDirectory) -> None:
    """Print each metric's course, and where the plot is."""
    series = collect(kept.metrics())
    if not series:
        return
    if raised := alarms(series):
        say(
            f"step rewards rose while outcomes fell, so the reward may be gamed: {ALARM} was 1 at {len(raised)} of "
            f"{len(series[ALARM])} steps, first at step {raised[0]}",
            "yellow",
        )
    table = Table(
        "metric", "first", "last", "lowest", "highest", "course", box=None, header_style="bold", pad_edge=False
    )
    names = arrange(series)[:_SHOWN_METRICS]
    for name in names:
        values = [value for _, value in series[name]]
        known = [value for value in values if not math.isnan(value)] or [math.nan]
        figures = (values[0], values[-1], min(known), max(known))
        table.add_row(name, *(f"{one:.4g}" for one in figures), sparkline(values))
    out.print(table)
    if len(series) > len(names):
        say(f"and {len(series) - len(names)} more in {kept.path / 'metrics.jsonl'}")
    picture = plot(series, kept.path / "curves.png")
    if picture is not None:
        say(f"curves: {picture}")


def collect(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return each metric's (step, value) pairs, in order."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                series.setdefault(name, []).append((int(line["step"]), float(value)))
    return series


def _show_attempts(kept: RunDirectory, step: int | None) -> None:
    if not kept.steps():
        return
    chosen, attempts = _attempts(kept, step)
    scored = sorted((one for one in attempts if one.scored), key=_value)
    picked = [*scored[:3], *[one for one in scored[-3:] if not any(one is other for other in scored[:3])]]
    say(f"{len(attempts)} attempts at step {chosen}, {len(attempts) - len(scored)} unscored; the worst and the best:")
    table = Table("task", "attempt", "verdict", "turns", "ended by", "last words", box=None, header_style="bold")
    for one in picked:
        level = one.verdict.level if one.verdict else ""
        last = one.turns[-1].action.content if one.turns else ""
        cells = (one.task_id, str(one.attempt), f"{_value(one):g} {level}", str(len(one.turns)), one.end, _brief(last))
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    out.print(table)
    say(f"a transcript: agentgym show {kept.path} --task {picked[0].task_id}" if picked else "")


def _show_task(kept: RunDirectory, task: str, step: int | None, attempt: int | None) -> None:
    if step is None:
        step = next((one for one in reversed(kept.steps()) if _has(kept, one, task)), None)
    chosen, attempts = _attempts(kept, step)
    found = [one for one in attempts if one.task_id == task and attempt in (None, one.attempt)]
    if not found:
        raise UnknownNameError(f"attempt of step {chosen}", task, {one.task_id for one in attempts})
    for one in found:
        say(f"── step {chosen}, task {one.task_id} ({one.split}), attempt {one.attempt}, seed {one.seed}", "bold")
        show_messages(one.prompt)
        for number, turn in enumerate(one.turns, start=1):
            say(f"── turn {number} of {len(one.turns)}, {turn.seconds:.1f} s", "dim")
            show_messages((turn.action, *turn.observation))
            if turn.signals:
                say(f"signals: {', '.join(f'{one.name} {one.value:g}' for one in turn.signals)}", "magenta")
        say(_ending(one), "bold")
        if one.verdict is not None and one.verdict.components:
            say(f"measured: {', '.join(map(_component, one.verdict.components.items()))}")


def _component(item: tuple[str, float | None]) -> str:
    name, value = item
    return f"{name} {'unknown' if value is None else format(value, '.4g')}"


def _has(kept: RunDirectory, step: int, task: str) -> bool:
    return any(one.task_id == task for one in kept.read_trajectories(step))


def _ending(one: Trajectory) -> str:
    verdict = one.verdict
    value = "unscored" if verdict is None or verdict.value is None else f"{verdict.value:g}"
    about = f"{verdict.level}, trust {verdict.trust}" if verdict is not None else "no verdict"
    why = f"; {one.error}" if one.error else f"; {verdict.feedback}" if verdict is not None and verdict.feedback else ""
    return f"── ended by {one.end}: {value} ({about}){why}"


def _attempts(kept: RunDirectory, step: int | None) -> tuple[int, list[Trajectory]]:
    steps = kept.steps()
    if not steps:
        raise AgentgymError(f"{kept.path} has no trajectories yet")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise AgentgymError(f"{kept.path} has no trajectories of step {chosen}; it has steps {steps[0]} to {steps[-1]}")
    return chosen, kept.read_trajectories(chosen)


def _value(one: Trajectory) -> float:
    return one.verdict.value if one.verdict is not None and one.verdict.value is not None else math.nan


def _brief(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:59] + "…"
