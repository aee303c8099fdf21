"""The messages of an episode: what is written one way or another, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentgym.types import Message, Signal

Observation = tuple[Message, ...]


def with_hint(prompt: Observation, hint: Any) -> Observation:
    """Return a prompt with guidance behind its last message, if there is any."""
    if hint is None:
        return prompt
    if not isinstance(hint, str):
        raise TypeError(f"wanted the hint as text, found {type(hint).__name__}")
    return (*prompt[:-1], prompt[-1].model_copy(update={"guidance": f"\n{hint}"}))


def shortened(text: str, limit: int) -> str:
    """Return a text, or its beginning and its end where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def as_messages(texts: Iterable[str | Message]) -> list[Message]:
    """Return assistant messages, whatever way they were written."""
    return [one if isinstance(one, Message) else Message(role="assistant", content=one) for one in texts]


def info_signals(info: Mapping[str, Any]) -> tuple[Signal, ...]:
    """Return the signals that a step reported."""
    return tuple(Signal(name=name, value=value) for name, value in info.get("signals", {}).items())
