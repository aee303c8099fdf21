"""Continuous batching: requests join and leave the running batch at any token, each over its own keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation
from agentgym_trainers.engines.branches import Branch, draw_branches
from agentgym_trainers.engines.direct import agrees, decode, is_plain
from agentgym_trainers.engines.drafts import Drafter
from agentgym_trainers.engines.prefixes import PrefixStore, common
from agentgym_trainers.engines.sampler import Request, Row
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


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What need not be computed of a context."""

    source: KeysValues | Branch
    """Where it lies: remembered, or in the row of somebody who says something."""
    length: int


class ContinuousBatch:
    """The running batch of one model. Branch i of its rows lies in row i of the cache."""

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
        self._branches: list[Branch] = []
        self._model = model
        self._prefixes = prefixes
        self._prefill_tokens = prefill_tokens
        self._cache = SlotCache(model)
        self._autocast = autocast
        self._draft_tokens = draft_tokens
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._plain: bool | None = None
        self._version: int | None = None

    @property
    def rows(self) -> list[Row]:
        """Who is being sampled."""
        return [row for branch in self._branches for row in branch.rows]

    def tick(self, joining: Sequence[Request], version: int) -> list[Result]:
        """Let requests join, sample one token for every row, and more where guessed; return those that are done.

        A request whose prompt cannot be computed fails alone; where the batch fails, so do all of its rows.
        """
        with torch.inference_mode():
            done = self._forget_other_weights(version)
            done += self._join([Row.of(request) for request in joining], version)
            done += self._settle(version)
            if self._branches:
                try:
                    self._decode(version)
                except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
                    return done + self._fail(error, self.rows)
            return done + self._settle(version)

    def restart(self, version: int) -> list[Result]:
        """Compute the keys and values of every row anew: the weights have changed.

        Nothing that old weights computed stays behind, not even where it is masked: not a number would spread.
        """
        self._prefixes.clear()
        self._version = version
        with torch.inference_mode():
            rows, self._branches = self.rows, []
            self._cache.clear()
            failed = self._join(rows, version)
            return failed + self._settle(version)

    def end(self, version: int) -> list[Result]:
        """Abort every row."""
        for row in self.rows:
            row.request.aborted = True
        return self._settle(version)

    def clear(self) -> None:
        """Give the memory back in which rows were: the next ones make room anew."""
        if not self._branches:
            self._cache.clear()

    def _forget_other_weights(self, version: int) -> list[Result]:
        """Drop what weights computed that changed while nobody waited: a row just then dropped may still be here."""
        if version == self._version:
            return []
        self._version = version
        done = self._settle(version)
        self._prefixes.clear()
        return done

    def _join(self, rows: list[Row], version: int) -> list[Result]:
        """Compute contexts that nobody has computed yet, shortest first; rows with one context share the work."""
        if not rows:
            return []
        branches = Branch.all_of(rows)
        running = {}
        if not all(self._prefixes.has(one.session) for one in branches):
            running = {one: np.asarray(one.context[:-1]) for one in self._branches}
        found = {one: self._find(one, running) for one in branches}
        new = {one: 1 + one.length - (known.length if known else 0) for one, known in found.items()}
        failed: list[Result] = []
        parts = _portions(sorted(branches, key=lambda one: new[one]), new, self._prefill_tokens)
        rooms = [_room(one) for one in branches]
        together = bool(rooms) and max(rooms) * len(rooms) <= 2 * sum(rooms)  # or a long one might cost all their room
        self._plain = None
        for index, part in enumerate(parts):
            joining = [row for branch in part for row in branch.rows]
            try:
                self._make_room(branches if together and index == 0 else part)
                self._prefill(part, found, version)
            except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
                if self._branches:
                    self._cache.wipe(len(self._branches))  # not a number would spread to whoever joins next
                else:
                    self._cache.clear()
                failed += _failures(joining, error)
        return failed

    def _make_room(self, joining: Sequence[Branch], gaps: int = 0) -> None:
        """Make room for more branches, so many of which take the place of one that is gone."""
        everybody = [*self._branches, *joining]
        self._cache.fit(len(everybody) - min(gaps, len(joining)), max(_room(one) for one in everybody))

    def _find(self, branch: Branch, running: Mapping[Branch, NDArray[np.int64]]) -> _Beginning | None:
        """Return the longest known beginning of a context; whoever has none of its own may take any other's."""
        known = self._prefixes.find(branch.session, branch.context)
        best = _Beginning(*known) if known else None
        if running and not self._prefixes.has(branch.session):
            wanted = np.asarray(branch.context[:-1])
            lengths = {one: common(computed, wanted) for one, computed in running.items()}
            longest = max(lengths, key=lambda one: lengths[one])
            more = lengths[longest] - (best.length if best else 0)
            if more > 0:
                self._prefixes.hits += more
                return _Beginning(longest, lengths[longest])
        return best

    def _prefill(self, joining: Sequence[Branch], found: dict[Branch, _Beginning | None], version: int) -> None:
        start = len(self._branches)
        known = []
        for place, branch in enumerate(joining, start):
            remembered = found.pop(branch)
            known.append(remembered.length if remembered else 0)
            if remembered is None:
                continue
            if isinstance(remembered.source, Branch):
                self._cache.move(self._branches.index(remembered.source), place, remembered.length)
            else:
                self._cache.load(place, remembered.source, remembered.length)
        new = [branch.context[had:] for branch, had in zip(joining, known, strict=True)]
        logits_BV = self._compute(start, new, known, last=True)
        for branch in joining:
            branch.drafter = Drafter(branch.context, self._draft_tokens) if self._draft_tokens else None
        draw_branches(logits_BV, joining, version)
        self._branches += joining
        for branch in joining:
            for row in branch.rows:
                self._prefixes.let_go(row.request.session)

    def _decode(self, version: int) -> None:
        each = self._affordable_drafts()
        for branch in self._branches:
            branch.look_ahead(each)
        first = [branch.length for branch in self._branches]
        new = [[branch.rows[0].ids[-1], *branch.guess] for branch in self._branches]
        room = max(begin + len(one) for begin, one in zip(first, new, strict=True))
        self._cache.fit(len(self._branches), room)
        draw_branches(self._compute(0, new, first), self._branches, version)

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
        width = max(branch.length for branch in self._branches) + 1 + self._draft_tokens
        tokens = min(_LOGITS // self._vocabulary, _SCORES // width)
        return max(0, tokens // len(self._branches) - 1)

    def _is_plain(self) -> bool:
        """Whether the model may be computed directly; that is asked again whenever rows have joined."""
        if self._plain is None:
            self._plain = not self._autocast and is_plain(self._model) and self._agrees
        return self._plain

    @cached_property
    def _agrees(self) -> bool:
        return agrees(self._model)

    def _forward(self, start: int, ids_BQ: Tensor, position_BQ: Tensor, keep: int) -> Tensor:
        device = self._model.device
        plan = self._cache.plan(start, position_BQ, self._model.dtype, device)
        out = self._model(input_ids=ids_BQ.to(device), use_cache=True, logits_to_keep=keep, **plan)
        logits_BQV: Tensor = out.logits
        return logits_BQV

    def _settle(self, version: int) -> list[Result]:
        """Let rows go that are done, give a row of the cache to each branch that has parted from others, close up."""
        done = [one for place in range(len(self._branches)) for one in self._release(place, version)]
        rows = self.rows
        try:
            self._close_up()
        except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
            return done + self._fail(error, rows)
        return done

    def _close_up(self) -> None:
        gaps = [place for place, branch in enumerate(self._branches) if not branch.rows]
        parted = [(place, other) for place, one in enumerate(self._branches) if one.rows for other in one.part()]
        if parted:
            self._make_room([other for _, other in parted], len(gaps))
        for place, other in parted:
            target = gaps.pop() if gaps else len(self._branches)
            self._cache.move(place, target, other.length)
            self._branches[target : target + 1] = [other]
        for place in reversed(gaps):
            last = self._branches.pop()
            if last.rows:
                self._cache.move(len(self._branches), place, last.length)
                self._branches[place] = last

    def _release(self, place: int, version: int) -> list[Result]:
        """Take those of a branch's rows out that are done; what they have said alike is remembered once."""
        branch, done = self._branches[place], []
        saves: dict[tuple[int, ...], Callable[[], KeysValues]] = {}
        for row in branch.rows:
            if row.stop is None and not row.request.aborted:
                continue
            done.append(row)
            if row.request.forgotten:
                continue
            save = saves.setdefault(tuple(row.drawn), cache(partial(self._cache.save, place, row.length)))
            self._prefixes.keep(row.request.session, row.context[:-1], save)
        if done:
            branch.rows = [row for row in branch.rows if row not in done]
        return [(row.request, row.generation(version)) for row in done]

    def _fail(self, error: Exception, rows: Sequence[Row]) -> list[Result]:
        self._branches = []
        self._cache.clear()
        return _failures(rows, error)


def _portions(branches: Sequence[Branch], new: Mapping[Branch, int], budget: int) -> list[list[Branch]]:
    """Cut branches, ordered by their new tokens, where a batch would exceed the budget or compute much padding."""
    cuts, tokens = [0], 0
    for index, branch in enumerate(branches):
        cells = new[branch] * (index - cuts[-1] + 1)
        tokens += new[branch]
        if cells > tokens and (cells > budget or cells > tokens + tokens // 4 + _PADDING):
            cuts.append(index)
            tokens = new[branch]
    return [list(branches[start:stop]) for start, stop in pairwise([*cuts, len(branches)])] if branches else []


def _room(branch: Branch) -> int:
    """Return how many tokens a row of the cache is likely to hold; one that nobody needs any more holds none."""
    return 1 + branch.length + min(_AHEAD, max(row.left for row in branch.rows)) if branch.rows else 0


def _is_short(counts: Sequence[int], first: Sequence[int]) -> bool:
    """Whether all scores may exist at once; what is asked alone decides, so that a resumed run computes the same."""
    longest = max(counts)
    width = max(begin + count for begin, count in zip(first, counts, strict=True))
    return longest == 1 or len(counts) * longest * width <= _SCORES


def _failures(rows: Sequence[Row], error: Exception) -> list[Result]:
    failure = InfrastructureError(f"the model failed on a batch of {len(rows)}: {error}")
    failure.__cause__ = error
    return [(row.request, failure) for row in rows]
