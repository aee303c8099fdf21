"""Guess what a row will sample next from what it has read: agents repeat a call's form, paths, and what tools said.

Prompt-lookup decoding: the tokens that followed the same few tokens before are computed along with the last one. Each
is drawn as it would have been alone, by its own random number, and taken if all drawn before it is what was guessed. So
guesses change how often the model is called, and never what it says.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import cycle, islice

_TOKEN = "I"
_BYTES = array(_TOKEN).itemsize
_BACK = 4096
"""Tokens that are searched, the last ones."""
_ALIKE = (4, 3, 2)
"""Tokens that must have occurred before, most first."""
_FIRST = 4
"""Tokens that a row's first guess has at most."""


class Drafter:
    """What one row has read and said, and how far to look ahead: twice as far after a guess that was all right.

    After one that was not, one token further than it was right.
    """

    def __init__(self, context: Sequence[int], most: int) -> None:
        """Begin with a context; guess `most` tokens at most."""
        self._text = bytearray(_bytes(context))
        self._most = most
        self._ahead = min(_FIRST, most)

    def copy(self) -> Drafter:
        """Return another one for a row that goes on otherwise."""
        made = Drafter((), self._most)
        made._text, made._ahead = bytearray(self._text), self._ahead
        return made

    def guess(self, room: int) -> list[int]:
        """Return tokens that may follow, `room` at most; none where nothing like the last tokens was read before."""
        count = min(self._ahead, room)
        if count < 1:
            return []
        text, end = self._text, len(self._text)
        for alike in _ALIKE:
            size = alike * _BYTES
            place = _rfind(text, bytes(text[end - size :]), end - _BACK * _BYTES, end - _BYTES) if end > size else -1
            if place >= 0:
                followed = array(_TOKEN, text[place + size : place + size + count * _BYTES])
                return list(islice(cycle(followed), count))  # beyond what was read it goes on as it began
        return []

    def learn(self, said: Sequence[int], guessed: int) -> Drafter:
        """Add what was sampled, of which all but the last token had been guessed, and how many tokens had been."""
        self._text += _bytes(said)
        if guessed:
            right = len(said) - 1
            self._ahead = max(self._ahead, min(self._most, 2 * guessed)) if right == guessed else right + 1
        return self


def _rfind(text: bytearray, wanted: bytes, start: int, end: int) -> int:
    """Return where the last whole tokens `wanted` begin that lie in [start, end), or -1."""
    start = max(0, start)
    place = text.rfind(wanted, start, end)
    while place >= 0 and place % _BYTES:
        place = text.rfind(wanted, start, place + len(wanted) - 1)
    return place


def _bytes(tokens: Sequence[int]) -> bytes:
    return array(_TOKEN, tokens).tobytes()
