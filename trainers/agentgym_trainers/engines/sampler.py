"""Draw tokens from logits, and keep what was drawn for each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from agentgym.policy import Generation, Sampling, StopReason
from agentgym_trainers.engines.drafts import Drafter


@dataclass(eq=False, slots=True)
class Request:
    """One turn to sample."""

    session: str
    prompt_ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    aborted: bool = False
    """Whether it is to end with what was sampled so far."""


@dataclass(eq=False, slots=True)
class Row:
    """What has been sampled for a request; each row draws from its own random stream."""

    request: Request
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(weight version, tokens)."""
    length: int = 0
    """Tokens whose keys and values are in the cache."""
    drafter: Drafter | None = None

    @classmethod
    def of(cls, request: Request) -> Row:
        """Begin a request."""
        stream = np.random.Generator(np.random.Philox(request.sampling.seed))
        return cls(request, stream.random(request.sampling.max_tokens).tolist())

    @property
    def context(self) -> list[int]:
        """The prompt and what was sampled."""
        return self.request.prompt_ids + self.ids

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], version: int) -> None:
        """Append what was drawn: nothing may follow a stop, nor exceed what the request may have."""
        self.ids += tokens
        self.logprobs += logprobs
        if self.drafter is not None:
            self.drafter.extend(tokens)
        had = self.spans.pop()[1] if self.spans and self.spans[-1][0] == version else 0
        self.spans.append((version, had + len(tokens)))
        if tokens[-1] in self.request.stop_ids:
            self.stop = "stop"
        elif len(self.ids) == self.request.sampling.max_tokens:
            self.stop = "length"

    def generation(self, version: int) -> Generation:
        """Return what was sampled; a row that was not finished is aborted."""
        spans = tuple(self.spans)
        oldest = spans[0][0] if spans else version
        return Generation(self.ids, self.logprobs, self.stop or "abort", oldest, spans if len(spans) > 1 else ())


class Drawing:
    """The sampling parameters of a batch of rows, as tensors."""

    def __init__(self, rows: list[Row], device: torch.device) -> None:
        self._rows = list(rows)
        samplings = [row.request.sampling for row in rows]
        self._temperature_B = torch.tensor([one.temperature for one in samplings], device=device)
        self._top_p_B = torch.tensor([one.top_p for one in samplings], device=device)

    def draw(self, logits_BV: Tensor, version: int) -> None:
        """Give every row its next token."""
        self.draw_all(logits_BV, [[] for _ in self._rows], version)

    def draw_all(self, logits_TV: Tensor, drafts: Sequence[Sequence[int]], version: int) -> None:
        """Give every row its next token, and another one after each guessed token that was drawn.

        Args:
            logits_TV: of each row, after its last token and after each guessed one.
            drafts: the guesses.
            version: of the weights.
        """
        pairs = list(zip(self._rows, drafts, strict=True))
        uniforms = [row.uniforms[len(row.ids) : len(row.ids) + 1 + len(draft)] for row, draft in pairs]
        uniform_T = torch.tensor(list(chain.from_iterable(uniforms)), dtype=torch.float64, device=logits_TV.device)
        temperature_T, top_p_T = self._temperature_B, self._top_p_B
        if len(uniform_T) > len(uniforms):
            count_B = torch.tensor([len(one) for one in uniforms], device=logits_TV.device)
            temperature_T, top_p_T = (one.repeat_interleave(count_B) for one in (temperature_T, top_p_T))
        tokens, logprobs = (one.tolist() for one in draw(logits_TV, temperature_T, top_p_T, uniform_T))
        start = 0
        for row, draft in pairs:
            count = _agreed(tokens[start : start + 1 + len(draft)], draft, row.request.stop_ids)
            row.take(tokens[start : start + count], logprobs[start : start + count], version)
            if row.drafter is not None:
                row.drafter.learn(len(draft), count - 1)
            start += 1 + len(draft)


def _agreed(drawn: Sequence[int], draft: Sequence[int], stop_ids: frozenset[int]) -> int:
    """Return how many of the drawn tokens count: up to the first that nobody had guessed, or that is a stop."""
    for place, guessed in enumerate(draft):
        if drawn[place] != guessed or guessed in stop_ids:
            return place + 1
    return len(drawn)


def draw(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at a given number.

    Args:
        logits_BV: raw scores.
        temperature_B: 0 takes the most likely token, whose logprob is then 0: all mass lies on it.
        top_p_B: the share of probability mass, most likely tokens first, that may be drawn.
        uniform_B: float64 in [0, 1).

    Returns:
        Token ids [B], and float32 logprobs [B] under the distribution that was drawn from.

    Raises:
        ArithmeticError: a row's scores are no distribution.
    """
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV.float() / torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)[:, None]
    p_BV = torch.softmax(scaled_BV, dim=-1)
    if bool((top_p_B < 1).any()):
        p_BV = _nucleus(p_BV, top_p_B)
    # A sum in float32 would misplace up to 1e-5 of the mass over a large vocabulary.
    cumulative_BV = p_BV.cumsum(-1, dtype=torch.float64)
    if not bool(cumulative_BV[:, -1].isfinite().all()):
        raise ArithmeticError("wanted finite scores, found NaN or infinity: see whether the weights are finite")
    token_B = torch.searchsorted(cumulative_BV, uniform_B[:, None] * cumulative_BV[:, -1:], right=True)[:, 0]
    token_B.clamp_(max=logits_BV.shape[-1] - 1)
    logp_B = p_BV.gather(-1, token_B[:, None])[:, 0].log()
    if bool(greedy_B.any()):
        token_B = torch.where(greedy_B, scaled_BV.argmax(-1), token_B)
        logp_B = torch.where(greedy_B, torch.zeros_like(logp_B), logp_B)
    return token_B, logp_B


def _nucleus(p_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Return probabilities renormalised over the smallest set of tokens that holds `top_p` of the mass."""
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    dropped_BV = torch.zeros_like(p_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= top_p_B[:, None])
    kept_BV = p_BV.masked_fill(dropped_BV, 0)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def check_prompt(prompt_ids: Sequence[int], vocabulary: int) -> None:
    """Refuse what a model with so many token ids cannot read.

    Raises:
        ValueError: the prompt is empty, or has a token that the model does not know.
    """
    if not prompt_ids:
        raise ValueError("wanted at least one prompt token, found none; a prompt begins with what the model reads")
    if max(prompt_ids) >= vocabulary or min(prompt_ids) < 0:
        strange = next(one for one in prompt_ids if not 0 <= one < vocabulary)
        raise ValueError(f"wanted tokens below {vocabulary}, found {strange}: the tokenizer is not this model's")
