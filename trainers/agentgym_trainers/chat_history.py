"""Conversations under templates that rewrite what came before: when the rewritten text has to be read anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentgym.policy import ToolSchema
from agentgym.types import Message
from agentgym_trainers.chat_marks import Content, Piece, Said, mark
from agentgym_trainers.chat_template import Shown
from agentgym_trainers.chat_text import ChatFormatError

if TYPE_CHECKING:
    from agentgym_trainers.chat import ChatFormat


class Conversation:
    """All messages of an episode, the policy's as it sampled them."""

    def __init__(self, chat: ChatFormat, tools: Sequence[ToolSchema]) -> None:
        self._chat = chat
        self._tools = chat.encode_template.quoted(tools)
        self._shown: list[Shown] = []
        self._contents: list[Content] = []
        self._read = ""

    def heard(self, messages: Sequence[Message]) -> list[Piece] | None:
        """Take in new messages.

        Returns:
            The whole context in pieces if the template changes anything that the policy has read or said before;
            None if a suffix will do, or has to, where the template refuses such a conversation or leaves messages out.
        """
        shown, contents = mark(messages, self._chat, len(self._contents))
        self._shown += shown
        self._contents += contents
        try:
            rendered = self._chat.template.render(self._shown, self._tools, generate=True)
            grew = self._read != "" and rendered.startswith(self._read)
            pieces = None if grew else self._chat.pieces(rendered, self._contents)
        except ChatFormatError:  # Mistral's takes no answer to a tool's answer, and moves the system message too
            return None
        self._read = rendered
        return pieces

    def said(self, ids: Sequence[int]) -> None:
        """Take in what was sampled."""
        content, contents = Said.of(ids, self._chat).marked(self._chat, len(self._contents))
        self._shown.append({"role": "assistant", "content": content})
        self._contents += contents
        self._read += content.removeprefix(self._chat.template.opener)
