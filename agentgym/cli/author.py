"""`agentgym new` and `agentgym validate`: what an environment's author runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer
from rich.table import Table

from agentgym.cli.console import out, progress, say
from agentgym.cli.places import Place
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.rollout import Limits
from agentgym.scaffold import write
from agentgym.task import SPLITS
from agentgym.validate import Validation, rounds
from agentgym.validate import validate as check


def new(name: str, folder: Path, sandbox: bool) -> None:
    """Write the files and say what to do next."""
    code, test = write(name, folder, sandbox=sandbox)
    say(f"wrote {code} and {test}")
    say("next:")
    say(f"  agentgym validate {code}")
    say(f"  agentgym play {code}")


def validate(place: Place, sample: int | None, split: str | None, json: Path | None, seed: int) -> None:
    """Check the tasks, print a table, and leave with exit code 1 if a promise is broken."""
    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    try:
        make_env = place.maker()
        env = make_env()
        tasks = [task for task in env.tasks if split in (None, task.split)]
        if not tasks:
            raise AgentgymError(f"{place.name} has no task" + (f" in the split {split!r}" if split else ""))
        if sample is not None and sample < len(tasks):
            kept = np.random.default_rng(seed).choice(len(tasks), size=sample, replace=False)
            tasks = [tasks[index] for index in sorted(kept)]
        with progress() as bars:
            bar = bars.add_task("validating", total=rounds(env) * len(tasks), note="")
            found = check(make_env, tasks, limits=Limits(concurrency=16), on_done=lambda: bars.advance(bar))
    finally:
        place.close()
    _show(found)
    if json is not None:
        json.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if not found.passed:
        raise typer.Exit(1)


def _show(found: Validation) -> None:
    table = Table("", "check", "asked", "failed", "the first failure", box=None, header_style="bold", pad_edge=False)
    for check_name, asked in found.checks.items():
        failed = found.failed(check_name)
        mark = "[red]✗[/]" if failed else "[green]✓[/]"
        first = f"{failed[0].task}: {failed[0].problem}" if failed else ""
        table.add_row(mark, check_name, str(asked), str(len(failed)), _plain(first))
    out.print(table)
    if found.passed:
        say(f"{found.tasks} tasks are valid", "green")
    else:
        bad = len({one.task for one in found.findings})
        say(f"{len(found.findings)} checks failed on {bad} of {found.tasks} tasks", "red")


def _plain(text: str) -> str:
    return text.replace("[", "\\[")[:300]
