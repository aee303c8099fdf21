"""Run directories: what a recipe produced, in files that survive a kill; nothing hidden in a task is written here."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel, ValidationError

from agentgym import parquet
from agentgym.errors import AgentgymError
from agentgym.manifest import Manifest, describe
from agentgym.rewards import Rewards
from agentgym.types import Group, Trajectory

METRICS = "metrics.jsonl"
STOPPED = "stopped.json"
"""Why a training ended by itself before its last step, as `reason`; absent otherwise."""


class Tracker(Protocol):
    """Where numbers go.

    One that a recipe names is built with `folder`, the run's, with `first_step`, from which on anything that it wrote
    before is void, and with its options. A static `check()`, if it has one, refuses before a run begins.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; they survive a kill right after this call."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class JsonlTracker:
    """One JSON line per call in `metrics.jsonl`; numbers that are not finite become null.

    A line torn by a kill is dropped when the file is opened again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / METRICS
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._file = self.path.open("ab")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **finite})
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunDirectory:
    """A folder that a recipe produced.

    `manifest.json`, `metrics.jsonl`, `trajectories/[name/]step-000012.parquet`, `checkpoints/`, and reports.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(
        cls, root: str | Path, recipe: BaseModel | Mapping[str, Any], *, name: str | None = None, kind: str = "train"
    ) -> Self:
        """Make a new run below `root`; without a name, the recipe's and the time.

        Raises:
            AgentgymError: if the folder exists and is not empty.
        """
        data = recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else dict(recipe)
        manifest = describe(data, kind=kind, argv=sys.argv)
        folder = Path(root) / (name or f"{data.get('name', kind)}-{manifest.created:%Y%m%d-%H%M%S}")
        if name is None:
            folder = _unused(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise AgentgymError(f"{folder} exists and is not an empty folder; name another, or resume it")
        (folder / "checkpoints").mkdir(parents=True)
        run = cls(folder, manifest)
        run.write_json("manifest.json", manifest)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run.

        Raises:
            AgentgymError: if the folder has no readable manifest.
        """
        folder = Path(path)
        try:
            text = (folder / "manifest.json").read_text(encoding="utf-8")
            return cls(folder, Manifest.model_validate_json(text))
        except OSError as error:
            raise AgentgymError(f"{folder} is not a run: it has no readable manifest.json") from error
        except ValidationError as error:
            raise AgentgymError(f"{folder / 'manifest.json'} is damaged: {error.errors()[0]['msg']}") from error

    @property
    def checkpoints(self) -> Path:
        """The folder that belongs to the trainer."""
        return self.path / "checkpoints"

    def tracker(self) -> JsonlTracker:
        """Return the tracker that is always there."""
        return JsonlTracker(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged lines, in order; a torn last one is left out, null reads as NaN."""
        return list(read_metrics(self.path / METRICS))

    def write_trajectories(
        self, step: int, groups: Sequence[Group], rewards: Sequence[Rewards] | None = None, *, name: str | None = None
    ) -> Path:
        """Write a step's groups, with their rewards if there are any; `name` keeps, say, evaluations apart.

        Raises:
            MissingExtraError: without pyarrow.
        """
        path = self._trajectories(name) / f"step-{step:06}.parquet"
        parquet.write(path, groups, rewards)
        return path

    def read_trajectories(self, step: int, *, name: str | None = None) -> list[Trajectory]:
        """Return a step's trajectories as they were written."""
        return parquet.read(self._trajectories(name) / f"step-{step:06}.parquet")

    def steps(self, *, name: str | None = None) -> list[int]:
        """Return the steps that have trajectories."""
        return sorted(_step_of(path) for path in self._trajectories(name).glob("step-*.parquet"))

    def trajectory_names(self) -> list[str]:
        """Return the names under which trajectories were kept apart."""
        return sorted(one.name for one in (self.path / "trajectories").glob("*") if one.is_dir())

    def rewind(self, step: int) -> None:
        """Forget what was logged at `step` and later, so that a resumed run can write it again."""
        lines = [line for line in _whole_lines(self.path / METRICS) if json.loads(line)["step"] < step]
        _write_atomically(self.path / METRICS, b"".join(lines))
        for path in (self.path / "trajectories").rglob("step-*.parquet"):
            if _step_of(path) >= step:
                path.unlink()
        for path in (self.path / "trajectories").rglob(".step-*"):
            path.unlink()

    def write_json(self, name: str, content: BaseModel | Mapping[str, Any]) -> Path:
        """Write a report that is either whole or absent."""
        path = self.path / name
        if isinstance(content, BaseModel):
            text = content.model_dump_json(indent=2)
        else:
            text = json.dumps(content, indent=2, ensure_ascii=False)
        _write_atomically(path, text.encode() + b"\n")
        return path

    def delete(self) -> None:
        """Remove the whole run."""
        shutil.rmtree(self.path)

    def _trajectories(self, name: str | None) -> Path:
        return self.path / "trajectories" / (name or "")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file, null as NaN.

    Raises:
        AgentgymError: naming the line that is damaged, unless it is a torn last one.
    """
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise AgentgymError(f"{path}:{number} is not JSON; the file was damaged after it was written") from error
        yield {key: math.nan if value is None else value for key, value in found.items()}


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(sum(len(line) for line in _whole_lines(path)))


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _unused(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}-{number}") for number in range(2, 1000))
    return folder if not folder.exists() else next(one for one in names if not one.exists())


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
