"""ZeroSearch's curriculum: search results grow noisier while training goes on."""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from agentgym.types import Record
from agentgym_envs.search.retriever import MAX_K, Hit, Retriever

Share = Annotated[float, Field(ge=0, le=1)]


class NoiseSchedule(Record):
    """The share of results that are replaced, over training.

    `start + (base^x - 1) / (base - 1) * (end - start)` at progress x from 0 to 1
    (ZeroSearch: Incentivize the Search Capability of LLMs without Searching).

    >>> schedule = NoiseSchedule(start=0.0, end=0.5)
    >>> [round(schedule.rate(progress), 3) for progress in (0.0, 0.5, 1.0)]
    [0.0, 0.167, 0.5]
    """

    start: Share
    end: Share
    base: Annotated[float, Field(gt=1)] = 4.0

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"wanted end of at least start, found {self.end:g} below {self.start:g}")
        return self

    def rate(self, progress: float) -> float:
        """Return the share at a progress from 0 to 1."""
        risen: float = (self.base ** min(max(progress, 0.0), 1.0) - 1.0) / (self.base - 1.0)
        return self.start + risen * (self.end - self.start)


def with_noise(
    retriever: Retriever, query: str, hits: list[Hit], rate: float, keep_out: frozenset[str], rng: np.random.Generator
) -> list[Hit]:
    """Replace each hit with probability `rate` by a distractor: a passage that the same query finds far below.

    Gold passages are never used as distractors. Where the query finds too little, a hit is left out instead.
    """
    replaced = rng.random(len(hits)) < rate
    if not replaced.any():
        return hits
    shown = {hit.passage.id for hit in hits} | keep_out
    deep = [hit for hit in retriever.search(query, MAX_K)[MAX_K // 2 :] if hit.passage.id not in shown]
    order = iter(rng.permutation(len(deep)))
    noisy = []
    for hit, out in zip(hits, replaced, strict=True):
        if not out:
            noisy.append(hit)
        elif (place := next(order, None)) is not None:
            noisy.append(Hit(deep[int(place)].passage, hit.score))
    return noisy
