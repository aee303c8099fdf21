"""What a template writes as tokens, and in it what others wrote: names, ids and tools' schemas, which stay text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from agentgym_trainers.chat_text import ChatFormatError, TextEncoder

_QUOTE, _UNQUOTE = "\ue000text", "\ue000end"
_BARE, _ESCAPED = "\ue000", "\ue000\ue002"  # so that what is quoted holds neither a quote nor a content's marker
_QUOTED = re.compile(f"{_QUOTE}(.*?){_UNQUOTE}", re.DOTALL)
_TEXTS = 1024
"""What templates write between contents, at every turn the same: so many texts are encoded once."""


class TemplateEncoder:
    """Encodes what a template writes with control tokens, and what stands in it between quotes as text.

    Quotes survive whatever templates do to a string: trim, indent, repeat or leave it out, or write it as JSON.
    """

    def __init__(self, tokenizer: Any, encode_text: TextEncoder) -> None:
        self._whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._text = encode_text
        self._name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        unknown = () if tokenizer.unk_token_id is None else (tokenizer.unk_token_id,)
        self._alarms = encode_text.control.union(unknown)
        added = [one.content for number, one in tokenizer.added_tokens_decoder.items() if number in self._alarms]
        self._joined = "\n".join(added)
        self._heads = {one[:cut] for one in added for cut in range(1, len(one))}
        self._tails = {one[cut:] for one in added for cut in range(1, len(one))}
        self._longest = max(map(len, added), default=0)
        self._encode = lru_cache(_TEXTS)(self._ids)

    def quoted(self, value: Any) -> Any:
        """Return a schema with quotes around each string that holds a control token, or that could be one's end."""
        if isinstance(value, str):
            return _quote(value) if self._alarming(value) else value
        if isinstance(value, Mapping):
            return {self.quoted(key): self.quoted(one) for key, one in value.items()}
        return [self.quoted(one) for one in value] if isinstance(value, list | tuple) else value

    def quoted_name(self, value: str) -> str:
        """Return a name or an id in quotes if a template could complete it to a control token, whole or in part."""
        return _quote(value) if value in self._joined else str(self.quoted(value))

    def __call__(self, text: str, *, after: int | None = None) -> list[int]:
        """Return the ids of a text.

        Args:
            text: of a template.
            after: the token before it; None begins a conversation.

        Raises:
            ChatFormatError: the template changed what stands between quotes.
        """
        return list(self._encode(text, after is not None))

    def _ids(self, text: str, goes_on: bool) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(_QUOTED.split(text)):
            if place % 2:
                ids += self._text(part.replace(_ESCAPED, _BARE), after=ids[-1] if ids else None)
            elif _BARE in part:
                raise ChatFormatError(
                    f"the chat template of {self._name!r} changes a tool's name or schema: found {_told(part)!r}; "
                    "choose a template that shows them as they are, or leave control tokens out of them"
                )
            elif part:
                ids += self._own(part, goes_on or place > 0)
        return ids

    def _own(self, text: str, goes_on: bool) -> list[int]:
        found = self._whole.encode(text, add_special_tokens=False)
        ids: list[int] = found.ids
        if not (goes_on and self._text.marks_beginnings) or ids[0] in self._text.control:
            return ids
        # The tokenizer would take this for a beginning, up to the first control token.
        starts = (start for one, (start, _) in zip(ids, found.offsets, strict=True) if one in self._text.control)
        cut = next(starts, len(text))
        rest: list[int] = self._whole.encode(text[cut:], add_special_tokens=False).ids
        return [*self._text(text[:cut]), *rest]

    def _alarming(self, text: str) -> bool:
        if _BARE in text or not self._alarms.isdisjoint(self._whole.encode(text, add_special_tokens=False).ids):
            return True
        lengths = range(1, min(self._longest, len(text) + 1))
        return any(text[-one:] in self._heads or text[:one] in self._tails for one in lengths)


def breaks_quotes(text: str) -> bool:
    """Return whether a template changed what stood between quotes so that nobody can tell where it ends."""
    return _BARE in _QUOTED.sub("", text)


def _told(part: str) -> str:
    return part[part.index(_BARE) + 1 :][:40]


def _quote(text: str) -> str:
    return f"{_QUOTE}{text.replace(_BARE, _ESCAPED)}{_UNQUOTE}"
