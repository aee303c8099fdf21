"""Checkpoints that are whole or not there: written aside, flushed to disk, then renamed into place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from agentgym.errors import AgentgymError
from agentgym_trainers.models import export

_PREFIX = "step-"
_FREE = ("name", "evaluation", "trackers", "trainer.checkpoint")
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

    def load(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return the saved state and restore the random number generators.

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
        _restore_generators(state.pop("generators"))
        return state


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay."""

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

    def write(
        self, step: int, model: Any, tokenizer: Any, state: Mapping[str, Any], recipe: Mapping[str, Any]
    ) -> Checkpoint:
        """Write one, point `latest` to it, and remove the oldest beyond `keep`.

        Args:
            step: names the checkpoint; grows over the run.
            model: a transformers model.
            tokenizer: its tokenizer.
            state: what else the next step depends on; random number generators are added.
            recipe: plain data; only a run under the same recipe may continue from here.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for stale in self._folder.glob(".writing-*"):
            shutil.rmtree(stale)
        aside = self._folder / f".writing-{step}-{os.getpid()}"
        aside.mkdir()
        export(model, tokenizer, aside / "model")
        torch.save({**state, "generators": _generators()}, aside / "state.pt")
        (aside / "manifest.json").write_text(json.dumps({"step": step, "recipe": recipe}, indent=1), encoding="utf-8")
        _flush(aside)
        place = self._folder / f"{_PREFIX}{step:06d}"
        if place.exists():
            shutil.rmtree(place)
        aside.rename(place)
        pointer = self._folder / ".writing-latest"
        pointer.write_text(place.name + "\n", encoding="utf-8")
        pointer.replace(self._folder / "latest")
        _flush(self._folder, deep=False)
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old.path)
        return Checkpoint(place, step)


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    if where in _FREE or old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{where}.{name}" if where else name)
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


def _restore_generators(saved: Mapping[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
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
