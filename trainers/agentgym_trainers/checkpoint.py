"""Checkpoints that are whole or not there: written aside, flushed to disk, then renamed into place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from agentgym.errors import AgentgymError
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.models import export

_PREFIX = "step-"
_ASIDE, _REMOVED = ".writing-", ".removed-"
_FREE = ("name", "evaluation", "trackers", "trainer.checkpoint", "trainer.watch")
"""Recipe fields that may differ between a run and its continuation: they change no weight."""


class CheckpointError(AgentgymError, ValueError):
    """A checkpoint belongs to another run, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with `model/` (loadable by transformers), `state.pt` and `manifest.json`."""

    path: Path
    step: int

    @property
    def model_path(self) -> Path:
        """The Hugging Face folder: weights, configuration and tokenizer."""
        return self.path / "model"

    @property
    def score(self) -> float | None:
        """What the metric by which the best is kept was at this step; None if it was not measured."""
        found = self._manifest().get("score")
        return None if found is None else float(found)

    @property
    def suspicious(self) -> bool:
        """Whether a bound of `trainer.watch.stop` was exceeded as it was written."""
        return bool(self._manifest().get("suspicious"))

    @property
    def yardstick(self) -> str:
        """What the score is the score of: scores of one yardstick can be compared."""
        return _yardstick(self.recipe)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What it was trained by, as plain data; empty if nothing tells."""
        found: Mapping[str, Any] = self._manifest().get("recipe") or {}
        return found

    def _manifest(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # `load` says what is wrong with it
            return {}
        return found

    def load(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return the saved state; `restore_generators` takes its random number generators.

        Raises:
            CheckpointError: the checkpoint was written under another recipe, or is damaged.
        """
        try:
            manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            state: dict[str, Any] = torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"the checkpoint {self.path} cannot be read: {reason}; remove it and resume"
            ) from error
        changed = list(_differences(manifest["recipe"], json.loads(json.dumps(recipe))))
        if changed:
            raise CheckpointError(
                f"the checkpoint {self.path} was written under another recipe: {'; '.join(changed[:3])}; "
                "resume with the same recipe, or start a new run"
            )
        return state


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay, the newest unsuspicious, and the one with the best score."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def all(self) -> list[Checkpoint]:
        """Return the whole ones, oldest first."""
        found = [Checkpoint(path, int(path.name[len(_PREFIX) :])) for path in self._folder.glob(f"{_PREFIX}*")]
        return sorted(found, key=lambda one: one.step)

    def latest(self) -> Checkpoint | None:
        """Return the newest."""
        return next(reversed(self.all()), None)

    def good(self) -> Checkpoint | None:
        """Return the newest that is not suspicious."""
        return next((one for one in reversed(self.all()) if not one.suspicious), None)

    def best(self, recipe: Mapping[str, Any] | None = None) -> Checkpoint | None:
        """Return the one with the highest score, the newest of several.

        Args:
            recipe: only what was scored as this recipe scores counts; None takes what was scored last for the rule.
        """
        scored = [(score, one) for one in self.all() if (score := one.score) is not None]
        if not scored:
            return None
        rule = scored[-1][1].yardstick if recipe is None else _yardstick(recipe)
        alike = [(score, one.step, one) for score, one in scored if one.yardstick == rule]
        return max(alike, default=(None, None, None))[2]

    def write(
        self,
        step: int,
        model: Any,
        tokenizer: Any,
        state: Mapping[str, Any],
        recipe: Mapping[str, Any],
        *,
        score: float | None = None,
        suspicious: bool = False,
    ) -> Checkpoint:
        """Write one, point `latest` to it, and `best` to the best; remove the oldest others beyond `keep`.

        Args:
            step: names the checkpoint; grows over the run.
            model: a transformers model.
            tokenizer: its tokenizer.
            state: what else the next step depends on; random number generators are added.
            recipe: plain data; only a run under the same recipe may continue from here.
            score: what the metric by which the best is kept was at this step, the higher the better.
            suspicious: whether the run may be collapsing; the newest that is not stays.
        """
        aside = self._aside(step)
        export(model, tokenizer, aside / "model")
        torch.save({**state, "generators": _generators()}, aside / "state.pt")
        return self._place(aside, step, recipe, score, suspicious=suspicious)

    def adopt(
        self, step: int, model: Path, recipe: Mapping[str, Any], *, score: float | None = None, suspicious: bool = False
    ) -> Checkpoint:
        """Make a checkpoint, from which no run goes on, of a Hugging Face folder that another trainer wrote.

        Args:
            step: names the checkpoint.
            model: the folder; it is moved.
            recipe: plain data.
            score: as in `write`.
            suspicious: as in `write`.
        """
        aside = self._aside(step)
        shutil.move(model, aside / "model")
        return self._place(aside, step, recipe, score, suspicious=suspicious)

    def _aside(self, step: int) -> Path:
        """Return a new folder in which a checkpoint is written, and remove what a kill left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for pattern in (f"{_ASIDE}*", f"{_REMOVED}*"):
            for stale in self._folder.glob(pattern):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        aside = self._folder / f"{_ASIDE}{step}-{os.getpid()}"
        aside.mkdir()
        return aside

    def _place(
        self, aside: Path, step: int, recipe: Mapping[str, Any], score: float | None, *, suspicious: bool = False
    ) -> Checkpoint:
        """Give a written checkpoint its name, and remove the oldest others."""
        manifest = {"step": step, "score": score, "suspicious": suspicious, "recipe": recipe}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _flush(aside)
        place = self._folder / f"{_PREFIX}{step:06d}"
        if place.exists():
            self._remove(place)
        aside.rename(place)
        _flush(self._folder, deep=False)
        best, good = self.best(), self.good()
        self._point("latest", place.name)
        if best is not None:
            self._point("best", best.path.name)
        for old in self.all()[: -self._keep]:
            if old not in (best, good):
                self._remove(old.path)
        return Checkpoint(place, step)

    def _point(self, name: str, place: str) -> None:
        pointer = self._folder / f"{_ASIDE}{name}"
        pointer.write_text(place + "\n", encoding="utf-8")
        pointer.replace(self._folder / name)

    def _remove(self, place: Path) -> None:
        # Renamed first: a kill on the way must not leave half a checkpoint under its name.
        away = place.rename(self._folder / f"{_REMOVED}{place.name}-{os.getpid()}")
        shutil.rmtree(away)


def find(path: Path, which: str = "latest") -> Checkpoint | None:
    """Return the checkpoint that a path means: a checkpoint's folder itself, or one of a run's; None if it is neither.

    Args:
        path: a folder.
        which: of a run, `latest`, `best`, or a step.

    Raises:
        CheckpointError: the run has no such checkpoint.
    """
    if (path / "model").is_dir() and (path / "manifest.json").is_file():
        return Checkpoint(path, int(path.name.removeprefix(_PREFIX)) if path.name.startswith(_PREFIX) else 0)
    if not (path / "checkpoints").is_dir():
        return None
    kept = Checkpoints(path / "checkpoints", keep=1)
    found = {"latest": kept.latest, "best": kept.best}.get(
        which, lambda: next((one for one in kept.all() if which in (str(one.step), f"{one.step:06d}")), None)
    )()
    if found is None:
        steps = ", ".join(str(one.step) for one in kept.all())
        hint = f"it has those of the steps {steps}" if steps else "train it further, or name a model's folder"
        what = "no checkpoint yet" if which == "latest" else f"no checkpoint {which!r}"
        raise CheckpointError(f"the run {path} has {what}; {hint}")
    return found


def model_folder(path: str | Path) -> str | Path:
    """Return the Hugging Face folder that a run's or a checkpoint's folder holds, or the path or name itself."""
    found = find(Path(path))
    return path if found is None else found.model_path


def _yardstick(recipe: Mapping[str, Any]) -> str:
    """Return by which metric, of what evaluation, a recipe keeps its best checkpoint."""
    evaluation = {name: one for name, one in recipe.get("evaluation", {}).items() if name != "every"}
    metric = ((recipe.get("trainer") or {}).get("checkpoint") or {}).get("best")
    return json.dumps([metric, evaluation], sort_keys=True)


def refuse_other_recipe(run: RunDirectory, recipe: Recipe, *free: str) -> None:
    """Refuse to go on with a run as another one, where no checkpoint is there to tell.

    Args:
        run: what was begun.
        recipe: what is to go on.
        free: fields that may differ, beside those that change no weight.

    Raises:
        CheckpointError: another field differs.
    """
    changed = list(_differences(run.manifest.recipe, recipe.model_dump(mode="json"), free=(*_FREE, *free)))
    if changed:
        raise CheckpointError(
            f"the run {run.path} was begun with another recipe: {'; '.join(changed[:3])}; "
            "resume with the same recipe, or start a new run"
        )


def _differences(old: Any, new: Any, where: str = "", free: Sequence[str] = _FREE) -> Iterator[str]:
    if where in free or old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{where}.{name}" if where else name, free)
    else:
        yield f"{where} was {old!r} and is {new!r}"


def _generators() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def restore_generators(state: Mapping[str, Any]) -> None:
    """Set the random number generators to a saved state's; last, because building what it is for may draw."""
    saved = state["generators"]
    torch.set_rng_state(saved["torch"])
    for device, one in zip(
        range(torch.cuda.device_count()), saved["cuda"], strict=False
    ):  # a resumed run may have others
        torch.cuda.set_rng_state(one, device)
    np.random.set_state(saved["numpy"])
    random.setstate(saved["python"])


def _flush(folder: Path, *, deep: bool = True) -> None:
    """Ask the system to put files, and the folders that name them, on the disk."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
