"""Questions about towns that nobody has heard of, so that only asking helps; how large they are decides whom to ask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agentgym.sampling import derive_seed
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym_envs.code.splits import digest, split_of
from agentgym_envs.rows import FileTasks

_STARTS = ("Bram", "Cald", "Dorn", "Elm", "Fenn", "Gorl", "Hask", "Ivar", "Jorn", "Kell", "Lund", "Morr", "Ostr")
_ENDS = ("aby", "burg", "dale", "ford", "gard", "haven", "mark", "sted", "thorpe", "wick")
_SIZES = ((100_000, 900_000), (10_000, 99_000), (300, 9_000))


def routing_tasks(*, count: int = 500, difficulty: float = 1.0, seed: int = 0) -> TaskSet:
    """Return generated questions; see `generate`."""

    def source() -> Iterator[Task]:
        for index in range(count):
            yield generate(derive_seed(seed, "routing", index) % 2**31, difficulty)

    return TaskSet("routing", source)


def generate(seed: int, difficulty: float) -> Task:
    """Return the question of a seed.

    Args:
        seed: the same seed and difficulty give the same question.
        difficulty: 0 asks for one year; 1 for the years between two, so that two models may be the cheapest; 2 for the
            latest of three.
    """
    if difficulty not in (0, 1, 2):
        raise ValueError(f"wanted a difficulty of 0, 1 or 2, found {difficulty}")
    rng = np.random.default_rng([seed, int(difficulty)])
    names = rng.choice([start + end for start in _STARTS for end in _ENDS], size=int(difficulty) + 1, replace=False)
    towns = {str(name): _town(rng) for name in names}
    shown = [f"{name} ({one['people']:,} people)" for name, one in towns.items()]
    years = [one["opened"] for one in towns.values()]
    match int(difficulty):
        case 0:
            prompt, gold = f"In which year was the town hall of {shown[0]} opened?", years[0]
        case 1:
            asked = f"the opening of the town hall of {shown[0]} and that of {shown[1]}"
            prompt, gold = f"How many years lie between {asked}?", abs(years[0] - years[1])
        case _:
            prompt, gold = f"In which year was the last of the town halls of {', '.join(shown)} opened?", max(years)
    return Task(
        id=f"routing/{int(difficulty)}-{seed}",
        split=split_of(digest(prompt)),
        public=Public(prompt=prompt, data={"towns": {name: dict(one) for name, one in towns.items()}}),
        hidden=Hidden(data={"kind": "numeric", "gold": str(gold), "abs_tol": 0}, reference={"answer": str(gold)}),
        hints=("Ask about one town at a time, each the cheapest model that knows it.",),
        difficulty=difficulty,
    )


def _town(rng: np.random.Generator) -> Mapping[str, int]:
    low, high = _SIZES[int(rng.integers(len(_SIZES)))]
    return {"people": int(rng.integers(low // 100, high // 100)) * 100, "opened": int(rng.integers(1700, 2000))}


def question_file(path: str | Path) -> TaskSet:
    """Return the questions of a file of JSON Lines with `question` and `answer`, for models that know the world.

    Raises:
        TaskError: while iterating, naming the line that is malformed.
    """
    return FileTasks("routing questions", Path(path), _question, lambda row: digest(str(row["question"])))


def _question(row: Mapping[str, Any]) -> Task:
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    gold: Any = [str(one) for one in answers]
    return Task(
        id=f"question/{digest(json.dumps(row, sort_keys=True))}",
        split=split_of(digest(str(row["question"]))),
        public=Public(prompt=row["question"]),
        hidden=Hidden(data={"kind": "normalised", "golds": gold}, reference={"answer": gold[0]}),
    )
