"""Task sets of software engineering, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentgym.errors import TaskError, UnknownNameError
from agentgym.task import TaskSet
from agentgym_envs.swe import folders, generated, mined, rows

GENERATED = "generated"
LOADERS: dict[str, Callable[[Path], TaskSet]] = {
    "mined": mined.tasks,
    "folders": folders.tasks,
    **{name: partial(rows.tasks, name) for name in rows.FORMATS},
}


def family_tasks(family: str, *, path: str | None, count: int, seed: int) -> TaskSet:
    """Return the tasks of a family; nothing is generated, read or fetched before it is needed.

    Raises:
        UnknownNameError: there is no such family.
        TaskError: a file is named for the generated family, or none for one that is read.
    """
    if family not in (GENERATED, *LOADERS):
        raise UnknownNameError("family of SWE tasks", family, (GENERATED, *LOADERS))
    if family == GENERATED:
        if path is not None:
            raise TaskError(f"the family {family!r} is generated and reads no file; drop path={path!r}")
        return TaskSet(family, partial(generated.tasks, count, seed))
    if path is None:
        raise TaskError(f"the family {family!r} is read from files; pass path=…")
    return LOADERS[family](Path(path))
