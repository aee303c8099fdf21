"""Markers that stand for contents while a template is rendered, and the tokens that they stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentgym.tokens import TokenKind
from agentgym.types import Message
from agentgym_trainers.chat_template import CLOSE, OPEN, Shown
from agentgym_trainers.chat_text import TextEncoder

if TYPE_CHECKING:
    from agentgym_trainers.chat import ChatFormat

Piece = tuple[list[int], TokenKind]
THOUGHT_END = "</think>"


@dataclass(frozen=True, slots=True)
class Content:
    """What the template shows as one marker."""

    marker: str
    what: str | list[int]
    """Text, or the tokens that were sampled."""
    kind: TokenKind
    may_vanish: bool = False
    """An earlier thought, which templates may drop."""
    _encoded: dict[bool, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Conversations that fork show the same text again and again."""

    def ids(self, encode: TextEncoder, after: int | None) -> list[int]:
        """Return the tokens behind this one; a text is encoded once for each way in which it can begin."""
        if not isinstance(self.what, str):
            return list(self.what)
        begins = encode.marks(after)
        if begins not in self._encoded:
            self._encoded[begins] = encode(self.what, after=after)
        return list(self._encoded[begins])

    @property
    def label(self) -> str:
        """The beginning of the text, for error messages."""
        return self.what[:40] if isinstance(self.what, str) else "an answer"


def mark(messages: Sequence[Message], chat: ChatFormat, first: int = 0) -> tuple[list[Shown], list[Content]]:
    """Return messages with markers, numbered from `first`, for contents, and what the markers stand for, in order."""
    shown: list[Shown] = []
    contents: list[Content] = []
    for message in messages:
        text = ""
        for part, kind in ((message.content, TokenKind.OBSERVATION), (message.guidance, TokenKind.GUIDANCE)):
            if part:
                written = json.dumps(part, ensure_ascii=False)[1:-1] if chat.template.escapes(message.role) else part
                place = _marker(first + len(contents))
                contents.append(Content(place, written, kind))
                text += place
        extras = {"name": message.name, "tool_call_id": message.tool_call_id}
        named = {key: chat.encode_template.quoted_name(one) for key, one in extras.items() if one}
        shown.append({"role": message.role, "content": text} | named)
    return shown, contents


@dataclass(frozen=True, slots=True)
class Said:
    """What a policy sampled in one turn, without its stop token: a thought apart from the answer."""

    answer: list[int]
    """Verbatim; after a thought, without the blank lines."""
    thought: str | None = None
    open_thought: bool = False
    """The prompt opened a thought, and this turn was cut before it closed it."""

    @classmethod
    def of(cls, ids: Sequence[int], chat: ChatFormat) -> Said:
        """Take a turn's ids apart."""
        kept = list(ids[:-1] if ids and ids[-1] in chat.stop_ids else ids)
        opened = chat.opens_thought
        text = chat.decode(kept)
        if not opened and not text.lstrip().startswith("<think>"):
            return cls(kept)
        if THOUGHT_END not in text:
            return cls(kept, open_thought=opened)
        low, high = 1, len(kept)
        while low < high:  # the shortest beginning that holds the end of the thought
            middle = (low + high) // 2
            low, high = (low, middle) if THOUGHT_END in chat.decode(kept[:middle]) else (middle + 1, high)
        head, _, over = chat.decode(kept[:low]).partition(THOUGHT_END)
        thought = head.strip().removeprefix("<think>").strip()
        if over.strip():  # one token spans the end of the thought and the beginning of the answer
            return cls([*chat.encode_text(over.lstrip()), *kept[low:]], thought)
        while low < len(kept) and not chat.decode([kept[low]]).strip():
            low += 1
        return cls(kept[low:], thought)

    def marked(self, chat: ChatFormat, first: int) -> tuple[str, list[Content]]:
        """Return the content that a template is given, and what its markers, numbered from `first`, stand for."""
        opener = chat.template.opener if chat.opens_thought else "<think>\n"
        if self.thought is None:
            content = Content(_marker(first), self.answer, TokenKind.OBSERVATION)
            return (opener if self.open_thought else "") + content.marker, [content]
        thought = Content(_marker(first), self.thought, TokenKind.OBSERVATION, may_vanish=True)
        answer = Content(_marker(first + 1), self.answer, TokenKind.OBSERVATION)
        return f"{opener}{thought.marker}\n{THOUGHT_END}\n\n{answer.marker}", [thought, answer]


def _marker(number: int) -> str:
    return f"{OPEN}{number}{CLOSE}"
