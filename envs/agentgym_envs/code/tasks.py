"""Task sets of the code family, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agentgym.errors import TaskError, UnknownNameError
from agentgym.graders.languages import language as find_language
from agentgym.task import TaskSet
from agentgym_envs.code import (
    canonical,
    classeval,
    cruxeval,
    dataset,
    exercism,
    humaneval,
    mbpp,
    procedural,
    programs,
    quixbugs,
    repair,
)
from agentgym_envs.code.programs import Toolchain

GENERATED = ("repair", "functions")
_LOADERS: dict[str, Callable[[Path], TaskSet]] = {
    "mbpp": mbpp.tasks,
    "humaneval": humaneval.tasks,
    "exercism": exercism.tasks,
    "quixbugs": quixbugs.tasks,
    "classeval": classeval.tasks,
    "cruxeval": cruxeval.tasks,
}
_PROGRAMS: dict[str, Callable[[Path, Toolchain], TaskSet]] = {
    "stdio": programs.tasks,
    "exercism_canonical": canonical.tasks,
}
FAMILIES = (*GENERATED, *_LOADERS, *_PROGRAMS, "dataset")


@dataclass(frozen=True, slots=True)
class Source:
    """What a family's tasks are made of; None where the user said nothing."""

    path: str | None = None
    count: int = 1000
    difficulty: float = 1.0
    seed: int = 0
    hard: float = 0.0
    language: str | Sequence[str] | None = None
    images: Mapping[str, str] | None = None
    dataset: Mapping[str, Any] | None = None

    @property
    def toolchain(self) -> Toolchain:
        """Languages and images.

        Raises:
            UnknownNameError: there is no such language.
        """
        given = (self.language,) if isinstance(self.language, str) else tuple(self.language or ("python",))
        for name in (*given, *(self.images or {})):
            find_language(name)
        return Toolchain(language=given, images=dict(self.images or {}))


def family_tasks(family: str, source: Source) -> TaskSet:
    """Return the tasks of a family; nothing is generated or read before it is needed.

    Raises:
        UnknownNameError: there is no such family or language.
        TaskError: an option that the family needs is missing, or one is given that it does not use.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family of code tasks", family, FAMILIES)
    _check(family, source)
    if family == "dataset":
        described = dataset.read(source.dataset or {})
        if described.kind != "stdio" and (source.language or source.images):
            raise TaskError(f"tests of the kind {described.kind!r} are Python; drop language and images")
        return dataset.tasks(described, source.toolchain)
    if family in _LOADERS:
        return _LOADERS[family](Path(str(source.path)))
    if family in _PROGRAMS:
        return _PROGRAMS[family](Path(str(source.path)), source.toolchain)
    count, difficulty, seed = source.count, source.difficulty, source.seed
    if family == "functions":
        return TaskSet("functions", partial(procedural.tasks, count=count, difficulty=difficulty, seed=seed))
    return TaskSet("repair", partial(repair.tasks, count=count, difficulty=difficulty, seed=seed, hard=source.hard))


def _check(family: str, source: Source) -> None:
    reads = family in _LOADERS or family in _PROGRAMS
    if reads and source.path is None:
        raise TaskError(f"the family {family!r} is read from a file; pass path=…")
    if family in GENERATED and source.path is not None:
        raise TaskError(f"the family {family!r} is generated and reads no file; drop path={source.path!r}")
    if family == "dataset" and source.path is not None:
        raise TaskError("the family 'dataset' names its file as dataset={path: …, kind: …}; drop path")
    if (family == "dataset") != (source.dataset is not None):
        raise TaskError("the family 'dataset' and the option dataset={path: …, kind: …} go together; pass both or none")
    if source.hard and family != "repair":
        raise TaskError(f"only the family 'repair' has hard tasks; drop hard={source.hard} or choose it")
    if (source.language or source.images) and family not in (*_PROGRAMS, "dataset"):
        raise TaskError(f"tasks of the family {family!r} are solved in Python; drop language and images")
