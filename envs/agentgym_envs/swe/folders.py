"""Task folders as SWE-bench 5 lays them out: one per instance, with the patches and the prose in files of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from agentgym.errors import TaskError
from agentgym.task import Task
from agentgym_envs.code.refusals import Placed, Refused, Row, RowTasks
from agentgym_envs.swe.ids import usable
from agentgym_envs.swe.rows import CONDA, ROOT
from agentgym_envs.swe.sources import Archive, InImage
from agentgym_envs.swe.tasks import Environment, SweInstance, Unfit, to_task

ARCHIVE = "repository.tar.gz"
"""Beside the others in a folder that was mined here: the repository before the change. Else the image has it."""
_PROSE = {"problem_statement": "problem_statement.md", "patch": "gold.patch", "test_patch": "test.patch"}
_NAMED = ("instance_id", "repo", "base_commit", "created_at", "version", "license", "difficulty")
_SPLITS = {"train": "train", "dev": "validation", "validation": "validation", "test": "test"}


def tasks(path: Path) -> RowTasks:
    """Return the tasks of a folder of task folders; `refused()` says which cannot be judged, and why."""

    def convert(row: Row) -> Task:
        found = instance(Path(row["folder"]))
        failing, passing = usable(found.FAIL_TO_PASS, found.PASS_TO_PASS)
        try:
            return to_task(found.model_copy(update={"FAIL_TO_PASS": failing, "PASS_TO_PASS": passing}))
        except Unfit as reason:
            raise Refused(str(reason)) from reason

    def rows() -> Iterator[Placed]:
        return ((str(one), {"folder": str(one)}) for one in _folders(path))

    return RowTasks("folders", rows, convert, lambda row: Path(row["folder"]).name)


def instances(path: str | Path) -> Iterator[SweInstance]:
    """Yield the instances of a folder of task folders, or of a repository that has them below `tasks`, by name.

    Raises:
        TaskError: naming what is missing or malformed.
    """
    return map(instance, _folders(path))


def _folders(path: str | Path) -> list[Path]:
    root = Path(path)
    root = root / "tasks" if (root / "tasks").is_dir() else root
    folders = sorted(one.parent for one in root.glob("*/task.yaml"))
    if not folders:
        raise TaskError(f"{path} holds no task folders; wanted NAME/task.yaml in it, or below its folder tasks")
    return folders


def instance(folder: Path) -> SweInstance:
    """Read one task folder.

    Raises:
        TaskError: naming what is missing or malformed.
    """
    about = _about(folder)
    tests = _tests(folder)
    archive = folder / ARCHIVE
    source = Archive(path=str(archive.resolve())) if archive.is_file() else InImage(root=about.get("root", ROOT))
    environment = dict(about.get("environment") or {})
    if not archive.is_file():
        environment = {"image": about.get("image"), "variables": {"PATH": CONDA}, **environment}
    hints = folder / "hints.md"
    fields: dict[str, Any] = {
        **{name: str(about[name]) for name in _NAMED if about.get(name) is not None and name != "difficulty"},
        **{name: _read(folder, file) for name, file in _PROSE.items()},
        **tests,
        "hints_text": hints.read_text(encoding="utf-8") if hints.is_file() else "",
        "source": source,
        "split": _SPLITS.get(str(about.get("split"))),
    }
    if isinstance(about.get("difficulty"), int | float):
        fields["difficulty"] = about["difficulty"]
    try:
        return SweInstance(**fields, environment=Environment.model_validate(environment))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TaskError(f"the task folder {folder} is malformed: {where}: {first['msg']}") from error


def _about(folder: Path) -> Mapping[str, Any]:
    try:
        about = yaml.safe_load(_read(folder, "task.yaml"))
    except yaml.YAMLError as error:
        raise TaskError(f"{folder / 'task.yaml'} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(about, dict):
        raise TaskError(f"{folder / 'task.yaml'} is malformed; wanted a mapping with instance_id, repo and base_commit")
    if about.get("instance_id") not in (None, folder.name):
        raise TaskError(f"{folder / 'task.yaml'} names another instance: {str(about['instance_id'])[:80]!r}")
    return {"instance_id": folder.name, **about}


def _tests(folder: Path) -> dict[str, tuple[str, ...]]:
    try:
        tests = json.loads(_read(folder, "tests.json"))
        return {name: tuple(tests[name]) for name in ("FAIL_TO_PASS", "PASS_TO_PASS")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise TaskError(f"{folder / 'tests.json'} is malformed; wanted lists FAIL_TO_PASS and PASS_TO_PASS") from error


def _read(folder: Path, name: str) -> str:
    try:
        with (folder / name).open(encoding="utf-8", newline="") as file:  # a patch keeps its line ends
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"the task folder {folder} has no readable {name}: {error}") from error
