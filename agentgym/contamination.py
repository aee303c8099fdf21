"""Refuse held-out tasks that duplicate, exactly or nearly, a training task."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from agentgym.errors import ContaminationError
from agentgym.task import Task

SHINGLE_WORDS = 5
Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Twin:
    """A held-out task and the training task that it duplicates."""

    held_out: str
    train: str
    similarity: float
    """1.0 for equal normalised text, else the Jaccard index of their word 5-grams."""


def normalised(text: str) -> str:
    """Return text with case, compatibility forms, punctuation spacing and blanks made alike.

    Signs and operators stay: `x+1` and `x-1` are different tasks.

    >>> normalised("  Return  the SUM ,of x.") == normalised("return the sum, of x.")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+|[^\w\s]", folded))


def shingles(text: str) -> frozenset[Gram]:
    """Return the set of word 5-grams of a normalised text; empty for texts too short to compare that way."""
    words = text.split()
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))


def find_twins(train: Iterable[Task], held_out: Iterable[Task], *, threshold: float = 0.9) -> list[Twin]:
    """Compare every held-out task with every training task.

    Args:
        train: tasks that may be trained on.
        held_out: tasks that may not.
        threshold: Jaccard index of word 5-grams from which texts count as near duplicates. Texts whose normalised
            forms are equal always count.

    Returns:
        One `Twin` per contaminated held-out task, with its nearest training task.
    """
    exact: dict[str, str] = {}
    known: dict[str, frozenset[Gram]] = {}
    index: dict[Gram, list[str]] = defaultdict(list)
    for task in train:
        text = normalised(task.content)
        exact.setdefault(text, task.id)
        known[task.id] = shingles(text)
        for gram in known[task.id]:
            index[gram].append(task.id)
    twins = []
    for task in held_out:
        text = normalised(task.content)
        if text in exact:
            twins.append(Twin(task.id, exact[text], 1.0))
            continue
        grams = shingles(text)
        names = _candidates(grams, index, threshold)
        similarity, name = max(((_jaccard(grams, known[name]), name) for name in names), default=(0.0, ""))
        if similarity >= threshold:
            twins.append(Twin(task.id, name, similarity))
    return twins


def _candidates(grams: frozenset[Gram], index: dict[Gram, list[str]], threshold: float) -> set[str]:
    # Prefix filtering: a set this similar must share at least one of the rarest n - ceil(t n) + 1 grams.
    rare = sorted(grams, key=lambda gram: len(index.get(gram, ())))[
        : len(grams) - math.ceil(threshold * len(grams)) + 1
    ]
    return {name for gram in rare for name in index.get(gram, ())}


def _jaccard(one: frozenset[Gram], other: frozenset[Gram]) -> float:
    return len(one & other) / len(one | other)


def refuse_twins(train: Iterable[Task], held_out: Iterable[Task], *, threshold: float = 0.9) -> None:
    """Raise if any held-out task duplicates a training task.

    Raises:
        ContaminationError: naming the first pair and how many there are.
    """
    twins = find_twins(train, held_out, threshold=threshold)
    if twins:
        first = twins[0]
        raise ContaminationError(
            f"held-out task {first.held_out!r} duplicates training task {first.train!r} "
            f"(similarity {first.similarity:.2f}), one of {len(twins)} such pairs; "
            "remove the pair from one of the splits"
        )
