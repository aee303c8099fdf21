"""Multi-hop questions from any linked corpus, every answer derived again from the question's text alone.

A question is a chain of sentences of the corpus in which the things that are to be found out stand as [1], [2], …:
"Acme was founded by [1]. [1] was born in [2]. What is [2]?"
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentgym.graders.answer_text import normalised
from agentgym_envs.code.splits import digest
from agentgym_envs.search.passages import Passage

_BLANK = re.compile(r"\[(\d+)\]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_ENDING = re.compile(r"\s*What is \[(\d+)\]\?$")
_SHORTEST, _LONGEST = 3, 80
_MAX_SENTENCE = 300
_TRIES = 60


@dataclass(frozen=True, slots=True)
class Step:
    """One sentence that tells of two things."""

    passage: str
    """The id of the passage that holds it."""
    sentence: str
    subject: str
    other: str


@dataclass(frozen=True, slots=True)
class Question:
    """A chain of steps, and what it asks for."""

    text: str
    answer: str
    steps: tuple[Step, ...]

    def row(self) -> dict[str, Any]:
        """Return the question in the form that `file_tasks` reads."""
        decomposition = []
        for place, step in enumerate(self.steps):
            asked = step.sentence.replace(step.other, "what")
            known = asked.replace(step.subject, f"#{place}") if place else asked
            decomposition.append({"question": known, "answer": step.other, "gold_id": step.passage})
        return {
            "id": f"search/{digest(self.text)}",
            "question": self.text,
            "answers": [self.answer],
            "gold_ids": list(dict.fromkeys(one.passage for one in self.steps)),
            "decomposition": decomposition,
        }


class Generator:
    """Makes questions from passages that name each other by their titles."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        """Read the corpus once; passages without a usable title are sources of nothing."""
        self.dropped: Counter[str] = Counter()
        """Why chains were not made into questions, and how often."""
        kept = list(passages)
        titles = Counter(normalised(one.title) for one in kept)
        self._passages = {one.title: one for one in kept if titles[normalised(one.title)] == 1 and _usable(one.title)}
        by_id = {one.id: one.title for one in self._passages.values()}
        self._steps: dict[str, list[Step]] = {}
        self._fillers: dict[str, set[str]] = defaultdict(set)
        mentions = None if any(one.links for one in kept) else _Mentions(self._passages)
        for one in kept:
            linked = mentions.of(one.text) if mentions else [by_id.get(name, name) for name in one.links]
            self._read(one, [name for name in dict.fromkeys(linked) if name in self._passages])
        self._starts = sorted(self._steps)

    def generate(self, count: int, *, hops: int, seed: int) -> Iterator[Question]:
        """Yield up to `count` different questions of so many hops; fewer where the corpus has no more to ask.

        What comes of a chain but is wrong, ambiguous or answered too early is dropped, and counted in `dropped`.
        """
        rng = np.random.default_rng((seed, hops))
        seen: set[str] = set()
        for _ in range(_TRIES * count):
            if len(seen) == count or not self._starts:
                return
            chain = self._chain(rng, hops)
            reason = "the chain ends early" if chain is None else self._problem(chain)
            if chain is None or reason:
                self.dropped[str(reason)] += 1
                continue
            question = Question(text_of(chain), chain[-1].other, chain)
            if question.text in seen:
                self.dropped["it was asked before"] += 1
                continue
            seen.add(question.text)
            yield question

    def derive(self, text: str) -> str | None:
        """Return the answer to a question, from its text and the corpus alone; None if it is not the only one."""
        ending = _ENDING.search(text)
        if ending is None:
            return None
        known: dict[str, str] = {}
        for sentence in text[: ending.start()].split("\n"):
            filled = _BLANK.sub(lambda found: known.get(found[1], found[0]), sentence)
            blanks = _BLANK.findall(filled)
            if len({*blanks}) != 1:
                return None
            fillers = self._fillers.get(_BLANK.sub("[]", filled), set())
            if len(fillers) != 1:
                return None
            known[blanks[0]] = next(iter(fillers))
        return known.get(ending[1])

    def _read(self, passage: Passage, linked: Sequence[str]) -> None:
        own = passage.title
        for sentence in sentences(passage.text):
            named = [name for name in (own, *linked) if name in self._passages and _holds(sentence, name)]
            for name in named:
                self._fillers[_masked(sentence, name)].add(name)
            if own in named:
                for other in named[1:]:
                    if own not in other and other not in own:
                        self._steps.setdefault(own, []).append(Step(passage.id, sentence, own, other))

    def _chain(self, rng: np.random.Generator, hops: int) -> tuple[Step, ...] | None:
        at = self._starts[int(rng.integers(len(self._starts)))]
        chain: list[Step] = []
        visited = {at}
        while len(chain) < hops:
            ways = [one for one in self._steps.get(at, ()) if one.other not in visited]
            if not ways:
                return None
            chain.append(ways[int(rng.integers(len(ways)))])
            at = chain[-1].other
            visited.add(at)
        return tuple(chain)

    def _problem(self, chain: tuple[Step, ...]) -> str | None:
        """Return why a chain is no question: its answer shows, is near without the way, or cannot be derived again."""
        text, answer = text_of(chain), chain[-1].other
        if any(_holds(text, step.other) for step in chain):
            return "the question names what it asks for"
        first = self._passages[chain[0].subject]
        if len(chain) > 1 and _holds(f"{first.title}\n{first.text}", answer):
            return "the first passage names the answer"
        found = self.derive(text)
        if found is None:
            return "another thing fits too"
        return None if found == answer else "it has another answer"


class _Mentions:
    """Finds titles in texts, for corpora without links; the longest title at a place counts."""

    def __init__(self, titles: Iterable[str]) -> None:
        self._by_word: dict[str, list[str]] = defaultdict(list)
        for title in sorted(titles, key=lambda one: (-len(one), one)):
            self._by_word[title.split()[0]].append(title)

    def of(self, text: str) -> list[str]:
        """Return the titles that a text names, in its order."""
        found, end = [], 0
        for word in re.finditer(r"\S+", text):
            bare = word[0].lstrip("\"'(")
            start = word.end() - len(bare)
            keys = (bare, bare.rstrip(".,;:!?)\"'"))
            near = (title for key in dict.fromkeys(keys) for title in self._by_word.get(key, ()))
            title = next((one for one in near if text.startswith(one, start)), None)
            if title is not None and start >= end and _holds(text[start : start + len(title) + 1], title):
                found.append(title)
                end = start + len(title)
        return found


def text_of(chain: Sequence[Step]) -> str:
    """Return the question that a chain asks."""
    lines = []
    for place, step in enumerate(chain, start=1):
        line = _replaced(step.sentence, step.other, f"[{place}]")
        lines.append(_replaced(line, step.subject, f"[{place - 1}]") if place > 1 else line)
    return "\n".join(lines) + f"\nWhat is [{len(chain)}]?"


def sentences(text: str) -> list[str]:
    r"""Return the sentences of a text that can stand in a question: on one line, and not too long.

    >>> sentences("Lima is in Peru. It has 10 million people, see e.g. [1].\nThe end.")
    ['Lima is in Peru.', 'The end.']
    """
    found = [one.strip() for line in text.split("\n") for one in _SENTENCE.split(line)]
    return [one for one in found if one and len(one) <= _MAX_SENTENCE and not _BLANK.search(one) and "[]" not in one]


def summary(made: int, dropped: Mapping[str, int]) -> list[str]:
    """Return lines that tell what became of every chain that was tried."""
    return [f"{made} questions", *(f"{count} dropped: {why}" for why, count in sorted(dropped.items()))]


def _usable(title: str) -> bool:
    return _SHORTEST <= len(title) <= _LONGEST and bool(normalised(title)) and not _BLANK.search(title)


def _holds(text: str, name: str) -> bool:
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _replaced(text: str, name: str, by: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", by, text)


def _masked(sentence: str, name: str) -> str:
    return _replaced(sentence, name, "[]")
