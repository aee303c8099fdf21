"""Requests that have read and said the same share one row of the cache: until they part, they are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agentgym_trainers.engines.drafts import Drafter
from agentgym_trainers.engines.sampler import Row, draw


@dataclass(eq=False, slots=True)
class Branch:
    """Rows with one context and one distribution to draw from, each with random numbers of its own."""

    rows: list[Row]
    drafter: Drafter | None = None
    guess: list[int] = field(default_factory=list)
    """What may come next, computed along with the last token."""

    @classmethod
    def all_of(cls, rows: Iterable[Row]) -> list[Branch]:
        """Put rows together that may share a row of the cache."""
        alike: dict[tuple[tuple[int, ...], float, float], Branch] = {}
        for row in rows:
            sampling = row.request.sampling
            key = tuple(row.context), sampling.temperature, sampling.top_p
            alike.setdefault(key, cls([])).rows.append(row)
        return list(alike.values())

    @property
    def context(self) -> list[int]:
        """What all rows have read and said."""
        return self.rows[0].context

    @property
    def session(self) -> str:
        """Whose remembered tokens it begins with, of its rows'."""
        return self.rows[0].request.session

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the cache: all but the last."""
        return self.rows[0].length

    def look_ahead(self, most: int) -> None:
        """Guess what comes next, no further than the row goes that may say most."""
        left = max(row.left for row in self.rows)
        self.guess = [] if self.drafter is None else self.drafter.guess(min(most, left - 1))

    def part(self) -> list[Branch]:
        """Keep the rows that drew what the first one drew, and return branches of the others."""
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in self.rows:
            alike.setdefault(tuple(row.drawn), []).append(row)
            row.drawn = []
        guessed, self.guess = len(self.guess), []
        (said, self.rows), *others = alike.items()
        made = [Branch(rows, self.drafter and self.drafter.copy().learn(drawn, guessed)) for drawn, rows in others]
        if self.drafter is not None:
            self.drafter.learn(said, guessed)
        return made


def draw_branches(logits_TV: Tensor, branches: Sequence[Branch], version: int) -> None:
    """Give every row its next token, and another one after each guessed token that it drew.

    Args:
        logits_TV: of each branch, after its last token and after each guessed one.
        branches: from whose distributions all of their rows draw.
        version: of the weights.
    """
    counts = [1 + len(branch.guess) for branch in branches]
    starts = np.cumsum([0, *counts]).tolist()
    uniform_TK = np.zeros((starts[-1], max(len(branch.rows) for branch in branches)))
    for branch, start, count in zip(branches, starts, counts, strict=False):
        for place, row in enumerate(branch.rows):
            numbers = row.uniforms[len(row.ids) : len(row.ids) + count]
            uniform_TK[start : start + len(numbers), place] = numbers
    device, count_B = logits_TV.device, torch.tensor(counts)
    samplings = [branch.rows[0].request.sampling for branch in branches]
    temperature_T, top_p_T = (
        torch.tensor(one).repeat_interleave(count_B)
        for one in ([one.temperature for one in samplings], [one.top_p for one in samplings])
    )
    token_TK, logp_TK = draw(logits_TV, temperature_T, top_p_T, torch.from_numpy(uniform_TK).to(device))
    tokens_KT, logprobs_KT = token_TK.T.tolist(), logp_TK.T.tolist()
    for branch, start in zip(branches, starts, strict=False):
        for row, tokens, logprobs in zip(branch.rows, tokens_KT, logprobs_KT, strict=False):
            stop = start + _agreed(tokens, start, branch.guess[: row.left - 1], row.request.stop_ids)
            row.take(tokens[start:stop], logprobs[start:stop], version)


def _agreed(drawn: Sequence[int], start: int, guess: Sequence[int], stop_ids: frozenset[int]) -> int:
    """Return how many of the drawn tokens count: up to the first that nobody had guessed, or that is a stop."""
    for place, guessed in enumerate(guess):
        if drawn[start + place] != guessed or guessed in stop_ids:
            return place + 1
    return len(guess) + 1
