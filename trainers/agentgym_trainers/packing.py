"""Rows end to end in one long row, without padding: attention is computed piece by piece, so no row sees another.

Attempts of a group begin alike, and often go on alike. Their tokens form a tree: what several rows begin with may be
laid and computed once, and gradients of all that goes on from there meet in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentgym.errors import AgentgymError
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.engines.slots import PIECES

_NAME = PIECES
_TOLERANCE = 1e-4
_TIMES = 4
"""How many times its tokens a micro-batch may be read, at most: keys, values and scores exist for every reading."""
_LEAST = 16
"""A row shares a sixteenth of its length or nothing: attention to what lies elsewhere takes a mask."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens that read one another causally, and before them all tokens of a shared beginning."""

    start: int
    stop: int
    before: tuple[tuple[int, int], ...] = ()
    """Where that beginning lies: starts and stops, in order."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A micro-batch as one row of P tokens."""

    ids_1P: Tensor
    position_1P: Tensor
    """Of each token in the context that it came from."""
    pieces: tuple[Piece, ...]
    """They cover all P tokens, in order."""
    source_N: Tensor
    """Where the token before each sampled token lies, in the order of the batch's rows."""


def pack(part: TokenBatch, *, share: bool) -> Layout:
    """Lay the rows of a micro-batch end to end.

    Args:
        part: at least one row.
        share: lay only once what several rows begin with, be it read or sampled.
    """
    rows = _rows(part)
    ids: list[int] = []
    positions: list[int] = []
    pieces: list[Piece] = []
    places: list[list[int]] = [[]] * len(rows)
    last = -1
    for index in _order(rows) if share else range(len(rows)):
        row, start = rows[index], len(ids)
        # In this order no row has more in common with an earlier one than with the last.
        common = _shared(row, rows[last]) if share and last >= 0 else 0
        place = places[last][:common]
        ids += row[common:]
        positions += range(common, len(row))
        if common < len(row):
            pieces.append(Piece(start, len(ids), _spans(place)))
        places[index] = [*place, *range(start, len(ids))]
        last = index
    device = part.ids_BL.device
    sources = [places[row][at - 1] for row, at in part.sampled_BL.nonzero().tolist()]
    return Layout(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        tuple(pieces),
        torch.tensor(sources, dtype=torch.long, device=device),
    )


def packed_states(trunk: Any, layout: Layout) -> Tensor:
    """Return [N, D] the hidden states from which the sampled tokens are predicted."""
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout.ids_1P.device)  # or one of P x P would be made
    hidden_1PD: Tensor = trunk(
        input_ids=layout.ids_1P,
        position_ids=layout.position_1P,
        attention_mask=unused,
        pieces=layout.pieces,
        use_cache=False,
    ).last_hidden_state
    # As by an index, but gradients that meet in a token are added up in one order, by however many threads.
    return embedding(layout.source_N, hidden_1PD[0])


def micro_batches(batch: TokenBatch, index_R: Tensor, token_budget: int, *, share: bool) -> Iterator[Tensor]:
    """Split rows so that no part lays out more than `token_budget` tokens; a longer row is a part of its own.

    Nor are all rows of a part, counted apart, longer than some times that: each reads, and is scored, for itself.
    """
    rows, chosen = _rows(batch), index_R.tolist()
    taken: list[int] = []
    laid = read = 0
    for row in [chosen[place] for place in _order([rows[one] for one in chosen])] if share else chosen:
        length = len(rows[row])
        new = length - (_shared(rows[row], rows[taken[-1]]) if share and taken else 0)
        if taken and (laid + new > token_budget or read + length > _TIMES * token_budget):
            yield torch.tensor(taken)
            taken, laid, read, new = [], 0, 0, length
        taken.append(row)
        laid, read = laid + new, read + length
    if taken:
        yield torch.tensor(taken)


def runs(batch: TokenBatch, index_R: Tensor, count: int) -> list[Tensor]:
    """Divide rows, sorted by their tokens, into so many runs of neighbours; some have none where rows are few.

    The largest is as small as runs allow, counted in what fills micro-batches: tokens laid, or a part of those read.
    """
    rows, chosen = _rows(batch), index_R.tolist()
    order = [chosen[place] for place in _order([rows[one] for one in chosen])]
    lengths = [len(rows[row]) for row in order]
    shared = [_shared(rows[row], rows[order[place - 1]]) if place else 0 for place, row in enumerate(order)]
    bounds = range(_TIMES * sum(lengths) + 1)
    # More room never takes more runs, since a row that begins one lays all of itself and no less.
    bound = bisect_left(bounds, True, key=lambda one: len(_starts(lengths, shared, one)) <= count)
    starts = _starts(lengths, shared, bound)
    cuts = [*starts, *[len(order)] * (count + 1 - len(starts))]
    return [torch.tensor(order[start:stop], dtype=torch.long) for start, stop in pairwise(cuts)]


def allow_packing(model: Any) -> None:
    """Let a model, or a base model, read rows in pieces; whatever else is computed with it stays the same.

    Raises:
        AgentgymError: it does not compute the same for a row among others as for the row alone.
    """
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    if model.config._attn_implementation not in ("sdpa", _NAME):
        raise AgentgymError(
            f"packing computes attention itself, found a model loaded with {model.config._attn_implementation!r}; "
            "load it with attn_implementation sdpa, or set trainer.compute.packing to none"
        )
    model.set_attn_implementation(_NAME)
    trunk = model.base_model
    first, second = [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 6, 4]
    mask = [[False] * 3 + [True] * 4, [False] * 3 + [True] * 2 + [False] * 2]
    rows_BL = torch.tensor([first, [*second, 0, 0]], device=model.device)
    zeros_BL = torch.zeros_like(rows_BL)
    length_B = torch.tensor([7, 5], device=model.device)
    part = TokenBatch(rows_BL, zeros_BL, torch.tensor(mask, device=model.device), zeros_BL.float(), length_B)
    with torch.no_grad():
        alone = [trunk(input_ids=rows_BL[row : row + 1, :n], use_cache=False) for row, n in enumerate((7, 5))]
        alone_ND = torch.cat([one.last_hidden_state[0, 2:-1] for one in alone])
        together_ND = [packed_states(trunk, pack(part, share=share)) for share in (False, True)]
    if any((alone_ND - one_ND).abs().max() > _TOLERANCE * (1 + alone_ND.abs().max()) for one_ND in together_ND):
        raise AgentgymError(
            f"{type(model).__name__} does not read packed rows apart; set trainer.compute.packing to none"
        )


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """Compute attention piece by piece, or as usual where there are none (transformers' attention interface)."""
    pieces: tuple[Piece, ...] | None = given.pop("pieces", None)
    if pieces is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return output, None
    if given.get("sliding_window") is not None or given.get("softcap") is not None:
        raise AgentgymError("packing knows no sliding windows and no soft-capping; set trainer.compute.packing to none")
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    cuts = sorted({place for piece in pieces for span in (*piece.before, (piece.start, piece.stop)) for place in span})
    index = {place: number for number, place in enumerate(cuts)}
    sizes = [stop - start for start, stop in pairwise(cuts)]
    # Cut once: the gradient of each cut is as large as the whole.
    queries, keys, values = (torch.split(one, sizes, dim=2) for one in (query, key, value))
    parts = []
    for piece in pieces:
        own = slice(index[piece.start], index[piece.stop])
        heard = [number for start, stop in piece.before for number in range(index[start], index[stop])]
        seen = [*heard, *range(own.start, own.stop)]
        key, value = (torch.cat([one[number] for number in seen], dim=2) for one in (keys, values))
        parts.append(_attend_piece(torch.cat(queries[own], dim=2), key, value, given.get("scaling")))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend_piece(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Let the last of the tokens, those with queries, read one another causally and all that lies before them."""
    length, width = query.shape[2], key.shape[2]
    if length == width:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    seen = torch.ones(length, width, dtype=torch.bool, device=query.device).tril(width - length)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def _rows(batch: TokenBatch) -> list[list[int]]:
    return [ids[:length] for ids, length in zip(batch.ids_BL.tolist(), batch.length_B.tolist(), strict=True)]


def _order(rows: Sequence[list[int]]) -> list[int]:
    """Return the order in which rows that begin alike are neighbours."""
    return sorted(range(len(rows)), key=rows.__getitem__)


def _shared(row: Sequence[int], last: Sequence[int]) -> int:
    """Return how many tokens a row need not lay that begins like the last one."""
    common = _common(row, last)
    return common if _LEAST * common >= len(row) else 0


def _starts(lengths: Sequence[int], shared: Sequence[int], bound: int) -> list[int]:
    """Return where runs begin that each take what fits within a bound, or one row that does not.

    Args:
        lengths: of the rows, in order.
        shared: how many tokens each need not lay where the row before it is in the same run.
        bound: on tokens read, and on some times those laid.
    """
    starts: list[int] = []
    laid = read = 0
    for place, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        new = length - common
        if not starts or max(_TIMES * (laid + new), read + length) > bound:
            starts.append(place)
            laid, read, new = 0, 0, length
        laid, read = laid + new, read + length
    return starts


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows have in common, from the first on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _spans(place: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return runs of neighbours as starts and stops."""
    cuts = [0, *(at for at in range(1, len(place)) if place[at] != place[at - 1] + 1), len(place)]
    return tuple((place[start], place[stop - 1] + 1) for start, stop in pairwise(cuts) if start < stop)
