"""Sample one fixed batch over transformers' own cache: for models that keep more than keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from agentgym.policy import Generation
from agentgym_trainers.engines.branches import Branch, draw_branches
from agentgym_trainers.engines.sampler import Request, Row
from agentgym_trainers.engines.slots import cache_argument, own_cache


class FixedBatch:
    """A batch that nobody joins, and that shrinks as its rows finish."""

    def __init__(self, model: Any, requests: Sequence[Request]) -> None:
        self._model = model
        self._rows = [Row.of(request) for request in requests]
        self._live = list(self._rows)
        self._cache = own_cache(model)
        device = model.device
        lengths = [len(request.prompt_ids) for request in requests]
        width = max(lengths)
        self._ids_BL = torch.zeros(len(requests), width, dtype=torch.long)
        self._mask_BL = torch.zeros(len(requests), width, dtype=torch.long)
        for row, request in enumerate(requests):
            self._ids_BL[row, width - lengths[row] :] = torch.tensor(request.prompt_ids)
            self._mask_BL[row, width - lengths[row] :] = 1
        self._position_BL = (self._mask_BL.cumsum(-1) - 1).clamp_(min=0).to(device)
        self._ids_BL, self._mask_BL = self._ids_BL.to(device), self._mask_BL.to(device)

    def run(self, version: int, closing: Callable[[], bool]) -> list[Generation]:
        """Sample until every row has stopped; aborted rows, and all rows when closing, stop with `abort`."""
        with torch.inference_mode():
            while self._live:
                self._step(version)
                for row in self._live:
                    if row.stop is None and (closing() or row.request.aborted):
                        row.stop = "abort"
                self._shrink()
        return [row.generation(version) for row in self._rows]

    def _step(self, version: int) -> None:
        out = self._model(
            input_ids=self._ids_BL,
            attention_mask=self._mask_BL,
            position_ids=self._position_BL,
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(self._model): self._cache},
        )
        draw_branches(out.logits[:, -1], [Branch([row]) for row in self._live], version)
        self._ids_BL = torch.tensor([[row.ids[-1]] for row in self._live], device=self._mask_BL.device)
        self._position_BL = self._position_BL[:, -1:] + 1
        self._mask_BL = torch.nn.functional.pad(self._mask_BL, (0, 1), value=1)

    def _shrink(self) -> None:
        keep = [slot for slot, row in enumerate(self._live) if row.stop is None]
        if len(keep) == len(self._live):
            return
        self._live = [self._live[slot] for slot in keep]
        if not keep:
            return
        keep_B = torch.tensor(keep, device=self._ids_BL.device)
        self._cache.batch_select_indices(keep_B)
        self._ids_BL, self._mask_BL = self._ids_BL[keep_B], self._mask_BL[keep_B]
        self._position_BL = self._position_BL[keep_B]
