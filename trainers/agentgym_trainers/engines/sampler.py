"""Draw tokens from logits, and keep what was drawn for each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentgym.policy import Generation, Sampling, StopReason


@dataclass(eq=False, slots=True)
class Request:
    """One turn to sample."""

    session: str
    prompt_ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    aborted: bool = False
    """Whether it is to end with what was sampled so far."""
    forgotten: bool = False
    """Whether nobody waits for it any more, and nothing of it is to be remembered."""
    limit: int = field(init=False)
    """Tokens that may be sampled."""

    def __post_init__(self) -> None:
        """Refuse sampling without a limit."""
        self.limit = self.sampling.limit


@dataclass(eq=False, slots=True)
class Row:
    """What has been sampled for a request; each row draws from its own random stream."""

    request: Request
    uniforms: NDArray[np.float64]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    """(weight version, tokens)."""
    drawn: list[int] = field(default_factory=list)
    """The tokens that were taken at once, the last time."""

    @classmethod
    def of(cls, request: Request) -> Row:
        """Begin a request."""
        stream = np.random.Generator(np.random.Philox(request.sampling.seed))
        return cls(request, stream.random(request.limit))

    @property
    def context(self) -> list[int]:
        """The prompt and what was sampled."""
        return self.request.prompt_ids + self.ids

    @property
    def length(self) -> int:
        """Tokens of the context but the last one: those which a model has read."""
        return len(self.request.prompt_ids) + len(self.ids) - 1

    @property
    def left(self) -> int:
        """Tokens that may still be sampled."""
        return self.request.limit - len(self.ids)

    def take(self, tokens: list[int], logprobs: list[float], version: int) -> None:
        """Append what was drawn: nothing may follow a stop, nor exceed what the request may have."""
        self.drawn = tokens
        self.ids += tokens
        self.logprobs += logprobs
        had = self.spans.pop()[1] if self.spans and self.spans[-1][0] == version else 0
        self.spans.append((version, had + len(tokens)))
        if tokens[-1] in self.request.stop_ids:
            self.stop = "stop"
        elif self.left == 0:
            self.stop = "length"

    def generation(self, version: int) -> Generation:
        """Return what was sampled; a row that was not finished is aborted."""
        spans = tuple(self.spans)
        oldest = spans[0][0] if spans else version
        return Generation(self.ids, self.logprobs, self.stop or "abort", oldest, spans if len(spans) > 1 else ())


def draw(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Draw tokens from each distribution by inverting the cumulative one at given numbers.

    Args:
        logits_BV: raw scores.
        temperature_B: 0 takes the most likely token, whose logprob is then 0: all mass lies on it.
        top_p_B: the share of probability mass, most likely tokens first, that may be drawn.
        uniform_BK: float64 in [0, 1), one for each draw.

    Returns:
        Token ids [B, K], and float32 logprobs [B, K] under the distribution that was drawn from.

    Raises:
        ArithmeticError: a row's scores are no distribution.
    """
    # Asked before they are moved: a device would have to be waited for.
    greedy, cut = bool((temperature_B == 0).any()), bool((top_p_B < 1).any())
    temperature_B, top_p_B = (one.to(logits_BV.device) for one in (temperature_B, top_p_B))
    greedy_B = temperature_B == 0
    scaled_BV = logits_BV.float() / torch.where(greedy_B, torch.ones_like(temperature_B), temperature_B)[:, None]
    p_BV = torch.softmax(scaled_BV, dim=-1)
    if cut:
        p_BV = _nucleus(p_BV, top_p_B)
    # A sum in float32 would misplace up to 1e-5 of the mass over a large vocabulary.
    cumulative_BV = p_BV.cumsum(-1, dtype=torch.float64)
    if not bool(cumulative_BV[:, -1].isfinite().all()):
        raise ArithmeticError("wanted finite scores, found NaN or infinity: see whether the weights are finite")
    token_BK = torch.searchsorted(cumulative_BV, uniform_BK * cumulative_BV[:, -1:], right=True)
    token_BK.clamp_(max=logits_BV.shape[-1] - 1)
    logp_BK = p_BV.gather(-1, token_BK).log()
    if greedy:
        token_BK = torch.where(greedy_B[:, None], scaled_BV.argmax(-1, keepdim=True), token_BK)
        logp_BK = torch.where(greedy_B[:, None], torch.zeros_like(logp_BK), logp_BK)
    return token_BK, logp_BK


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
