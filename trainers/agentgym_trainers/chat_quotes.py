"""What a template writes as tokens, and in it what others wrote: names, ids and tools' schemas, which stay text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from agentgym_trainers.chat_text import ChatFormatError, TextEncoder

# Letters, so that neither JSON nor Python's `repr` escapes a mark; the first stands in it once, so that no mark begins
# in what stands before it; and none is another letter in upper or lower case.
_MARK = "agentgymquoted"
_QUOTE, _UNQUOTE, _PRIVATE = f"{_MARK}0", f"{_MARK}1", f"{_MARK}3"
_QUOTED = re.compile(f"{_QUOTE}(.*?){_UNQUOTE}", re.DOTALL)
_ESCAPES = re.compile(f"({_MARK})2|{_PRIVATE}", re.IGNORECASE)
# What is quoted holds neither a mark nor the beginning of a content's marker, which is `chat_template.OPEN`.
_SPECIAL = re.compile(f"({_MARK})|\ue000", re.IGNORECASE)
_STRAY = re.compile(f"{_MARK}[0-9]?", re.IGNORECASE)
_UNESCAPED = re.compile(f"{_MARK}(?![23])[0-9]?", re.IGNORECASE)
_TEXTS = 1024
"""What templates write between contents, at every turn the same: so many texts are encoded once."""
_NAMING = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keys of JSON Schema under which all keys are names that somebody chose."""
_KEYS = _NAMING.union([
    "type", "function", "name", "description", "parameters", "required", "items", "prefixItems", "enum", "const", "not",
    "default", "examples", "title", "format", "pattern", "anyOf", "oneOf", "allOf", "minimum", "maximum", "minLength",
    "maxLength", "minItems", "maxItems", "uniqueItems", "additionalProperties", "$ref", "$schema", "nullable", "strict",
    "return",
])  # fmt: skip
_TYPES = frozenset(["function", "object", "array", "string", "integer", "number", "boolean", "null"])


class TemplateEncoder:
    """Encodes what a template writes with control tokens, and what stands in it between quotes as text.

    Quotes survive what templates do to a whole string: trim, indent, repeat or leave it out, write it as JSON, ASCII or
    not, or as Python does. What changes or cuts off a quote is refused.
    """

    def __init__(self, tokenizer: Any, encode_text: TextEncoder) -> None:
        self._whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._text = encode_text
        self._name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        unknown = () if tokenizer.unk_token_id is None else (tokenizer.unk_token_id,)
        self._alarms = encode_text.control.union(unknown)
        added = [one.content for number, one in tokenizer.added_tokens_decoder.items() if number in self._alarms]
        self._joined = "\n".join(added)
        half = len(_MARK) // 2  # of two strings that make a mark together, one holds half of it
        self._heads = {one[:cut] for one in added for cut in range(1, len(one))}
        self._heads |= {_MARK[:cut] for cut in range(half, len(_MARK))}
        self._tails = {one[cut:] for one in added for cut in range(1, len(one))}
        self._tails |= {_MARK[cut:] for cut in range(1, half + 1)}
        self._longest = max(map(len, [*added, _MARK]))
        self._encode = lru_cache(_TEXTS)(self._ids)
        self.alarming = lru_cache(_TEXTS)(self._alarming)
        """Whether a string holds a control token, or could be one's beginning or end."""

    def quoted(self, value: Any) -> Any:
        """Return a schema with quotes around each alarming string, JSON Schema's own words left as they are.

        Templates look those words up, and what they write of them is theirs.
        """
        if isinstance(value, str):
            return _quote(value) if self.alarming(value) else value
        if isinstance(value, Mapping):
            return {key if key in _KEYS else self.quoted(key): self._quoted_at(key, one) for key, one in value.items()}
        return [self.quoted(one) for one in value] if isinstance(value, list | tuple) else value

    def quoted_name(self, value: str) -> str:
        """Return a name or an id in quotes if a template could complete it to a control token, whole or in part."""
        return _quote(value) if value in self._joined or self.alarming(value) else value

    def _quoted_at(self, key: Any, value: Any) -> Any:
        """Return what stands at a key of a schema: names, types, or anything else."""
        if key in _NAMING and isinstance(value, Mapping):
            return {self._named(name): self.quoted(one) for name, one in value.items()}
        if key in ("name", "required"):
            return self._named(value)
        if key == "type" and isinstance(value, list | tuple):
            return [self._quoted_at(key, one) for one in value]
        return value if key == "type" and isinstance(value, str) and value in _TYPES else self.quoted(value)

    def _named(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._named(one) for one in value]
        return self.quoted_name(value) if isinstance(value, str) else self.quoted(value)

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
        parts = _QUOTED.split(text)
        broken = _broken(parts)
        if broken is not None:
            raise ChatFormatError(
                f"the chat template of {self._name!r} changes a tool's name or schema: found {broken!r}; "
                "choose a template that shows them as they are, or leave control tokens out of them"
            )
        for place, part in enumerate(parts):
            if place % 2:
                plain = _ESCAPES.sub(lambda found: found[1] or "\ue000", part)
                ids += self._text(plain, after=ids[-1] if ids else None)
            elif part:
                ids += self._own(part, goes_on or place > 0)
        return ids

    def _own(self, text: str, goes_on: bool) -> list[int]:
        found = self._whole.encode(text, add_special_tokens=False)
        ids: list[int] = found.ids
        if not ids or not (goes_on and self._text.marks_beginnings) or ids[0] in self._text.control:
            return ids
        # The tokenizer would take this for a beginning, up to the first control token.
        starts = (start for one, (start, _) in zip(ids, found.offsets, strict=True) if one in self._text.control)
        cut = next(starts, len(text))
        rest: list[int] = self._whole.encode(text[cut:], add_special_tokens=False).ids
        return [*self._text(text[:cut]), *rest]

    def _alarming(self, text: str) -> bool:
        if _SPECIAL.search(text) or not self._alarms.isdisjoint(self._whole.encode(text, add_special_tokens=False).ids):
            return True
        lengths = range(1, min(self._longest, len(text) + 1))
        return any(text[-one:] in self._heads or text[:one] in self._tails for one in lengths)


def breaks_quotes(text: str) -> bool:
    """Return whether a template changed what stood between quotes so that nobody can tell where it ends."""
    return _broken(_QUOTED.split(text)) is not None


def _broken(parts: Sequence[str]) -> str | None:
    """Return what follows a mark that stands where none may; every other part was quoted."""
    for place, part in enumerate(parts):
        found = (_UNESCAPED if place % 2 else _STRAY).search(part)
        if found:
            return part[found.end() :][:40]
    return None


def _quote(text: str) -> str:
    escaped = _SPECIAL.sub(lambda found: f"{found[1]}2" if found[1] else _PRIVATE, text)
    return f"{_QUOTE}{escaped}{_UNQUOTE}"
