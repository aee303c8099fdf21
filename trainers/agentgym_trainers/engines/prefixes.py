"""Remember the keys and values of what sessions have read and said: their next turn computes only what is new.

While a session says something, they lie in the batch and nowhere else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentgym_trainers.engines.slots import KeysValues


@dataclass(frozen=True, slots=True)
class _Prefix:
    ids: NDArray[np.int64]
    saved: KeysValues
    bytes: int


class PrefixStore:
    """One sequence per open session, the longest unused forgotten first; a new session may begin with any of them.

    Sessions open and close on other threads than the one that computes.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """Keep at most so many bytes of keys and values; 0 keeps nothing."""
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self.hits = 0
        """Prompt tokens that were not computed again."""
        self._open: set[str] = set()
        self._kept: OrderedDict[str, _Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def open(self, session: str) -> None:
        """From now on remember the session's sequences."""
        with self._lock:
            self._open.add(session)

    def close(self, session: str) -> None:
        """Forget the session."""
        with self._lock:
            self._open.discard(session)
            self._drop(session)

    def has(self, session: str) -> bool:
        """Whether a sequence of the session's own is remembered."""
        return session in self._kept

    def let_go(self, session: str) -> None:
        """Drop the session's sequence, which lies in the batch now."""
        with self._lock:
            self._drop(session)

    def find(self, session: str, prompt_ids: Sequence[int]) -> tuple[KeysValues, int] | None:
        """Return the keys and values of the longest known beginning of a prompt, and how many tokens of them fit.

        At least the prompt's last token is left to compute: its logits are wanted.
        """
        wanted = np.asarray(prompt_ids[:-1], dtype=np.int64)
        with self._lock:
            names = [session] if session in self._kept else list(self._kept)
            lengths = [common(self._kept[name].ids, wanted) for name in names]
            length = max(lengths, default=0)
            if length == 0:
                return None
            best = names[lengths.index(length)]
            self._kept.move_to_end(best)
            self.hits += length
            return self._kept[best].saved, length

    def keep(self, session: str, ids: Sequence[int], save: Callable[[], KeysValues]) -> None:
        """Remember a sequence in the place of the session's last one, if the session is open."""
        if self.capacity_bytes == 0 or session not in self._open:
            return
        saved = save()
        size = sum(one.numel() * one.element_size() for pair in saved for one in pair)
        with self._lock:
            self._drop(session)
            if session not in self._open or size > self.capacity_bytes:
                return
            self._kept[session] = _Prefix(np.asarray(ids, dtype=np.int64), saved, size)
            self.bytes += size
            while self.bytes > self.capacity_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].bytes

    def clear(self) -> None:
        """Drop every sequence: the weights that computed them are no longer."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0

    def _drop(self, session: str) -> None:
        gone = self._kept.pop(session, None)
        if gone is not None:
            self.bytes -= gone.bytes


def common(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> int:
    """Return how many tokens two sequences begin with alike."""
    size = min(len(known), len(wanted))
    different = np.flatnonzero(known[:size] != wanted[:size])
    return int(different[0]) if len(different) else size
