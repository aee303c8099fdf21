"""Continuous batching: requests join and leave the running batch at any token, each over its own keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation
from agentgym_trainers.engines.direct import agrees, decode, is_plain
from agentgym_trainers.engines.drafts import Drafter
from agentgym_trainers.engines.prefixes import PrefixStore
from agentgym_trainers.engines.sampler import Drawing, Request, Row
from agentgym_trainers.engines.slots import KeysValues, SlotCache, TokenPlan

Result = tuple[Request, Generation | Exception]
_PADDING = 64
"""Tokens of padding that cost less than another batch does."""
_AHEAD = 32
"""Tokens for which room is made before they are sampled: a short turn then copies nothing to make room."""
_LOGITS = 1 << 24
"""Scores that may exist at once for the sake of guesses: a large batch over a large vocabulary guesses none."""
_SCORES = 1 << 22
"""Attention scores of a head of keys that may exist at once, where no kernel splits them up."""


class ContinuousBatch:
    """The running batch of one model. Row i of `rows` is row i of the cache."""

    def __init__(
        self,
        model: Any,
        prefixes: PrefixStore,
        prefill_tokens: int = 8192,
        *,
        draft_tokens: int = 0,
        autocast: bool = False,
    ) -> None:
        """Take a model and what sessions remember.

        Args:
            model: of whose layers all keep keys and values.
            prefixes: what sessions remember.
            prefill_tokens: prompt tokens to compute at once, padding included.
            draft_tokens: tokens to guess for each row, at most.
            autocast: the caller has it on, and the model alone knows what that means.
        """
        self.rows: list[Row] = []
        self._model = model
        self._prefixes = prefixes
        self._prefill_tokens = prefill_tokens
        self._cache = SlotCache(model)
        self._autocast = autocast
        self._draft_tokens = draft_tokens
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
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
        self.look_again()
        with torch.inference_mode():
            rows, self.rows, self._drawing = self.rows, [], None
            self._cache.clear()
            return self._join(rows, version)

    def look_again(self) -> None:
        """Ask anew how the model may be computed: something may have been hooked into it."""
        self._plain = None

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
        for index, (_, found) in enumerate(work):
            if found:
                self._cache.load(start + index, *found)
        new = [row.context[had:] for row, had in zip(leaders, known, strict=True)]
        logits_BV = self._compute(start, new, known, last=True)
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
            row.drafter = Drafter(row.context, self._draft_tokens) if self._draft_tokens else None
        Drawing(joined, logits_BV.device).draw(logits_BV[source_B], version)

    def _decode(self, version: int) -> None:
        each = self._affordable_drafts()
        drafts = [_draft(row, each) for row in self.rows]
        first = [row.length for row in self.rows]
        self._cache.fit(len(self.rows), max(begin + 1 + len(draft) for begin, draft in zip(first, drafts, strict=True)))
        new = [[row.ids[-1], *draft] for row, draft in zip(self.rows, drafts, strict=True)]
        logits_TV = self._compute(0, new, first)
        self._drawing = self._drawing or Drawing(self.rows, logits_TV.device)
        had = [len(row.ids) for row in self.rows]
        self._drawing.draw_all(logits_TV, drafts, version)
        for row, before in zip(self.rows, had, strict=True):
            row.length += len(row.ids) - before

    def _compute(self, start: int, new: Sequence[Sequence[int]], first: Sequence[int], *, last: bool = False) -> Tensor:
        """Return the scores [T, V] after every new token of rows from `start` on, or [B, V] after each row's last."""
        counts = [len(one) for one in new]
        if self._is_plain() and _is_short(counts, first):
            plan = TokenPlan(start, counts, first)
            ids_T = torch.tensor(list(chain.from_iterable(new)))
            return decode(self._model, self._cache, ids_T, plan, plan.last_B if last else None)
        longest = max(counts)
        ids_BQ = torch.zeros(len(new), longest, dtype=torch.long)
        position_BQ = torch.full_like(ids_BQ, -1)
        for index, (ids, count, begin) in enumerate(zip(new, counts, first, strict=True)):
            ids_BQ[index, -count:] = torch.tensor(ids)
            position_BQ[index, -count:] = torch.arange(begin, begin + count)
        logits_BQV = self._forward(start, ids_BQ, position_BQ, 1 if last else longest)
        if last or longest == 1:
            return logits_BQV[:, -1]
        return logits_BQV[(position_BQ >= 0).to(logits_BQV.device)]

    def _affordable_drafts(self) -> int:
        """Return how many tokens each row may guess so that the scores of all of them fit into memory."""
        width = max(row.length for row in self.rows) + 1 + self._draft_tokens
        tokens = min(_LOGITS // self._vocabulary, _SCORES // width)
        return max(0, tokens // len(self.rows) - 1)

    def _is_plain(self) -> bool:
        """Whether the model may be computed directly."""
        if self._plain is None:
            self._plain = not self._autocast and is_plain(self._model) and self._agrees
        return self._plain

    @cached_property
    def _agrees(self) -> bool:
        return agrees(self._model)

    def _forward(self, start: int, ids_BQ: Tensor, position_BQ: Tensor, keep: int) -> Tensor:
        device = self._model.device
        plan = self._cache.plan(start, position_BQ.to(device), self._model.dtype)
        out = self._model(input_ids=ids_BQ.to(device), use_cache=True, logits_to_keep=keep, **plan)
        logits_BQV: Tensor = out.logits
        return logits_BQV

    def _leave(self, version: int) -> list[Result]:
        """Take out the rows that are done, and close up: those that stay at the end move into the gaps."""
        done: list[Result] = []
        leaving = [place for place, row in enumerate(self.rows) if row.stop is not None or row.request.aborted]
        for place in leaving:
            row = self.rows[place]
            done.append((row.request, row.generation(version)))
            known = row.context[: row.length]
            self._prefixes.keep(row.request.session, known, partial(self._cache.save, place, row.length))
        for place in reversed(leaving):  # from behind, so that whatever moves stays
            last = self.rows.pop()
            if place < len(self.rows):
                self._cache.move(len(self.rows), place, last.length)
                self.rows[place] = last
        if leaving:
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


def _draft(row: Row, most: int) -> list[int]:
    left = row.request.sampling.max_tokens - len(row.ids)
    return [] if row.drafter is None else row.drafter.guess(min(most, left - 1))


def _is_short(counts: Sequence[int], first: Sequence[int]) -> bool:
    """Whether all scores may exist at once; what is asked alone decides, so that a resumed run computes the same."""
    longest = max(counts)
    width = max(begin + count for begin, count in zip(first, counts, strict=True))
    return longest == 1 or len(counts) * longest * width <= _SCORES


def _failures(rows: Sequence[Row], error: Exception) -> list[Result]:
    failure = InfrastructureError(f"the model failed on a batch of {len(rows)}: {error}")
    failure.__cause__ = error
    return [(row.request, failure) for row in rows]
