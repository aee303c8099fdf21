"""A corpus of invented facts, and questions over it: the tasks that need no file."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from agentgym.errors import TaskError
from agentgym.task import Task, TaskSet
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.index import build
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.questions import Generator
from agentgym_envs.search.tasks import convert

_ONSETS = ("b", "br", "c", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pr", "r", "s", "st", "t", "v")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("l", "m", "n", "r", "s", "t", "nd", "rk", "st")
KINDS = ("person", "town", "firm", "river", "book")
FACTS: dict[str, tuple[tuple[str, str], ...]] = {
    "person": (("{} was born in {}.", "town"), ("{} learned the trade from {}.", "person"), ("{} admires {}.", "book")),
    "town": (("{} lies on the river {}.", "river"), ("The mayor of {} is {}.", "person")),
    "firm": (("{} was founded by {}.", "person"), ("The seat of {} is {}.", "town")),
    "river": (("The river {} flows into the {}.", "river"), ("The largest town on the {} is {}.", "town")),
    "book": (("{} was written by {}.", "person"), ("{} is set in {}.", "town"), ("{} was printed by {}.", "firm")),
}
"""What is told of each kind: a sentence with the subject and another thing, and the other thing's kind."""
MAX_HOPS = 4
_lock = threading.Lock()


@lru_cache(maxsize=8)
def world(seed: int, size: int) -> tuple[Passage, ...]:
    """Return the passages of a world: one per thing, each linked to the things that it tells of.

    Raises:
        TaskError: so few things cannot be told of.
    """
    if not 20 <= size <= 100_000:
        raise TaskError(f"wanted a world of 20 to 100000 things, found {size}")
    rng = np.random.default_rng((seed, size))
    names = _names(rng, size)
    kinds = {name: KINDS[place % len(KINDS)] for place, name in enumerate(names)}
    by_kind = {kind: [name for name in names if kinds[name] == kind] for kind in KINDS}
    passages = []
    for number, name in enumerate(names, start=1):
        sentences, links = [], []
        for sentence, kind in FACTS[kinds[name]]:
            others = by_kind[kind]
            other = name
            while other == name:
                other = others[int(rng.integers(len(others)))]
            sentences.append(sentence.format(name, other))
            links.append(other)
        passages.append(Passage(id=f"d{number}", title=name, text=" ".join(sentences), links=tuple(links)))
    return tuple(passages)


def world_tasks(*, count: int, difficulty: float, world: int, size: int) -> TaskSet:
    """Return questions over a world, each checked by being answered anew from the corpus.

    Args:
        count: how many.
        difficulty: 1 to 4, the number of hops; a share of the tasks that is the fraction behind the point has one more.
        world: the world's seed.
        size: how many things it tells of.

    Raises:
        TaskError: the difficulty is not on the dial.
    """
    if not 1 <= difficulty <= MAX_HOPS:
        raise TaskError(f"wanted a difficulty from 1 to {MAX_HOPS} hops, found {difficulty:g}")
    if count < 1:
        raise TaskError(f"wanted at least one question, found {count}")
    return TaskSet("search-world", partial(_tasks, count, difficulty, world, size))


def _tasks(count: int, difficulty: float, seed: int, size: int) -> Iterator[Task]:
    yield from _made(count, round(difficulty * 1000), seed, size)


@lru_cache(maxsize=8)
def _made(count: int, permille: int, seed: int, size: int) -> tuple[Task, ...]:
    hops, more = divmod(permille, 1000)
    harder = round(count * more / 1000)
    made = Generator(world(seed, size))
    found = [*made.generate(count - harder, hops=hops, seed=seed)]
    if harder:
        found += made.generate(harder, hops=hops + 1, seed=seed)
    if len(found) < count:
        raise TaskError(f"a world of {size} things has only {len(found)} such questions; ask for fewer, or enlarge it")
    return tuple(convert(one.row()) for one in found)


@lru_cache(maxsize=4)
def _indexed(seed: int, size: int) -> EmbeddedRetriever:
    folder = Path(tempfile.mkdtemp(prefix="agentgym-search-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return EmbeddedRetriever(build(world(seed, size), folder / "world.idx").path)


def world_retriever(seed: int, size: int) -> EmbeddedRetriever:
    """Return the search over a world, which all environments of a process share."""
    with _lock:
        return _indexed(seed, size)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Return distinct names of one word each."""
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(2)]
        found["".join(parts).capitalize() + str(rng.choice(_CODAS)) + str(rng.choice(("a", "en", "is", "or")))] = None
    return list(found)
