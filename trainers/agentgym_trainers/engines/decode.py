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
_ROUGH_TOLERANCE = 3e-2
"""Where scores are of a smaller type than float32."""


class FixedBatches:
    """Samples from one model: rows of all lengths together if it ignores padding, else only rows of one length."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, requests: Sequence[Request], version: int, closing: Callable[[], bool]) -> list[Generation]:
        """Sample until every request is done; those that are aborted, and all when closing, stop with `abort`."""
        by_length: dict[int, list[Request]] = {}
        for request in requests:
            by_length.setdefault(len(request.prompt_ids), []).append(request)
        batches = [list(requests)] if len(by_length) > 1 and self._may_pad else list(by_length.values())
        made: dict[Request, Generation] = {}
        for batch in batches:
            made |= zip(batch, FixedBatch(self._model, batch).run(version, closing), strict=True)
        return [made[request] for request in requests]

    @cached_property
    def _may_pad(self) -> bool:
        if ignores_padding(self._model):
            return True
        logger.warning("%s reads padding: only prompts of one length are batched", type(self._model).__name__)
        return False


class FixedBatch:
    """A batch that nobody joins, and that shrinks as its rows finish."""

    def __init__(self, model: Any, requests: Sequence[Request]) -> None:
        self._rows = [Row.of(request) for request in requests]
        self._live = list(self._rows)
        self._context = _Context(model, [request.prompt_ids for request in requests])

    def run(self, version: int, closing: Callable[[], bool]) -> list[Generation]:
        """Sample until every row has stopped; aborted rows, and all rows when closing, stop with `abort`."""
        with torch.inference_mode():
            while self._live:
                draw_branches(self._context.read(), [Branch([row]) for row in self._live], version)
                for row in self._live:
                    if row.stop is None and (closing() or row.request.aborted):
                        row.stop = "abort"
                self._shrink()
        return [row.generation(version) for row in self._rows]

    def _shrink(self) -> None:
        keep = [slot for slot, row in enumerate(self._live) if row.stop is None]
        gone = len(keep) < len(self._live)
        self._live = [self._live[slot] for slot in keep]
        if keep:
            self._context.extend([row.ids[-1] for row in self._live], keep if gone else None)


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
    together_2BV = _two_scores(model, prompts, tokens)
    alone = [_two_scores(model, [prompt], [token]) for prompt, token in zip(prompts, tokens, strict=True)]
    alone_2BV = torch.cat(alone, 1)
    tolerance = _TOLERANCE if together_2BV.dtype == torch.float32 else _ROUGH_TOLERANCE
    return bool((together_2BV - alone_2BV).abs().max() <= tolerance * (1 + alone_2BV.abs().max()))


def _two_scores(model: Any, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
    """Return the scores [2, B, V] after prompts, and after one more token each."""
    with torch.inference_mode():
        context = _Context(model, prompts)
        first_BV = context.read()
        context.extend(tokens)
        return torch.stack([first_BV, context.read()])
