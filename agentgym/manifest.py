"""The manifest of a run: all that is needed to say what produced it; reads no secrets and no environment variables."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agentgym.types import Record

PACKAGES = ("agentgym-rlvr", "gymnasium", "numpy", "pydantic", "scipy", "pyarrow", "torch", "transformers", "docker")


class GitState(Record):
    """The repository that the command was started in."""

    commit: str
    dirty: bool
    """Whether tracked files had changes that the commit does not hold."""


class Manifest(Record):
    """What produced a run."""

    format: int = 1
    kind: str
    """`train` or `eval`."""
    created: datetime
    argv: list[str]
    seed: int
    recipe: dict[str, Any]
    python: str
    platform: str
    processors: int
    packages: dict[str, str]
    """Versions of the installed packages that can change results."""
    git: GitState | None


def describe(recipe: Mapping[str, Any], *, kind: str, argv: Sequence[str]) -> Manifest:
    """Return the manifest of a run that starts now, here."""
    return Manifest(
        kind=kind,
        created=datetime.now(UTC),
        argv=list(argv),
        seed=int(recipe.get("seed", 0)),
        recipe=dict(recipe),
        python=platform.python_version(),
        platform=platform.platform(),
        processors=os.cpu_count() or 1,
        packages={name: found for name in PACKAGES if (found := _version(name))},
        git=git_state(Path.cwd()),
    )


def git_state(folder: Path) -> GitState | None:
    """Return the state of the repository around a folder; None outside of one, or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return GitState(commit=commit.strip(), dirty=bool(_git(folder, "status", "--porcelain", "--untracked-files=no")))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout if found.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
