"""Task sets of the code family, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentgym.errors import TaskError, UnknownNameError
from agentgym.task import TaskSet
from agentgym_envs.code import classeval, cruxeval, exercism, humaneval, mbpp, procedural, quixbugs, repair

GENERATED = ("repair", "functions")
_LOADERS: dict[str, Callable[[Path], TaskSet]] = {
    "mbpp": mbpp.tasks,
    "humaneval": humaneval.tasks,
    "exercism": exercism.tasks,
    "quixbugs": quixbugs.tasks,
    "classeval": classeval.tasks,
    "cruxeval": cruxeval.tasks,
}


def family_tasks(
    family: str, *, path: str | None, count: int, difficulty: float, seed: int, hard: float = 0.0
) -> TaskSet:
    """Return the tasks of a family; nothing is generated or read before it is needed.

    Raises:
        UnknownNameError: there is no such family.
        TaskError: a file is named for a generated family, or none for one that is read.
    """
    if family not in (*GENERATED, *_LOADERS):
        raise UnknownNameError("family of code tasks", family, (*GENERATED, *_LOADERS))
    if family in _LOADERS:
        if path is None:
            raise TaskError(f"the family {family!r} is read from a file; pass path=…")
        return _LOADERS[family](Path(path))
    if path is not None:
        raise TaskError(f"the family {family!r} is generated and reads no file; drop path={path!r}")
    if hard and family != "repair":
        raise TaskError(f"only the family 'repair' has hard tasks; drop hard={hard} or choose it")
    if family == "functions":
        return TaskSet("functions", partial(procedural.tasks, count=count, difficulty=difficulty, seed=seed))
    return TaskSet("repair", partial(repair.tasks, count=count, difficulty=difficulty, seed=seed, hard=hard))
