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
        added = [one for one in shape["added_tokens"] if one["content"].strip("▁ \t\r\n")]
        self._control = frozenset(one["id"] for one in added if one["content"] != unknown)
        # Gemma's runs of blanks are added tokens too, and text; the library numbers those anew that no vocabulary has.
        known = shape["model"]["vocab"]
        blanks = [one for one in shape["added_tokens"] if one not in added and one["content"] in known]
        shape.update(added_tokens=blanks, post_processor=None, truncation=None, padding=None)
        self._plain = _tokenizer(shape, ("first", "always"))
        self._first = _tokenizer(shape, ("first",))
        self.marks_beginnings = bool(shape != _unmarked(shape, ("first", "always")))
        """The tokenizer writes a space that is not there where a text begins."""
        self._marks_all = _unmarked(shape, ("first",)) != _unmarked(shape, ("first", "always"))

    def __call__(self, text: str, *, after: int | None = None) -> list[int]:
        """Return the ids of a text that stands among others.

        Args:
            text: what anybody wrote.
            after: the token before it. Behind a control token some tokenizers mark a beginning; elsewhere nothing does.
        """
        encoder = self._first if self.marks(after) else self._plain
        ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        if self._control.isdisjoint(ids):
            return ids
        # A vocabulary may hold its control tokens as ordinary entries: letters alone cannot form one.
        return [one for letter in text for one in self._plain.encode(letter, add_special_tokens=False).ids]

    def marks(self, after: int | None) -> bool:
        """Return whether a text behind this token begins with a space that is not there."""
        return self._marks_all and after in self._control

    @property
    def control(self) -> frozenset[int]:
        """Ids that text never produces."""
        return self._control


def _tokenizer(shape: dict[str, Any], schemes: tuple[str, ...]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(_unmarked(shape, schemes)))


def _unmarked(shape: dict[str, Any], schemes: tuple[str, ...]) -> dict[str, Any]:
    """Return a tokenizer that writes no space of its own at the beginnings that these schemes mark."""
    steps = {key: _without_mark(shape[key], schemes) for key in ("normalizer", "pre_tokenizer")}
    return {**shape, **steps}


def _without_mark(step: Any, schemes: tuple[str, ...]) -> Any:
    """Return a normalizer or a pre-tokenizer without its mark; None if it does nothing else."""
    kind = step and step["type"]
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        kept = [_without_mark(one, schemes) for one in step[key]]
        return {**step, key: [one for one in kept if one is not None]}
    if kind == "Metaspace" and step["prepend_scheme"] in schemes:
        return {**step, "prepend_scheme": "never"}
    if "always" not in schemes:
        return step
    if kind == "ByteLevel":
        return {**step, "add_prefix_space": False}
    doubles = kind == "Replace" and step["pattern"] == {"Regex": r"\A▁"}  # a beginning's own space, beside the mark
    return None if kind == "Prepend" or doubles else step
