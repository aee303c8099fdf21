"""Read mined commits: rows with SWE-bench's field names, and the source package on which their patches fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentgym.task import Task
from agentgym_envs.rows import FileTasks, Refused, Row
from agentgym_envs.swe.sources import Sdist
from agentgym_envs.swe.tasks import SweInstance, Unfit, to_task

_KEPT = ("instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch", "created_at", "license")


def tasks(path: Path) -> FileTasks:
    """Return the tasks of a file of rows, plain or gzip; a row is refused unless its fix and its tests fit."""
    return FileTasks("mined", path, convert, lambda row: str(row["instance_id"]))


def convert(row: Row) -> Task:
    """Return the task of a row.

    Raises:
        Refused: it names no source package, or its patches do not fit there.
    """
    try:
        return to_task(instance(row))
    except Unfit as reason:
        raise Refused(str(reason)) from reason


def instance(row: Row) -> SweInstance:
    """Return the instance of a row; its tests and ids are those that were verified on the source package.

    Raises:
        Refused: it names no source package.
        ValidationError: it is malformed.
    """
    package: Any = row.get("pypi_sdist")
    if not package:
        raise Refused("it names no source package on which its patches fit")
    return SweInstance(
        **{name: row[name] for name in _KEPT},
        tests=package["test_files_after"],
        FAIL_TO_PASS=package["FAIL_TO_PASS"],
        PASS_TO_PASS=package["PASS_TO_PASS"],
        source=Sdist(package=package["package"], version=package["version"], sha256=package.get("sha256")),
    )
