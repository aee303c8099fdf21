"""A key-value cache written in place: concatenating one at every token costs more than a small model's arithmetic."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [B, H, L, D], views of buffers with room to grow."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Append the states of new tokens and return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room_K, self._room_V = key_states.new_empty(0), value_states.new_empty(0)
        old = self.get_seq_length()
        new = old + key_states.shape[2]
        if self._room_K.numel() == 0 or self._room_K.shape[2] < new:
            self._room_K = _larger(self._room_K, key_states, old, new)
            self._room_V = _larger(self._room_V, value_states, old, new)
        self._room_K[:, :, old:new] = key_states
        self._room_V[:, :, old:new] = value_states
        self.keys, self.values = self._room_K[:, :, :new], self._room_V[:, :, :new]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        length = self.get_seq_length()
        self._room_K, self._room_V = self._room_K[indices], self._room_V[indices]
        self.keys, self.values = self._room_K[:, :, :length], self._room_V[:, :, :length]


def _larger(room: Tensor, states: Tensor, old: int, new: int) -> Tensor:
    batch, heads, _, size = states.shape
    larger = states.new_zeros(batch, heads, new + max(32, new // 2), size)
    if old:
        larger[:, :, :old] = room[:, :, :old]
    return larger


def growing_cache(config: Any) -> Any:
    """Return a cache for a model; sliding windows and other layers that are not plain stay as transformers has them."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
