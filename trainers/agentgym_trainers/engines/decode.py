"""Sample one batch of requests from a causal language model over its key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentgym.policy import Generation, Sampling, StopReason
from agentgym_trainers.engines.cache import growing_cache


@dataclass(eq=False, slots=True)
class Request:
    """One turn to sample, and where its result goes."""

    session: str
    prompt_ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    aborted: bool = False
    future: Future[Generation] = field(default_factory=Future)


@dataclass(slots=True)
class _Row:
    """What has been sampled for a request; each row draws from its own random stream."""

    request: Request
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason | None = None

    @classmethod
    def of(cls, request: Request) -> _Row:
        stream = np.random.Generator(np.random.Philox(request.sampling.seed))
        return cls(request, stream.random(request.sampling.max_tokens).tolist())

    def take(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.request.stop_ids:
            self.stop = "stop"
        elif len(self.ids) == self.request.sampling.max_tokens:
            self.stop = "length"


def draw(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at a given number.

    Args:
        logits_BV: raw scores.
        temperature_B: 0 takes the most likely token, whose logprob is then 0: all mass lies on it.
        top_p_B: the share of probability mass, most likely tokens first, that may be drawn.
        uniform_B: float64 in [0, 1).

    Returns:
        Token ids [B], and float32 logprobs [B] under the distribution that was drawn from.
    """
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV.float() / torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)[:, None]
    logp_BV = torch.log_softmax(scaled_BV, dim=-1)
    if bool((top_p_B < 1).any()):
        logp_BV = _nucleus(logp_BV, top_p_B)
    # Float32 would misplace up to 1e-5 of the mass over a large vocabulary.
    cumulative_BV = logp_BV.double().exp().cumsum(-1)
    token_B = (cumulative_BV <= uniform_B[:, None] * cumulative_BV[:, -1:]).sum(-1)
    token_B = torch.where(greedy_B, scaled_BV.argmax(-1), token_B.clamp_(max=logits_BV.shape[-1] - 1))
    logp_B = logp_BV.gather(-1, token_B[:, None])[:, 0]
    return token_B, torch.where(greedy_B, torch.zeros_like(logp_B), logp_B)


def _nucleus(logp_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Return logprobs renormalised over the smallest set of tokens that holds `top_p` of the mass."""
    sorted_BV, order_BV = logp_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.exp().cumsum(-1) - sorted_BV.exp()
    dropped_BV = torch.zeros_like(logp_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= top_p_B[:, None])
    return torch.log_softmax(logp_BV.masked_fill(dropped_BV, -torch.inf), dim=-1)


class Batch:
    """A batch that shrinks as its rows finish."""

    def __init__(self, model: Any, requests: Sequence[Request]) -> None:
        self._model = model
        self._rows = [_Row.of(request) for request in requests]
        self._live = list(range(len(self._rows)))
        self._cache = growing_cache(model.config)
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
        self._temperature_B = torch.tensor([one.sampling.temperature for one in requests], device=device)
        self._top_p_B = torch.tensor([one.sampling.top_p for one in requests], device=device)

    def run(self, weight_version: int, closing: Callable[[], bool]) -> list[Generation]:
        """Sample until every row has stopped; cancelled rows, and all rows when closing, stop with `abort`."""
        with torch.inference_mode():
            while self._live:
                self._step()
                for index in self._live:
                    row = self._rows[index]
                    if row.stop is None and (closing() or row.request.aborted or row.request.future.cancelled()):
                        row.stop = "abort"
                self._shrink()
        return [Generation(row.ids, row.logprobs, row.stop or "abort", weight_version) for row in self._rows]

    def _step(self) -> None:
        out = self._model(
            input_ids=self._ids_BL,
            attention_mask=self._mask_BL,
            position_ids=self._position_BL,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = [self._rows[index] for index in self._live]
        uniform_B = torch.tensor(
            [row.uniforms[len(row.ids)] for row in rows], dtype=torch.float64, device=out.logits.device
        )
        token_B, logp_B = draw(out.logits[:, -1], self._temperature_B, self._top_p_B, uniform_B)
        for row, token, logprob in zip(rows, token_B.tolist(), logp_B.tolist(), strict=True):
            row.take(token, logprob)
        self._ids_BL = token_B[:, None]
        self._position_BL = self._position_BL[:, -1:] + 1
        self._mask_BL = torch.nn.functional.pad(self._mask_BL, (0, 1), value=1)

    def _shrink(self) -> None:
        keep = [slot for slot, index in enumerate(self._live) if self._rows[index].stop is None]
        if len(keep) == len(self._live):
            return
        self._live = [self._live[slot] for slot in keep]
        if not keep:
            return
        keep_B = torch.tensor(keep, device=self._ids_BL.device)
        self._cache.batch_select_indices(keep_B)
        self._ids_BL, self._mask_BL = self._ids_BL[keep_B], self._mask_BL[keep_B]
        self._position_BL = self._position_BL[keep_B]
        self._temperature_B, self._top_p_B = self._temperature_B[keep_B], self._top_p_B[keep_B]
