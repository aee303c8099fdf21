"""Task sets of the SQL environments, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentgym.errors import TaskError, UnknownNameError
from agentgym.task import TaskSet
from agentgym_envs.sql import files, questions

GENERATED = ("questions",)
_LOADERS: dict[str, Callable[[Path], TaskSet]] = {"spider": files.spider, "defog": files.defog}


def family_tasks(family: str, *, path: str | None, count: int, difficulty: float, seed: int) -> TaskSet:
    """Return the tasks of a family; nothing is generated or read before it is needed.

    Raises:
        UnknownNameError: there is no such family.
        TaskError: a file is named for a generated family, or none for one that is read.
    """
    if family not in (*GENERATED, *_LOADERS):
        raise UnknownNameError("family of SQL tasks", family, (*GENERATED, *_LOADERS))
    if family in _LOADERS:
        if path is None:
            raise TaskError(f"the family {family!r} is read from a file; pass path=…")
        return _LOADERS[family](Path(path))
    if path is not None:
        raise TaskError(f"the family {family!r} is generated and reads no file; drop path={path!r}")
    return TaskSet(family, partial(questions.tasks, count=count, difficulty=difficulty, seed=seed))
