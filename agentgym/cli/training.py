"""`agentgym train`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from agentgym import registry
from agentgym.cli.console import errors, out, progress, say
from agentgym.cli.curves import ALARM
from agentgym.cli.places import load_file
from agentgym.cli.showing import show_curves
from agentgym.errors import AgentgymError, RecipeError
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory

_PATIENCE_S = 120.0
_WATCHED = (ALARM, "rollout/pass_rate", "rollout/reward", "eval/pass@1", "train/loss", "sft/loss", "loss")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A recipe as the command line names it."""

    file: str | None
    overrides: Sequence[str]
    profile: str | None
    backend: str | None = None
    """A trainer in place of the recipe's."""

    def load(self) -> Recipe:
        """Read it."""
        if self.file is None:
            raise RecipeError("wanted a recipe to train, or --resume RUN to go on with a run")
        return Recipe.load(self.file, self.overrides, self.profile, self.backend)


def run(wanted: Chosen, folder: Path | None, resume: Path | None, load: Sequence[Path]) -> None:
    """Train, and say where the results are."""
    for file in load:
        load_file(file)
    chosen, kept = _begin(wanted, folder, resume)
    prepared = chosen.prepare()
    directory = kept or _create(chosen, folder)
    trainer = _trainer(chosen)
    if _rank() > 0:
        with closing(prepared.backend):
            trainer.train(prepared, directory, resume=kept is not None)
        return
    say(f"training into {directory.path}")
    with closing(prepared.backend), progress() as bars:
        trainer.train(prepared, directory, resume=kept is not None, progress=_Report(bars))
    show_curves(directory)
    _say_gain(directory)
    say(f"trajectories and transcripts: agentgym show {directory.path}")


def plan(wanted: Chosen, folder: Path | None, resume: Path | None, load: Sequence[Path]) -> None:
    """Have a trainer write what it would start elsewhere, and print what a person would type; nothing is started."""
    for file in load:
        load_file(file)
    if resume is not None:
        raise RecipeError("--dry-run plans a new run, and --resume goes on with one; give one of them")
    chosen = wanted.load()
    trainer = _trainer(chosen)
    if not hasattr(trainer, "plan"):
        raise RecipeError(
            f"--dry-run shows what a backend would be given, and the trainer {_name_of(chosen)!r} trains right here; "
            "choose another with --backend, or leave --dry-run out"
        )
    prepared = chosen.prepare()
    with closing(prepared.backend):
        directory = _create(chosen, folder)
        said = trainer.plan(prepared, directory)
    say(f"written to {directory.path}; nothing was started")
    out.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


def _name_of(recipe: Recipe) -> str:
    return str(recipe.trainer.get("name", "native"))


def _trainer(recipe: Recipe) -> Any:
    return registry.create("trainers", _name_of(recipe))


def _begin(wanted: Chosen, folder: Path | None, resume: Path | None) -> tuple[Recipe, RunDirectory | None]:
    if resume is None:
        return wanted.load(), None
    if folder is not None:
        raise RecipeError("--run names a new run and --resume an old one; give one of them")
    kept = RunDirectory.open(resume)
    if wanted.file is not None and not _is_override(wanted.file):
        return wanted.load(), kept
    if wanted.backend is not None:
        raise RecipeError("--backend chooses what trains a recipe, and --resume without one goes on with the run's own")
    if wanted.profile is not None:
        raise RecipeError("--profile is laid over a recipe, and --resume without one goes on with the run's own")
    overrides = wanted.overrides if wanted.file is None else [wanted.file, *wanted.overrides]
    return Recipe.parse(kept.manifest.recipe, str(resume / "manifest.json"), overrides), kept


def _is_override(word: str) -> bool:
    return "=" in word and not word.endswith((".yaml", ".yml")) and not Path(word).is_file()


def _create(recipe: Recipe, folder: Path | None) -> RunDirectory:
    if folder is None and _processes() > 1:
        raise RecipeError(f"{_processes()} processes train into one folder; name it with --run")
    if folder is not None and _rank() > 0:
        return _wait_for(folder)
    if folder is None:
        return RunDirectory.create("runs", recipe)
    try:
        return RunDirectory.create(folder.parent, recipe, name=folder.name)
    except AgentgymError as error:
        raise AgentgymError(f"{error}: agentgym train --resume {folder}") from error


def _processes() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _wait_for(folder: Path) -> RunDirectory:
    """Open the run that the first process creates."""
    end = time.monotonic() + _PATIENCE_S
    while not (folder / "manifest.json").exists():
        if time.monotonic() > end:
            raise AgentgymError(f"the first process has created no {folder} for {_PATIENCE_S} s")
        time.sleep(0.1)
    return RunDirectory.open(folder)


def _say_gain(directory: RunDirectory) -> None:
    lines = directory.metrics()
    found = [line for line in lines if "eval/pass@1" in line]
    if len(found) < 2:
        return
    first, last = found[0], found[-1]
    trained = [line["step"] for line in lines if any(name.startswith("rollout/") for name in line)]
    # What trains elsewhere may evaluate for the first time when it has long begun.
    if trained and first["step"] < min(trained):
        times = "before", "after"
    else:
        times = f"at step {first['step']}", f"at step {last['step']}"
    say(f"held-out pass@1: {_interval(first)} {times[0]}, {_interval(last)} {times[1]}", "bold")


def _interval(line: Mapping[str, Any]) -> str:
    rate = f"{100 * line['eval/pass@1']:.1f}%"
    if "eval/pass@1_low" not in line:  # another package's trainer may not say
        return rate
    return f"{rate} (95% interval {100 * line['eval/pass@1_low']:.1f} to {100 * line['eval/pass@1_high']:.1f})"


class _Report:
    """Shows a trainer's progress: as bars to a person, as lines to a log."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, done: int, total: int, metrics: Mapping[str, Any]) -> None:
        note = _note(metrics)
        if phase == "eval":
            self._write(f"{phase} at step {done} of {total}: {note}", out.print)
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, note="")
        self._bars.update(self._tasks[phase], completed=done, total=total, note=note)
        if not errors.console.is_terminal and (done == total or done % max(1, total // 20) == 0):
            self._write(f"{phase} {done}/{total}" + (f": {note}" if note else ""), out.print)

    def _write(self, line: str, write: Callable[..., None]) -> None:
        write(line, markup=False, soft_wrap=True)


def _note(metrics: Mapping[str, Any]) -> str:
    shown = {name: metrics[name] for name in _WATCHED if name in metrics and (name != ALARM or metrics[name] == 1)}
    shown = shown or {name: value for name, value in list(metrics.items())[:3] if isinstance(value, int | float)}
    known = {name: value for name, value in shown.items() if not math.isnan(value)}
    return ", ".join(f"{name.rpartition('/')[2]} {value:.3f}" for name, value in known.items())
