"""Rows end to end in one long row, without padding: attention is computed piece by piece, so no row sees another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentgym.errors import AgentgymError
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.engines.slots import PIECES

_NAME = PIECES
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens that read one another causally, and before them all tokens of a shared prefix."""

    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)
    """Where the prefix lies: start and stop, equal if there is none."""


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
        share: lay prompts, which are what precedes the first sampled token, that several rows have in common only once.
    """
    rows = [ids[:length] for ids, length in zip(part.ids_BL.tolist(), part.length_B.tolist(), strict=True)]
    sampled = [mask[: len(row)] for mask, row in zip(part.sampled_BL.tolist(), rows, strict=True)]
    heads = _prompts(part) if share else [()] * len(rows)
    ids: list[int] = []
    positions: list[int] = []
    pieces: list[Piece] = []
    sources: list[int] = []
    laid: dict[tuple[int, ...], tuple[int, int]] = {(): (0, 0)}

    def lay(tokens: list[int], first: int, prefix: tuple[int, int]) -> int:
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
        pieces.append(Piece(start, len(ids), prefix))
        return start

    for row, mask, head in zip(rows, sampled, heads, strict=True):
        if head not in laid:
            start = lay(list(head), 0, (0, 0))
            laid[head] = start, start + len(head)
        prefix, known = laid[head], len(head)
        start = lay(row[known:], known, prefix)
        place = [prefix[0] + at if at < known else start + at - known for at in range(len(row))]
        sources += [place[at - 1] for at, own in enumerate(mask) if own]
    device = part.ids_BL.device
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
    return hidden_1PD[0, layout.source_N]


def micro_batches(batch: TokenBatch, index_R: Tensor, token_budget: int, *, share: bool) -> Iterator[Tensor]:
    """Split rows so that no part lays out more than `token_budget` tokens; a longer row is a part of its own."""
    lengths, heads = batch.length_B.tolist(), _prompts(batch) if share else [()] * len(batch.length_B)
    first = {head: place for place, head in reversed(list(enumerate(heads)))}
    taken: list[int] = []
    used, laid = 0, set[tuple[int, ...]]()
    for row in sorted(index_R.tolist(), key=lambda one: first[heads[one]]) if share else index_R.tolist():
        head = heads[row]
        cost = lengths[row] - (len(head) if head in laid else 0)
        if taken and used + cost > token_budget:
            yield torch.tensor(taken)
            taken, used, laid, cost = [], 0, set(), lengths[row]
        taken.append(row)
        laid.add(head)
        used += cost
    if taken:
        yield torch.tensor(taken)


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
    parts = [_attend_piece(query, key, value, piece, given.get("scaling")) for piece in pieces]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend_piece(query: Tensor, key: Tensor, value: Tensor, piece: Piece, scale: float | None) -> Tensor:
    own, (first, last) = slice(piece.start, piece.stop), piece.prefix
    query = query[:, :, own]
    if first == last:
        return scaled_dot_product_attention(query, key[:, :, own], value[:, :, own], is_causal=True, scale=scale)
    key = torch.cat([key[:, :, first:last], key[:, :, own]], dim=2)
    value = torch.cat([value[:, :, first:last], value[:, :, own]], dim=2)
    length = piece.stop - piece.start
    seen = torch.ones(length, last - first + length, dtype=torch.bool, device=query.device).tril(last - first)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def _prompts(batch: TokenBatch) -> list[tuple[int, ...]]:
    """Return what precedes the first sampled token of each row."""
    first_B = batch.sampled_BL.to(torch.uint8).argmax(1)
    return [tuple(ids[:first]) for ids, first in zip(batch.ids_BL.tolist(), first_B.tolist(), strict=True)]
