"""Text as tokens: what anybody wrote is encoded so that it never yields a control token."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from agentgym.errors import AgentgymError


class ChatFormatError(AgentgymError, ValueError):
    """A tokenizer's chat template cannot be used for training."""


class TextEncoder:
    """Encodes text so that it never yields a control token, whatever the text says.

    It is the tokenizer's model without its added tokens. Safe to use from many threads.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ChatFormatError(
                f"wanted a fast tokenizer (one of the `tokenizers` library), found {type(tokenizer).__name__}; "
                "load it with transformers.AutoTokenizer and use_fast=True"
            )
        shape = json.loads(backend.to_str())
        unknown = shape["model"].get("unk_token")
        self._control = {one["id"] for one in shape["added_tokens"] if one["content"] != unknown}
        shape.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
        self._plain = Tokenizer.from_str(json.dumps(shape))

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._control.isdisjoint(ids):
            return ids
        # A vocabulary may hold its control tokens as ordinary entries: letters alone cannot form one.
        return [one for letter in text for one in self._plain.encode(letter, add_special_tokens=False).ids]

    @property
    def control(self) -> frozenset[int]:
        """Ids that text never produces."""
        return frozenset(self._control)
