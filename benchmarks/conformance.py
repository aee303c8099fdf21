"""One table of all environments: agents that know nothing score 0, and a scripted expert scores 1."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.evaluate import attempt_all
from agentgym.rollout import Limits
from agentgym.scripted import SCRIPTS
from agentgym.stats import interval
from agentgym.types import Trajectory
from benchmarks.bundled import Bundled, bundled

AGENTS: Mapping[str, tuple[str, ...]] = {
    "no-op": ("noop",),
    "random": ("random",),
    "spam": ("hasty", "spam", "recital"),
    "expert": ("oracle",),
}
"""Columns, and the scripts behind them; a column of several shows the best of them."""
WANTED = {"no-op": 0.0, "random": 0.0, "spam": 0.0, "expert": 1.0}
PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@dataclass(frozen=True, slots=True)
class Score:
    """What one script got on the tasks of one family."""

    script: str
    mean: float
    """Of all verdicts' values, partial ones too; None is counted by `unscored` and left out."""
    low: float
    high: float
    """The 95% interval of the mean over tasks."""
    attempts: int
    unscored: tuple[str, ...]
    """Why attempts have no value."""
    odd: tuple[str, ...]
    """The tasks whose value is not what it should be."""


@dataclass(frozen=True, slots=True)
class Line:
    """One family."""

    environment: str
    family: str
    tasks: int
    scores: Mapping[str, Sequence[Score]]
    """By column."""
    """Whether random agents and spam may score; nothing and the expert may not differ from 0 and 1."""

    def broken(self) -> list[str]:
        """Return what is not as it should be, in words."""
        return [
            f"{self.environment} {self.family}: {one.script} scored {one.mean:.3f} where {WANTED[column]:g} is right"
            f" ({', '.join(one.odd[:3])})" + "".join(f"; unscored: {reason}" for reason in one.unscored[:1])
            for column, scores in self.scores.items()
            for one in scores
            if one.unscored or one.odd
        ]


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="A row, such as Puzzle-v0:sat; may be repeated.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Of each family, drawn by --seed.")] = 20,
    attempts: Annotated[int, typer.Option(min=1, help="Of the random agent at each task; the others repeat.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Episodes at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws tasks and seeds episodes.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    page: Annotated[bool, typer.Option("--page", help=f"Put these lines into the table of docs/{PAGE.name}.")] = False,
) -> None:
    """Let agents play every family of every environment, and leave with exit code 1 if one scores what it should not.

    For example:

        python -m benchmarks.conformance

        python -m benchmarks.conformance --only Puzzle-v0:sat --only Sql-v0 --tasks 50 --json sat.json

        python -m benchmarks.conformance --only New-v0 --page
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen = choose(only or [])
        lines = _measure(chosen, Effort(tasks, attempts, jobs, seed), console)
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None
    except AgentgymError as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None
    print(table(lines))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(one) for one in lines], indent=1) + "\n", encoding="utf-8")
    if page:
        PAGE.write_text(with_lines(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
    broken = [sentence for line in lines for sentence in line.broken()]
    for sentence in broken:
        console.print(sentence, markup=False, style="red")
    raise typer.Exit(bool(broken))


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    tasks: int
    attempts: int
    jobs: int = 8
    seed: int = 0


def choose(names: Sequence[str]) -> list[Bundled]:
    """Return the families of these names; all where none is named.

    Raises:
        UnknownNameError: there is no such family.
    """
    known = bundled()
    for name in names:
        if not any(one.name == name for one in known):
            raise UnknownNameError("family of a bundled environment", name, [one.name for one in known])
    return [one for one in known if not names or one.name in names]


def measure(row: Bundled, effort: Effort, on_done: Callable[[Trajectory], None] = lambda _: None) -> Line:
    """Let every agent play one family."""
    with row.furnished() as place:
        tasks = place.draw(effort.tasks, effort.seed)

        def score(column: str, script: str) -> Score:
            env = place.make_env()
            policy = SCRIPTS[script](env, tasks, "")
            groups = asyncio.run(
                attempt_all(
                    place.make_env,
                    tasks,
                    policy,
                    attempts=effort.attempts if script == "random" else 1,
                    limits=Limits(concurrency=effort.jobs),
                    seed=effort.seed,
                    on_done=on_done,
                )
            )
            env.close()
            return scored(script, [group.trajectories for group in groups], WANTED[column])

        scores = {column: [score(column, one) for one in scripts] for column, scripts in AGENTS.items()}
    return Line(row.id, row.family, len(tasks), scores)


def scored(script: str, groups: Iterable[Sequence[Trajectory]], wanted: float) -> Score:
    """Return the mean over tasks of what their attempts are worth."""
    means: list[float] = []
    lost: list[str] = []
    odd: list[str] = []
    count = 0
    for group in groups:
        values = [one.verdict.value for one in group if one.verdict and one.verdict.value is not None]
        lost += [one.error or "no reason given" for one in group if not one.scored]
        odd += [one.task_id for one in group if one.verdict and one.verdict.value not in (None, wanted)]
        count += len(group)
        if values:
            means.append(sum(values) / len(values))
    low, high = interval(means)
    mean = sum(means) / len(means) if means else float("nan")
    return Score(script, mean, low, high, count, tuple(lost), tuple(odd))


def table(lines: Sequence[Line]) -> str:
    """Return a table in Markdown: the mean value and its 95% interval, in percent."""
    rows = [f"| environment | family | tasks | {' | '.join(AGENTS)} |", "|---" * (3 + len(AGENTS)) + "|"]
    for line in lines:
        cells = [_cell(scores) for scores in line.scores.values()]
        rows.append(f"| `{line.environment}` | {line.family} | {line.tasks} | {' | '.join(cells)} |")
    return "\n".join(rows)


def with_lines(page: str, lines: Sequence[Line]) -> str:
    """Return a page whose table has these lines in place of its old ones, and no line of what is not bundled."""
    old, new = shown_lines(page), table(lines).splitlines()
    rows = old | {_key(row): row for row in new[2:]}
    kept = [rows[key] for one in bundled() if (key := (f"`{one.id}`", one.family)) in rows]
    shown = "\n".join([BEGIN, *new[:2], *kept, END])
    return re.sub(f"{BEGIN}.*{END}", lambda _: shown, page, flags=re.DOTALL)


def shown_lines(page: str) -> dict[tuple[str, str], str]:
    """Return the table's lines on a page, by environment and family."""
    inside = page.partition(BEGIN)[2].partition(END)[0]
    return {_key(row): row for row in inside.strip().splitlines()[2:]}


def _key(row: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in row.split("|")]
    return cells[1], cells[2]


def _cell(scores: Sequence[Score]) -> str:
    best = max(scores, key=lambda one: one.mean)
    lost = sum(len(one.unscored) for one in scores)
    shown = f"{100 * best.mean:.1f} [{100 * best.low:.0f}, {100 * best.high:.0f}]"
    return f"{shown}, {lost} unscored" if lost else shown


def _measure(chosen: Sequence[Bundled], effort: Effort, console: Console) -> list[Line]:
    lines = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    episodes = effort.tasks * (effort.attempts + sum(map(len, AGENTS.values())) - 1)
    with Progress(*columns, console=console) as bars:
        whole = bars.add_task("families", total=len(chosen))
        for row in chosen:
            bar = bars.add_task(row.name, total=episodes)
            lines.append(measure(row, effort, lambda _, bar=bar: bars.advance(bar)))  # type: ignore[misc]
            bars.remove_task(bar)
            bars.advance(whole)
    return lines


if __name__ == "__main__":
    app()
