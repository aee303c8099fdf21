"""CaRR's rubric: which facts a right answer really rests on, by what was cited and had really been seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agentgym.graders.answer_text import normalised
from agentgym_envs.search.spec import Fact


@dataclass(frozen=True, slots=True)
class Rubric:
    """How well an answer is supported, each between 0 and 1."""

    facts: float
    """The share of facts that are named, supported by a citation, and connected to the answer."""
    precision: float
    """The share of the citations that were seen and support a fact that counts."""

    @property
    def score(self) -> float:
        """Their product: neither citing little nor citing everything pays."""
        return self.facts * self.precision


def judge(facts: Sequence[Fact], said: str, cited: Collection[str], seen: Collection[str]) -> Rubric:
    """Judge citations against the facts behind a question.

    A fact is *named* if the assistant's own words hold the entity that it reveals, *supported* if a cited passage
    that was really seen in this episode tells it, and *connected* if it is one of the last facts, or a fact that
    counts uses it (Chaining the Evidence: Robust Reinforcement Learning for Deep Search Agents with Citation-Aware
    Rubric Rewards). A support that leads nowhere counts nothing.

    Args:
        facts: in order; a fact uses only earlier ones.
        said: everything that the assistant wrote, its answer included.
        cited: ids of passages.
        seen: ids of the passages that a tool showed.
    """
    words = f" {normalised(said)} "
    valid = {*cited} & {*seen}
    held = [
        bool(valid & {*one.documents}) and (not one.reveals or f" {normalised(one.reveals)} " in words) for one in facts
    ]
    users: list[list[int]] = [[at for at, one in enumerate(facts) if place in one.uses] for place in range(len(facts))]
    counts = [False] * len(facts)
    for place in reversed(range(len(facts))):
        counts[place] = held[place] and (not users[place] or any(counts[at] for at in users[place]))
    supporting = {name for one, good in zip(facts, counts, strict=True) if good for name in one.documents} & valid
    return Rubric(
        facts=sum(counts) / len(facts) if facts else 0.0,
        precision=len(supporting) / len({*cited}) if cited else 0.0,
    )
