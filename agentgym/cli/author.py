"""`agentgym new` and `agentgym validate`: what an environment's author runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from rich.table import Table

from agentgym.cli.console import out, progress, say
from agentgym.cli.places import Place
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.scaffold import write
from agentgym.task import SPLITS, Task
from agentgym.validate import Plan, Validation, rounds
from agentgym.validate import validate as check

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which tasks of an environment."""

    sample: int | None = None
    limit: int | None = None
    split: str | None = None
    seed: int = 0
    task: str | None = None

    def of(self, env: AgentEnv, name: str) -> list[Task]:
        """Return the tasks, in their order.

        Raises:
            AgentgymError: there is none, or no such split or task.
        """
        if self.split is not None and self.split not in SPLITS:
            raise UnknownNameError("split", self.split, SPLITS)
        if self.task is not None:
            return [env.tasks[self.task]]
        tasks = [task for task in env.tasks if self.split in (None, task.split)][: self.limit]
        if not tasks:
            raise AgentgymError(f"{name} has no task" + (f" in the split {self.split!r}" if self.split else ""))
        if self.sample is not None and self.sample < len(tasks):
            kept = np.random.default_rng(self.seed).choice(len(tasks), size=self.sample, replace=False)
            tasks = [tasks[index] for index in sorted(kept)]
        return tasks


@dataclass(frozen=True, slots=True)
class Written:
    """The files that a validation writes."""

    json: Path | None = None
    quarantine: Path | None = None

    def write(self, found: Validation) -> None:
        """Write those that were asked for."""
        if self.json is not None:
            self.json.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if self.quarantine is not None:
            self.quarantine.write_text(found.quarantine(), encoding="utf-8")


def new(name: str, folder: Path, sandbox: bool) -> None:
    """Write the files and say what to do next."""
    code, test = write(name, folder, sandbox=sandbox)
    say(f"wrote {code} and {test}")
    say("next:")
    say(f"  agentgym validate {code}")
    say(f"  agentgym redteam {code}")
    say(f"  agentgym play {code}")


def validate(place: Place, chosen: Chosen, files: Written, *, jobs: int, attacks: int) -> None:
    """Check the tasks, print a table, and leave with exit code 1 if a promise is broken."""
    try:
        make_env = place.maker()
        env = make_env()
        tasks = chosen.of(env, place.name)
        plan = Plan(jobs=jobs, attacks=attacks, seed=chosen.seed)
        with progress() as bars:
            bar = bars.add_task("validating", total=rounds(env, tasks), note="")
            found = check(make_env, tasks, plan=plan, on_done=lambda: bars.advance(bar))
        files.write(found)
    finally:
        place.close()
    _show(found)
    if not found.complete:
        say("interrupted: this is what was found until then", "red")
        raise typer.Exit(_INTERRUPTED)
    if not found.passed:
        raise typer.Exit(1)


def _show(found: Validation) -> None:
    table = Table("", "check", "asked", "failed", "the first failure", box=None, header_style="bold", pad_edge=False)
    for check_name, asked in found.checks.items():
        failed = found.failed(check_name)
        mark = "[red]✗[/]" if failed else "[green]✓[/]"
        first = f"{failed[0].task}: {failed[0].problem}" if failed else ""
        table.add_row(mark, check_name, str(asked), str(len(failed)), plain(first))
    out.print(table)
    if found.passed:
        say(f"{found.tasks} tasks are valid", "green")
    elif found.findings:
        bad = len({one.task for one in found.findings})
        say(f"{len(found.findings)} checks failed on {bad} of {found.tasks} tasks", "red")


def plain(text: str) -> str:
    """Return text for a table, without markup and not too long."""
    return text.replace("[", "\\[")[:300]
