"""Keys and values of many sequences side by side: each row has its own length, so rows come and go at any token."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from inspect import getsource, signature
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer the keys and values [H, N, D] of one sequence's first N tokens."""

_FULL = ("full_attention", None)


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [rows, H, columns, D]; row r's token at position p lies in column p."""

    plan: SlotPlan | TokenPlan
    _expected = (0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shapes and types from the first states."""
        super().lazy_initialization(key_states, value_states)
        rows, columns = self._expected
        self.keys, self.values = (
            one.new_zeros(rows, one.shape[1], columns, one.shape[3]) for one in (key_states, value_states)
        )

    def fit(self, rows: int, columns: int) -> None:
        """Make room for all rows in use and for their tokens, now or with the first states.

        Room that has to grow is made as large as that needs: what one long row or many short ones once took is not
        multiplied with what the others take now.
        """
        if not self.is_initialized:
            self._expected = rows, columns
        elif rows > self.keys.shape[0] or columns > self.keys.shape[2]:
            self._resize(rows, columns)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Write the new tokens' states [B, H, Q, D] where the plan says; return all columns of the plan's rows."""
        # Under autocast rotation makes keys float32, and attention would cast all of them again for every token.
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self.write(key_states.transpose(1, 2), value_states.transpose(1, 2))

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write states [*, H, D] where the plan says, whose rows and columns are [*]; return what `update` does."""
        plan = self.plan
        if not self.is_initialized:
            self.lazy_initialization(keys[..., None, :], values[..., None, :])
        # The last column takes the states of padding; no row's length ever reaches it.
        self.reserve(plan.stop, plan.width + 1)
        found = []
        for room, states in ((self.keys, keys), (self.values, values)):
            rows = room[plan.start : plan.stop]
            rows[plan.row, :, plan.column] = states
            found.append(rows[:, :, : plan.width])
        return found[0], found[1]

    def reserve(self, rows: int, columns: int) -> None:
        """Grow to hold so many rows and columns at least."""
        had_rows, _, had_columns, _ = self.keys.shape
        if rows > had_rows or columns > had_columns:
            self._resize(max(rows, had_rows), max(columns, had_columns))

    def _resize(self, rows: int, columns: int) -> None:
        """Take so much room, and more where it grows: so copying stays far below what attention reads."""
        had_rows, heads, had_columns, _ = self.keys.shape
        rows += rows // 4 if rows > had_rows else 0
        columns += max(16, columns // 8) if columns > had_columns else 0
        made = [old.new_zeros(rows, heads, columns, old.shape[3]) for old in (self.keys, self.values)]
        kept_rows, kept_columns = min(rows, had_rows), min(columns, had_columns)
        for new, old in zip(made, (self.keys, self.values), strict=True):
            new[:kept_rows, :, :kept_columns] = old[:kept_rows, :, :kept_columns]
        self.keys, self.values = made


class SlotPlan:
    """What one forward pass writes and reads: rows [start, stop), positions [B, Q] (-1 is padding), columns seen."""

    def __init__(self, start: int, position_BQ: Tensor, device: torch.device | None = None) -> None:
        self.start, self.stop = start, start + position_BQ.shape[0]
        self.width = int(position_BQ.max()) + 1  # before it is moved: a device would have to be waited for
        position_BQ = position_BQ.to(device)
        self.position_BQ = position_BQ.clamp(min=0)
        self.column = torch.where(position_BQ < 0, torch.full_like(position_BQ, -1), position_BQ)
        self.row = torch.arange(position_BQ.shape[0], device=position_BQ.device)[:, None]


class TokenPlan:
    """What one forward pass writes and reads without padding: of rows [start, start + B) some tokens each, end to end.

    Args:
        start: the first row.
        counts: [B] new tokens of each row, one at least.
        first: [B] the position of each row's first new token.
    """

    def __init__(self, start: int, counts: Sequence[int], first: Sequence[int]) -> None:
        self.start, self.stop = start, start + len(counts)
        self.width = max(count + begin for count, begin in zip(counts, first, strict=True))
        self.longest, tokens = max(counts), sum(counts)
        count_B, first_B = torch.tensor(counts), torch.tensor(first)
        end_B = count_B.cumsum(0)
        self.last_B = end_B - 1
        """Each row's last new token."""
        self.row = torch.arange(len(counts)).repeat_interleave(count_B)
        self.place_T = torch.arange(tokens) - (end_B - count_B)[self.row]
        """Which of its row's new tokens each one is."""
        self.column = first_B[self.row] + self.place_T
        self.position_BQ = first_B[:, None] + torch.arange(self.longest)
        """Where a row has fewer new tokens than another, what lies behind them is computed for nothing."""
        self.token_BQ = ((end_B - count_B)[:, None] + torch.arange(self.longest)).clamp_(max=tokens - 1)


class SlotCache:
    """The cache of one model: rows [0, n) are in use, and stay together when one leaves."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._windows = _windows(model)
        self._argument = cache_argument(model)
        self._layers = [SlotLayer() for _ in self._windows or ()]
        self.cache = Cache(layers=self._layers)
        self._additive = config._attn_implementation == "eager"

    def plan(
        self, start: int, position_BQ: Tensor, dtype: torch.dtype, device: torch.device | None = None
    ) -> dict[str, Any]:
        """Prepare one forward pass; return the model's arguments for it.

        Args:
            start: the first row.
            position_BQ: of each new token in its row, -1 for padding before it.
            dtype: of the model's scores.
            device: the model's; by default where the positions are.
        """
        plan = SlotPlan(start, position_BQ, device)
        for layer in self._layers:
            layer.plan = plan
        # One token a row: a mask in the scores' own type is no larger, and no layer has to convert it.
        additive = self._additive or position_BQ.shape[1] == 1
        masks = {kind: _shaped(one, dtype) if additive else one for kind, one in self._seen(plan)}
        mask = next(iter(masks.values())) if len(masks) == 1 else masks
        return {"attention_mask": mask, "position_ids": plan.position_BQ, self._argument: self.cache}

    def plan_tokens(self, plan: TokenPlan, dtype: torch.dtype, group: int) -> list[Tensor]:
        """Prepare a forward pass without padding; return each layer's mask [B, 1, group * Q, W], added to scores.

        Args:
            plan: what is new.
            dtype: of the scores.
            group: query heads to a head of keys, which stand in the place of queries; or 1 where each has one token.
        """
        for layer in self._layers:
            layer.plan = plan
        start_X = (plan.width - 1 - plan.position_BQ).clamp_(min=0)[:, None].expand(-1, group, -1).flatten()
        kinds = self._windows or ()
        made = {kind: _line(plan.width, kind[1], dtype).index_select(0, start_X) for kind in set(kinds)}
        return [made[kind].view(plan.stop - plan.start, 1, -1, plan.width) for kind in kinds]

    def _seen(self, plan: SlotPlan) -> Iterator[tuple[str, Tensor]]:
        """Yield for each kind of layer which columns [B, 1, Q, W] each new token sees."""
        column_W = torch.arange(plan.width, device=plan.position_BQ.device)
        position_BQ1 = plan.position_BQ[:, :, None]
        for kind, window in set(self._windows or ()):
            seen_BQW = column_W <= position_BQ1
            if window is not None:
                seen_BQW &= column_W > position_BQ1 - window
            yield kind, seen_BQW[:, None]

    def fit(self, rows: int, columns: int) -> None:
        """Make room for all rows in use, of so many tokens: growing token by token copies all there is."""
        for layer in self._layers:
            layer.fit(rows, columns + 1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one row over another's, for which there is room."""
        for layer in self._layers:
            for room in (layer.keys, layer.values):
                room[target, :, :length] = room[source, :, :length]

    def save(self, row: int, length: int) -> KeysValues:
        """Return a copy of a row's first tokens."""
        return [(layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self._layers]

    def load(self, row: int, saved: KeysValues, length: int) -> None:
        """Begin a row with the first tokens of a saved one."""
        for layer, (keys, values) in zip(self._layers, saved, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.reserve(row + 1, length + 1)
            layer.keys[row, :, :length] = keys[:, :length]
            layer.values[row, :, :length] = values[:, :length]

    def wipe(self, start: int) -> None:
        """Leave nothing of rows from `start` on, not even where it would be masked."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys[start:], layer.values[start:] = 0, 0

    def clear(self) -> None:
        """Give the memory back."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:0, :, :0].clone(), layer.values[:0, :, :0].clone()


def _shaped(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _line(width: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return all masks over so many columns, [width, width]: row i is that of position width - 1 - i.

    They overlap in memory, each a column further than the one before.
    """
    line_N = torch.full((2 * width,), torch.finfo(dtype).min, dtype=dtype)
    line_N[0 if window is None else max(0, width - window) : width] = 0
    return line_N.unfold(0, width, 1)


def cache_argument(model: Any) -> str:
    """Return what a model calls its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


PIECES = "agentgym_pieces"
"""The attention of packed rows, which is sdpa's wherever nothing is packed."""


def fits_slots(model: Any) -> bool:
    """Whether a model's layers all attend to keys and values, over everything or over a sliding window."""
    return _windows(model) is not None and model.config._attn_implementation in ("sdpa", "eager", PIECES)


def own_cache(model: Any) -> DynamicCache:
    """Return transformers' cache for a model, without windows where the model itself has none."""
    cache = DynamicCache(config=model.config)
    if (windows := _windows(model)) is not None:
        pairs = zip(cache.layers, windows, strict=True)
        cache.layers = [DynamicLayer() if window is None else one for one, (_, window) in pairs]
    return cache


def _windows(model: Any) -> list[tuple[str, int | None]] | None:
    """Return each layer's kind and window, or None if a layer keeps something else than plain keys and values.

    A config may name windows of which its model knows nothing, and the other way round: what counts is what the model
    masks when it learns.
    """
    window = getattr(model.config, "sliding_window", None)
    layers = DynamicCache(config=model.config).layers
    if any(type(one) not in (DynamicLayer, DynamicSlidingWindowLayer) for one in layers) or not layers:
        return None
    match _masking(model):
        case "none":
            return [_FULL] * len(layers)
        case "every layer":
            return [_FULL if window is None else ("sliding_attention", window)] * len(layers)
    return [
        ("sliding_attention", one.sliding_window) if type(one) is DynamicSlidingWindowLayer else _FULL for one in layers
    ]


def _masking(model: Any) -> Literal["none", "every layer", "as configured"]:
    """Return which layers a model gives windows to, by what the module that makes its masks speaks of."""
    for part in model.modules():
        module = sys.modules[type(part).__module__]
        if isinstance(part, PreTrainedModel) and hasattr(module, "create_causal_mask"):
            if not hasattr(module, "create_sliding_window_causal_mask"):
                return "none"
            return "as configured" if "layer_types" in getsource(module) else "every layer"
    return "as configured"
