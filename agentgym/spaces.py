"""Gymnasium spaces of chat messages; the library's own text space cannot hold Unicode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np

from agentgym.types import Message

ALPHABET = "abcdefghijklmnopqrstuvwxyz 0123456789.,:;+-*/()[]{}'\"=\n`é漢"


class ActionSpace(gymnasium.Space[Message | str]):
    """One assistant message; a plain string is accepted as its content."""

    def __init__(self, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Text does not flatten."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Message:
        """Return a random assistant message of up to 64 characters; masks have no meaning here."""
        if mask is not None or probability is not None:
            raise ValueError("a message space takes neither mask nor probability")
        size = int(self.np_random.integers(0, 65))
        picked = self.np_random.integers(0, len(ALPHABET), size=size)
        return Message(role="assistant", content="".join(ALPHABET[index] for index in picked))

    def contains(self, x: Any) -> bool:
        """Whether x is an assistant message or a string."""
        return isinstance(x, str) or (isinstance(x, Message) and x.role == "assistant")

    def to_jsonable(self, sample_n: Iterable[Message | str]) -> list[Any]:
        """Return plain dictionaries."""
        return [one if isinstance(one, str) else one.model_dump(mode="json") for one in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[Message | str]:
        """Read what `to_jsonable` returned."""
        return [one if isinstance(one, str) else Message.model_validate(one) for one in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "ActionSpace()"


class ObservationSpace(gymnasium.Space[tuple[Message, ...]]):
    """The messages that are new since the last step: system, user or tool messages."""

    @property
    def is_np_flattenable(self) -> bool:
        """Text does not flatten."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> tuple[Message, ...]:
        """Return a random user message."""
        if mask is not None or probability is not None:
            raise ValueError("a message space takes neither mask nor probability")
        picked = self.np_random.integers(0, len(ALPHABET), size=16)
        return (Message(role="user", content="".join(ALPHABET[index] for index in picked)),)

    def contains(self, x: Any) -> bool:
        """Whether x is a tuple of messages, none of them the assistant's."""
        return isinstance(x, tuple) and all(isinstance(one, Message) and one.role != "assistant" for one in x)

    def to_jsonable(self, sample_n: Iterable[tuple[Message, ...]]) -> list[Any]:
        """Return plain dictionaries."""
        return [[one.model_dump(mode="json") for one in messages] for messages in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[tuple[Message, ...]]:
        """Read what `to_jsonable` returned."""
        return [tuple(Message.model_validate(one) for one in messages) for messages in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObservationSpace)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "ObservationSpace()"
