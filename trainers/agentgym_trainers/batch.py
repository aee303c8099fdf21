"""Token buffers laid out as tensors, and split into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from agentgym.tokens import TokenBuffer, TokenKind


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B train contexts of at most L tokens, padded on the right. Tokens after the last sampled one are left out."""

    ids_BL: Tensor
    """int64, 0 where padded."""
    turn_BL: Tensor
    """int64."""
    sampled_BL: Tensor
    """bool; the first token of a row is never a target."""
    logp_old_BL: Tensor
    """float32: the behaviour's logprobs, 0 where nothing was sampled."""
    length_B: Tensor
    """int64, in tokens."""

    @classmethod
    def of(cls, buffers: Sequence[TokenBuffer]) -> Self:
        """Lay out buffers that `Trajectory.training_tokens` gave."""
        lengths = [_length(buffer) for buffer in buffers]
        width = max([1, *lengths])  # an attempt that was lost before its first turn has no tokens

        def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
            filled = [[*row[:length], *[0] * (width - length)] for row, length in zip(rows, lengths, strict=True)]
            return torch.tensor(filled, dtype=dtype).reshape(len(rows), width)

        sampled_BL = padded([buffer.mask(TokenKind.SAMPLED) for buffer in buffers], torch.bool)
        sampled_BL[:, :1] = False
        return cls(
            padded([buffer.ids for buffer in buffers], torch.long),
            padded([buffer.turns for buffer in buffers], torch.long),
            sampled_BL,
            padded([buffer.logprobs for buffer in buffers], torch.float32),
            torch.tensor(lengths, dtype=torch.long),
        )

    def rows(self, index_R: Tensor) -> TokenBatch:
        """Return some rows, no wider than the longest of them."""
        width = int(self.length_B[index_R].max())
        return TokenBatch(*(cut(getattr(self, one.name), index_R, width) for one in fields(self)))

    def micro_batches(self, index_R: Tensor, token_budget: int) -> Iterator[Tensor]:
        """Split rows, shortest first, so that no part has more than `token_budget` tokens, padding included."""
        order_R = index_R[self.length_B[index_R].argsort(stable=True)]
        start = 0
        for stop, length in enumerate(self.length_B[order_R].tolist(), start=1):
            if stop - start > 1 and (stop - start) * length > token_budget:
                yield order_R[start : stop - 1]
                start = stop - 1
        if start < len(order_R):
            yield order_R[start:]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the R rows of B forked attempts lie; without forks, rows and attempts are the same."""

    attempt_R: Tensor
    """int64: the attempt of each row."""
    start_R: Tensor
    """int64: where the row begins in its attempt's buffer."""
    length_R: Tensor
    """int64, in tokens; those after the last sampled one are left out."""

    @classmethod
    def of(cls, buffers: Sequence[TokenBuffer]) -> tuple[TokenBatch, Self]:
        """Return a batch with one row for each row of the buffers, and where these rows lie."""
        rows, places = [], []
        for attempt, buffer in enumerate(buffers):
            start = 0
            for row in buffer.rows():
                rows.append(row)
                places.append((attempt, start))
                start += len(row)
        batch = TokenBatch.of(rows)
        attempt_R, start_R = torch.tensor(places, dtype=torch.long).reshape(len(rows), 2).unbind(1)
        return batch, cls(attempt_R, start_R, batch.length_B)

    def cut(self, whole_BL: Tensor, width: int) -> Tensor:
        """Return [R, width] what attempts have at their rows' places; 0 where padded."""
        rows_RL = whole_BL.new_zeros(len(self.attempt_R), width)
        for row, (attempt, start, length) in enumerate(self._spans()):
            part_L = whole_BL[attempt, start : start + length]
            rows_RL[row, : len(part_L)] = part_L
        return rows_RL

    def join(self, rows_RL: Tensor, whole_BL: Tensor) -> Tensor:
        """Return [B, L], of the shape of `whole_BL`: what rows have, at their places in the attempts; 0 elsewhere."""
        joined_BL = rows_RL.new_zeros(whole_BL.shape)
        for row, (attempt, start, length) in enumerate(self._spans()):
            part_L = joined_BL[attempt, start : start + length]
            part_L.copy_(rows_RL[row, : len(part_L)])
        return joined_BL

    def _spans(self) -> list[list[int]]:
        return torch.stack([self.attempt_R, self.start_R, self.length_R], 1).tolist()


def cut(whole: Tensor, index_R: Tensor, width: int) -> Tensor:
    """Return some rows of a [B] or [B, L] tensor, the latter at most `width` wide."""
    picked = whole[index_R]
    return picked[:, :width] if picked.dim() == 2 else picked


def _length(buffer: TokenBuffer) -> int:
    last = max((place for place, kind in enumerate(buffer.kinds) if kind == TokenKind.SAMPLED), default=0)
    return min(last + 1, len(buffer))
