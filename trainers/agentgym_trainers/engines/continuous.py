"""Continuous batching: requests join and leave the running batch at any token, each over its own keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation
from agentgym_trainers.engines.direct import Decode, agrees, decode, is_plain
from agentgym_trainers.engines.prefixes import PrefixStore
from agentgym_trainers.engines.sampler import Drawing, Request, Row
from agentgym_trainers.engines.slots import KeysValues, SlotCache

Result = tuple[Request, Generation | Exception]
_PADDING = 64
"""Tokens of padding that cost less than another batch does."""
_AHEAD = 32
"""Tokens for which room is made before they are sampled: a short turn then copies nothing to make room."""


class ContinuousBatch:
    """The running batch of one model. Row i of `rows` is row i of the cache."""

    def __init__(
        self, model: Any, prefixes: PrefixStore, prefill_tokens: int = 8192, *, autocast: bool = False
    ) -> None:
        """Take a model, what sessions remember, and how many prompt tokens to compute at once, padding included.

        With `autocast`, the caller has it on, and the model alone knows what that means.
        """
        self.rows: list[Row] = []
        self._model = model
        self._prefixes = prefixes
        self._prefill_tokens = prefill_tokens
        self._cache = SlotCache(model)
        self._autocast = autocast
        self._direct = partial(decode, model, self._cache)
        self._plain: bool | None = None
        self._drawing: Drawing | None = None

    def tick(self, joining: Sequence[Request], version: int) -> list[Result]:
        """Let requests join, sample one token for every row, and return those that are done.

        A request whose prompt cannot be computed fails alone; where the batch fails, so do all of its rows.
        """
        with torch.inference_mode():
            done = self._join([Row.of(request) for request in joining], version)
            done += self._leave(version)
            if self.rows:
                try:
                    self._decode(version)
                except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
                    return done + self._fail(error)
            return done + self._leave(version)

    def restart(self, version: int) -> list[Result]:
        """Compute the keys and values of every row anew: the weights have changed.

        Nothing that old weights computed stays behind, not even where it is masked: not a number would spread.
        """
        self._prefixes.clear()
        with torch.inference_mode():
            rows, self.rows, self._drawing = self.rows, [], None
            self._cache.clear()
            return self._join(rows, version)

    def end(self, version: int) -> list[Result]:
        """Abort every row."""
        for row in self.rows:
            row.request.aborted = True
        return self._leave(version)

    def clear(self) -> None:
        """Give the memory back in which rows were: the next ones make room anew."""
        if not self.rows:
            self._cache.clear()

    def _join(self, rows: list[Row], version: int) -> list[Result]:
        """Compute contexts that nobody has computed yet, shortest first; rows with one context share the work."""
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            alike.setdefault(tuple(row.context), []).append(row)
        found = {context: self._prefixes.find(same[0].request.session, context) for context, same in alike.items()}
        new = {context: len(context) - (known[1] if known else 0) for context, known in found.items()}
        failed: list[Result] = []
        parts = _portions(sorted(alike, key=lambda context: new[context]), new, self._prefill_tokens)
        rooms = [_room(row) for row in rows]
        together = bool(rows) and max(rooms) * len(rooms) <= 2 * sum(rooms)  # or a long one might cost all their room
        self._plain = None
        for index, part in enumerate(parts):
            start = len(self.rows)
            try:
                self._make_room(
                    rows if together and index == 0 else [row for context in part for row in alike[context]]
                )
                self._prefill([(alike[context], found[context]) for context in part], version)
            except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
                del self.rows[start:]
                if not self.rows:
                    self._cache.clear()
                failed += _failures([row for context in part for row in alike[context]], error)
        return failed

    def _make_room(self, joining: Sequence[Row]) -> None:
        self._cache.fit(len(self.rows) + len(joining), max(_room(row) for row in [*self.rows, *joining]))

    def _prefill(self, work: Sequence[tuple[list[Row], tuple[KeysValues, int] | None]], version: int) -> None:
        start = len(self.rows)
        leaders = [rows[0] for rows, _ in work]
        known = [found[1] if found else 0 for _, found in work]
        new = [len(row.context) - had for row, had in zip(leaders, known, strict=True)]
        ids_BQ = torch.zeros(len(work), max(new), dtype=torch.long)
        position_BQ = torch.full_like(ids_BQ, -1)
        for index, (row, had, count) in enumerate(zip(leaders, known, new, strict=True)):
            ids_BQ[index, -count:] = torch.tensor(row.context[had:])
            position_BQ[index, -count:] = torch.arange(had, had + count)
            if found := work[index][1]:
                self._cache.load(start + index, *found)
        logits_BV = self._forward(start, ids_BQ, position_BQ)
        self.rows += leaders
        source_B = list(range(len(leaders)))
        for index, (rows, _) in enumerate(work):
            for follower in rows[1:]:
                self._cache.move(start + index, len(self.rows), len(follower.context))
                self.rows.append(follower)
                source_B.append(index)
        self._drawing = None
        joined = self.rows[start:]
        for row in joined:
            row.length = len(row.context)
        Drawing(joined, logits_BV.device).draw(logits_BV[source_B], version)

    def _decode(self, version: int) -> None:
        ids_B1 = torch.tensor([[row.ids[-1]] for row in self.rows])
        position_B1 = torch.tensor([[row.length] for row in self.rows])
        self._cache.fit(len(self.rows), max(row.length for row in self.rows) + 1)
        logits_BV = self._decoder()(ids_B1, position_B1)
        for row in self.rows:
            row.length += 1
        self._drawing = self._drawing or Drawing(self.rows, logits_BV.device)
        self._drawing.draw(logits_BV, version)

    def _decoder(self) -> Decode:
        """Return what decodes; whether that may be done directly is asked again whenever rows have joined."""
        if self._plain is None:
            self._plain = not self._autocast and is_plain(self._model) and self._agrees
        return self._direct if self._plain else partial(self._forward, 0)

    @cached_property
    def _agrees(self) -> bool:
        return agrees(self._model)

    def _forward(self, start: int, ids_BQ: Tensor, position_BQ: Tensor) -> Tensor:
        device = self._model.device
        plan = self._cache.plan(start, position_BQ.to(device), self._model.dtype)
        out = self._model(input_ids=ids_BQ.to(device), use_cache=True, logits_to_keep=1, **plan)
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV

    def _leave(self, version: int) -> list[Result]:
        """Take out the rows that are done, and close up."""
        done: list[Result] = []
        index = 0
        while index < len(self.rows):
            row = self.rows[index]
            if row.stop is None and not row.request.unwanted:
                index += 1
                continue
            done.append((row.request, row.generation(version)))
            known = row.context[: row.length]
            self._prefixes.keep(row.request.session, known, partial(self._cache.save, index, row.length))
            last = self.rows.pop()
            if last is not row:
                self._cache.move(len(self.rows), index, last.length)
                self.rows[index] = last
            self._drawing = None
        return done

    def _fail(self, error: Exception) -> list[Result]:
        rows, self.rows, self._drawing = self.rows, [], None
        self._cache.clear()
        return _failures(rows, error)


def _portions(
    contexts: Sequence[tuple[int, ...]], new: dict[tuple[int, ...], int], budget: int
) -> list[list[tuple[int, ...]]]:
    """Cut contexts, ordered by their new tokens, where a batch would exceed the budget or compute much padding."""
    cuts, tokens = [0], 0
    for index, context in enumerate(contexts):
        cells = new[context] * (index - cuts[-1] + 1)
        tokens += new[context]
        if cells > tokens and (cells > budget or cells > tokens + tokens // 4 + _PADDING):
            cuts.append(index)
            tokens = new[context]
    return [list(contexts[start:stop]) for start, stop in pairwise([*cuts, len(contexts)])] if contexts else []


def _room(row: Row) -> int:
    """Return how many tokens a row is likely to hold."""
    return len(row.context) + min(_AHEAD, row.request.sampling.max_tokens - len(row.ids))


def _failures(rows: Sequence[Row], error: Exception) -> list[Result]:
    failure = InfrastructureError(f"the model failed on a batch of {len(rows)}: {error}")
    failure.__cause__ = error
    return [(row.request, failure) for row in rows]
