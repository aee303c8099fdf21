"""Turn messages into token ids exactly, for any tokenizer with a chat template; history is never rewritten."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from agentgym.errors import AgentgymError
from agentgym.policy import ToolSchema
from agentgym.tokens import TokenKind
from agentgym.types import Message

Piece = tuple[list[int], TokenKind]

_OPEN, _CLOSE = "\ue000agentgym", "\ue001"  # private use: templates neither trim nor look for them
_ANSWER = f"{_OPEN}answer{_CLOSE}"
_QUESTION = Message(role="user", content="question")


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


class ChatFormat:
    """Renders a prompt once, then only suffixes, so that a token buffer is append-only.

    The template is rendered with a marker in place of each content and split at the markers: what the template
    itself writes is encoded with control tokens, contents are encoded as text, each apart from its neighbours.
    Assistant messages are rendered from their `content`; what a policy says is never re-rendered at all.
    """

    def __init__(self, tokenizer: Any, *, allow_stripped_thinking: bool = False) -> None:
        """Learn the end-of-turn token and check that the template preserves prefixes.

        Args:
            tokenizer: a fast transformers tokenizer with a chat template.
            allow_stripped_thinking: accept a template that would drop earlier thinking; the buffer keeps it.

        Raises:
            ChatFormatError: there is no template, or it rewrites history.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ChatFormatError(
                f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no chat template; "
                "set tokenizer.chat_template, or take the tokenizer of an instruction-tuned model"
            )
        self.tokenizer = tokenizer
        self.encode_text = TextEncoder(tokenizer)
        self._encode_template: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.end_id = self._find_end()
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = (self.end_id,) if eos in (None, self.end_id) else (self.end_id, int(eos))
        self._check_prefixes()
        if not allow_stripped_thinking:
            self._check_thinking()

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[Piece]:
        """Return the pieces of a conversation's start, ready for the assistant to speak."""
        shown, contents = _mark(messages)
        return self._pieces(self._render(shown, tools, generate=True), contents)

    def suffix(self, new_messages: Sequence[Message], *, ended: bool = True, generate: bool = True) -> list[Piece]:
        """Return what follows an assistant turn: the rest of its boundary, the new messages, the next turn's opening.

        Args:
            new_messages: messages since the assistant spoke.
            ended: the turn ended with a stop token that was sampled; if it was cut, the pieces begin with one.
            generate: open the next assistant turn.
        """
        shown, contents = _mark(new_messages)
        head = [_QUESTION.openai(), {"role": "assistant", "content": _ANSWER}]
        tail = self._render([*head, *shown], (), generate=generate).partition(_ANSWER)[2]
        pieces = self._pieces(tail, contents)
        first = pieces[0][0] if pieces else []
        if ended and first and first[0] in self.stop_ids:
            del first[0]
        return [piece for piece in pieces if piece[0]]

    def parse(self, ids: Sequence[int]) -> Message:
        """Return the assistant message that sampled ids spell, control tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Message(role="assistant", content=text)

    def answer(self, text: str) -> list[int]:
        """Return the ids that a policy would have sampled to say this text, the end-of-turn token included."""
        return [*self.encode_text(text), self.end_id]

    def _pieces(self, rendered: str, contents: Sequence[tuple[str, str, TokenKind]]) -> list[Piece]:
        pieces: list[Piece] = []
        for marker, content, kind in contents:
            before, found, rendered = rendered.partition(marker)
            if not found:
                raise ChatFormatError(
                    f"the chat template leaves out, reorders or rewrites a message: {content[:40]!r} is out of place; "
                    "choose a template that shows every message of every role, in order and as it is"
                )
            pieces.append((self._template_ids(before), TokenKind.OBSERVATION))
            pieces.append((self.encode_text(content), kind))
        pieces.append((self._template_ids(rendered), TokenKind.OBSERVATION))
        if _OPEN in rendered:
            raise ChatFormatError("the chat template repeats a message; choose a template that shows each message once")
        return [piece for piece in pieces if piece[0]]

    def _template_ids(self, text: str) -> list[int]:
        ids: list[int] = self._encode_template.encode(text, add_special_tokens=False).ids
        return ids

    def _render(self, messages: Iterable[dict[str, Any]], tools: Sequence[ToolSchema], *, generate: bool) -> str:
        rendered: str = self.tokenizer.apply_chat_template(
            list(messages),
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=generate,
        )
        return rendered

    def _find_end(self) -> int:
        messages = [_QUESTION.openai(), {"role": "assistant", "content": _ANSWER}, _QUESTION.openai()]
        boundary = self._template_ids(self._render(messages, (), generate=False).partition(_ANSWER)[2])
        if not boundary or boundary[0] not in self.encode_text.control:
            found = self.tokenizer.decode(boundary[:1]) if boundary else "nothing"
            raise ChatFormatError(
                f"wanted a control token after an assistant message, found {found!r}; "
                "use a chat template that ends every turn with a special token"
            )
        return boundary[0]

    def _check_prefixes(self) -> None:
        """Render a growing conversation: what stood before must still stand after."""
        history: list[dict[str, Any]] = [_QUESTION.openai()]
        for role in ("user", "tool", "user"):
            opened = self._render(history, (), generate=True)
            history += [{"role": "assistant", "content": _ANSWER}, {"role": role, "content": "observation"}]
            if not self._render(history, (), generate=True).startswith(opened + _ANSWER):
                raise ChatFormatError(_rewrites("the turns before", role))

    def _check_thinking(self) -> None:
        if "</think>" not in str(self.tokenizer.chat_template):
            return
        thought = f"<think>\nthought\n</think>\n\n{_ANSWER}"
        history = [_QUESTION.openai(), {"role": "assistant", "content": thought}, _QUESTION.openai()]
        if "thought" not in self._render(history, (), generate=True):
            raise ChatFormatError(
                _rewrites("thinking in the turns before", "user")
                + ", or pass allow_stripped_thinking=True to train with the thinking kept"
            )


def _rewrites(what: str, role: str) -> str:
    return (
        f"the chat template rewrites {what} when a {role!r} message follows, so sampled tokens would not be a prefix "
        "of the next prompt; use a template that only appends"
    )


def _mark(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[tuple[str, str, TokenKind]]]:
    """Return messages with markers for contents, and what the markers stand for, in order."""
    shown: list[dict[str, Any]] = []
    contents: list[tuple[str, str, TokenKind]] = []
    for message in messages:
        text = ""
        for part, kind in ((message.content, TokenKind.OBSERVATION), (message.guidance, TokenKind.GUIDANCE)):
            if part:
                marker = f"{_OPEN}{len(contents)}{_CLOSE}"
                contents.append((marker, part, kind))
                text += marker
        shown.append({"role": message.role, "content": text} | ({"name": message.name} if message.name else {}))
    return shown, contents
