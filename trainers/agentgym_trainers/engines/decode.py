"""Sample fixed batches over transformers' own cache: for models that keep more than keys and values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from agentgym.policy import Generation
from agentgym_trainers.engines.branches import Branch, draw_branches
from agentgym_trainers.engines.sampler import Request, Row
from agentgym_trainers.engines.slots import cache_argument, own_cache

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4
_NOISE = 4.0
"""How many times a model's own rounding a difference may be."""


class FixedBatches:
    """Samples from one model: rows of all lengths together if it ignores padding, else only rows of one length.

    What a model can be given is tried out once, before the first batch for which it matters.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, requests: Sequence[Request], version: int, closing: Callable[[], bool]) -> list[Generation]:
        """Sample until every request is done; those that are aborted, and all when closing, stop with `abort`.

        Of a batch that has not begun by then, they are computed no token.
        """
        made: dict[Request, Generation] = {}
        for batch in self._batches(requests):
            begun = [] if closing() else [request for request in batch if not request.aborted]
            if begun:
                shrinks = len(begun) == 1 or self._may_shrink
                fixed = FixedBatch(self._model, begun, shrinks=shrinks)
                made |= zip(begun, fixed.run(version, closing), strict=True)
        return [made.get(request, Generation([], [], "abort", version)) for request in requests]

    def _batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        by_length: dict[int, list[Request]] = {}
        for request in requests:
            by_length.setdefault(len(request.prompt_ids), []).append(request)
        return [list(requests)] if len(by_length) > 1 and self._may_pad else list(by_length.values())

    @cached_property
    def _may_pad(self) -> bool:
        if ignores_padding(self._model):
            return True
        logger.warning("%s reads padding: only prompts of one length are batched", type(self._model).__name__)
        return False

    @cached_property
    def _may_shrink(self) -> bool:
        if lets_rows_go(self._model):
            return True
        logger.warning("%s lets no row go: a batch is computed whole until its end", type(self._model).__name__)
        return False


class FixedBatch:
    """A batch that nobody joins, and that shrinks as its rows finish if the model lets them go."""

    def __init__(self, model: Any, requests: Sequence[Request], *, shrinks: bool = True) -> None:
        self._rows = [Row.of(request) for request in requests]
        self._held = list(self._rows)
        self._live = list(range(len(requests)))
        """The places of rows that go on, among those that are held."""
        self._shrinks = shrinks
        self._context = _Context(model, [request.prompt_ids for request in requests])

    def run(self, version: int, closing: Callable[[], bool]) -> list[Generation]:
        """Sample until every row has stopped; aborted rows, and all rows when closing, stop with `abort`."""
        with torch.inference_mode():
            while self._live:
                rows = [self._held[place] for place in self._live]
                draw_branches(self._context.read()[self._live], [Branch([row]) for row in rows], version)
                for row in rows:
                    if row.stop is None and (closing() or row.request.aborted):
                        row.stop = "abort"
                self._go_on()
        return [row.generation(version) for row in self._rows]

    def _go_on(self) -> None:
        """Give the context the new tokens; a row that has stopped is let go, or reads on what nobody draws from."""
        self._live = [place for place in self._live if self._held[place].stop is None]
        if not self._live:
            return
        keep = None
        if self._shrinks and len(self._live) < len(self._held):
            keep, self._held = self._live, [self._held[place] for place in self._live]
            self._live = list(range(len(keep)))
        self._context.extend([row.ids[-1] for row in self._held], keep)


class _Context:
    """What the rows of a batch have read so far, padded on the left where their prompts differ in length."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._cache = own_cache(model)
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        ids_BL, mask_BL = torch.zeros(2, len(prompts), width, dtype=torch.long)
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            ids_BL[row, width - length :] = torch.tensor(prompt)
            mask_BL[row, width - length :] = 1
        self._ids_BL = ids_BL.to(model.device)
        self._position_BL = (mask_BL.cumsum(-1) - 1).clamp_(min=0).to(model.device)
        # Some models lay a mask over whatever they are given, be it a single new token.
        self._mask_BL = None if min(lengths) == width else mask_BL.to(model.device)

    def read(self) -> Tensor:
        """Compute what is new; return the scores [B, V] of what comes next."""
        out = self._model(
            input_ids=self._ids_BL,
            attention_mask=self._mask_BL,
            position_ids=self._position_BL,
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(self._model): self._cache},
        )
        logits_BV: Tensor = out.logits[:, -1]
        return logits_BV

    def extend(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> None:
        """Append one token to each row, after all but some rows were dropped."""
        self._position_BL = self._position_BL[:, -1:] + 1
        if rows is not None:
            row_B = torch.tensor(rows, device=self._position_BL.device)
            self._cache.reorder_cache(row_B)  # `batch_select_indices` is unknown to layers that keep states
            self._position_BL = self._position_BL[row_B]
            self._mask_BL = None if self._mask_BL is None else self._mask_BL[row_B]
        self._ids_BL = torch.tensor(tokens, device=self._position_BL.device)[:, None]
        if self._mask_BL is not None:
            self._mask_BL = torch.nn.functional.pad(self._mask_BL, (0, 1), value=1)


def ignores_padding(model: Any) -> bool:
    """Whether a model scores two prompts of different lengths, and a token more, together as each alone.

    A layer that mixes neighbours or hands on a state reads the padding before a row, unless it masks that itself.
    """
    prompts, tokens = [[1, 2, 3, 1, 2, 3, 1, 2], [2, 3]], [3, 1]
    alone = [_two_scores(model, [prompt], [token]) for prompt, token in zip(prompts, tokens, strict=True)]
    return _agree(model, _two_scores(model, prompts, tokens), torch.cat(alone, 1))


def lets_rows_go(model: Any) -> bool:
    """Whether a model scores a row's next token alike whether or not the row before it has left the batch.

    A layer may keep a state on itself, where the cache that loses a row does not reach it.
    """
    prompts, tokens = [[1, 2, 3, 1], [2, 3, 1, 3]], [3, 1]
    return _agree(model, *(_two_scores(model, prompts, tokens, rows)[1, -1] for rows in ([1], None)))


def _agree(model: Any, found: Tensor, wanted: Tensor) -> bool:
    """Whether scores differ by little more than rounding does: a prompt's alone from its in a batch without padding."""
    alone_2BV, pair_2BV = (_two_scores(model, [[1, 2, 3, 1]] * rows, [3] * rows) for rows in (1, 2))
    noise = float((pair_2BV - alone_2BV).abs().max())
    last_place = max(torch.finfo(one).eps for one in (model.dtype, wanted.dtype)) * float(wanted.abs().max())
    return float((found - wanted).abs().max()) <= _NOISE * noise + last_place + _TOLERANCE


def _two_scores(
    model: Any, prompts: Sequence[Sequence[int]], tokens: Sequence[int], rows: Sequence[int] | None = None
) -> Tensor:
    """Return the scores [2, B, V] after prompts, and after one more token each; of all rows, or of those that stay."""
    stay = list(range(len(prompts)) if rows is None else rows)
    with torch.inference_mode():
        context = _Context(model, prompts)
        first_BV = context.read()
        context.extend([tokens[row] for row in stay], rows)
        return torch.stack([first_BV[stay], context.read()])
