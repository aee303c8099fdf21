"""`agentgym redteam`: what attacks on an environment get, attack by attack."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table

from agentgym import redteam
from agentgym.cli.author import Chosen, plain
from agentgym.cli.console import out, progress, say
from agentgym.cli.places import Place
from agentgym.env import AgentEnv
from agentgym.errors import UnknownNameError
from agentgym.redteam import Attack, Outcome, Target

_APART_S = 180.0
_MARKS = {"held": "[green]held[/]", "fooled": "[bold red]FOOLED[/]", "void": "[bold red]VOID[/]"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to attack."""

    attack: str | None = None
    """The only attack, run in this process whatever it may do to it."""
    harmful: bool = False
    """Whether to run attacks that nothing isolates and that may end everything on this machine."""
    jobs: int = 4
    json: Path | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    target: Target
    attack: Attack
    apart: bool
    """Run in a process of its own, because the environment may run what it judges in its own process."""


def run(place: Place, chosen: Chosen, wanted: Wanted) -> None:
    """Attack the tasks, print a table, and leave with exit code 1 if an attack succeeds."""
    try:
        make_env = place.maker()
        env = make_env()
        jobs: list[_Job] = []
        left_out = 0
        for task in chosen.of(env, place.name):
            target = redteam.target_of(make_env, task)
            planned, without = _plan(target, env, wanted)
            jobs, left_out = jobs + planned, left_out + without
        env.close()
        found = _run_all(make_env, place, jobs, wanted.jobs)
    finally:
        place.close()
    if wanted.json is not None:
        text = json.dumps([one.model_dump() for one in found], indent=2, ensure_ascii=False)
        wanted.json.write_text(text + "\n", encoding="utf-8")
    _show(found)
    if left_out:
        say(
            f"{left_out} attacks that may end everything on this machine were left out: nothing isolates this "
            "environment's judging; --harmful runs them, on a machine that you can lose",
            "yellow",
        )
    if not all(one.held for one in found):
        raise typer.Exit(1)


def _plan(target: Target, env: AgentEnv, wanted: Wanted) -> tuple[list[_Job], int]:
    """Return what to do about one task, and how many attacks are left out."""
    attacks = redteam.attacks_on(target, env, "machine")
    if wanted.attack is not None:
        named = [one for one in attacks if one.name == wanted.attack]
        if not named:
            raise UnknownNameError("attack on this task", wanted.attack, [one.name for one in attacks])
        return [_Job(target, named[0], apart=False)], 0
    if redteam.isolated(env, target):
        return [_Job(target, one, apart=False) for one in attacks], 0
    jobs = [_Job(target, one, one.danger != "none") for one in attacks if wanted.harmful or one.danger != "machine"]
    return jobs, len(attacks) - len(jobs)


def _run_all(make_env: Callable[[], AgentEnv], place: Place, jobs: Sequence[_Job], at_once: int) -> list[Outcome]:
    with progress() as bars:
        bar = bars.add_task("attacking", total=len(jobs), note="")

        def one(job: _Job) -> Outcome:
            outcome = _apart(place, job) if job.apart else redteam.run(make_env, job.target, job.attack)
            bars.update(bar, advance=1, note="" if outcome.held else f"{outcome.attack}: {outcome.end}")
            return outcome

        pool = ThreadPoolExecutor(at_once, thread_name_prefix="episode-redteam")
        try:
            found = list(pool.map(one, jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return found


def _apart(place: Place, job: _Job) -> Outcome:
    """Attack in a process of its own; an attack that ends that process has ended its judge."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcome.json"
        words = ["redteam", place.name, *place.options, "--sandbox", place.sandbox, "--json", str(file)]
        words += [word for one in place.load for word in ("--load", str(one))] + ["--trusted"] * place.trusted
        words += ["--task", job.target.task.id, "--attack", job.attack.name]
        program = [sys.executable, "-c", "from agentgym.cli import main; main()", *words]
        try:
            done = subprocess.run(program, capture_output=True, stdin=subprocess.DEVNULL, timeout=_APART_S, check=False)
            ended = f"the judging process ended with exit code {done.returncode}"
            (found,) = json.loads(file.read_text(encoding="utf-8"))
            return Outcome.model_validate(found)
        except subprocess.TimeoutExpired:
            ended = f"the judging process did not end within {_APART_S:g} s"
        except (OSError, ValueError):
            pass
    attack = job.attack
    return Outcome(
        task=job.target.task.id,
        attack=attack.name,
        row=attack.row,
        family=attack.family,
        tries=attack.tries,
        value=None,
        end="void",
        detail=f"{ended}: the environment runs what it judges in its own process",
    )


def _show(found: Sequence[Outcome]) -> None:
    table = Table("attack", "kind", "row", "what it tries", "reward", "", box=None, header_style="bold", pad_edge=False)
    for name in dict.fromkeys(one.attack for one in found):
        tried = [one for one in found if one.attack == name]
        worst = max(tried, key=lambda one: (not one.held, one.value or 0.0))
        reward = "unscored" if worst.value is None else f"{worst.value:g}"
        where = "" if worst.held else f" {worst.task}: {worst.detail}"
        table.add_row(name, worst.family, str(worst.row), worst.tries, reward, _MARKS[worst.end] + plain(where))
    out.print(table)
    bad = {one.attack for one in found if not one.held}
    total, tasks = len({one.attack for one in found}), len({one.task for one in found})
    if bad:
        say(f"{len(bad)} of {total} attacks succeeded on at least one of {tasks} tasks", "red")
    else:
        say(f"{total} attacks on {tasks} tasks held", "green")
