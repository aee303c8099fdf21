"""Turn messages into token ids exactly, for any tokenizer with a chat template; what was read is never rewritten."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from agentgym.errors import RecipeError, UnknownNameError
from agentgym.policy import ToolSchema
from agentgym.tokens import TokenKind
from agentgym.toolcalls import FORMATS, detect_format
from agentgym.types import Message
from agentgym_trainers.chat_checks import TOOL, check_prefixes, moves_tools, strips_thoughts
from agentgym_trainers.chat_history import Conversation
from agentgym_trainers.chat_marks import THOUGHT_END, Content, Piece, mark
from agentgym_trainers.chat_quotes import TemplateEncoder
from agentgym_trainers.chat_template import ANSWER, OPEN, QUESTION, Template
from agentgym_trainers.chat_text import ChatFormatError, TextEncoder

__all__ = ["ChatFormat", "ChatFormatError", "Piece", "TextEncoder"]

SYNTAX = re.compile(
    r"</?think>|</?tool_call>|\[(?:TOOL_CALLS|CALL_ID|ARGS)\]|<\|python_tag\|>|<｜tool▁(?:calls?▁(?:begin|end)|sep)｜>"
)
"""Control tokens that are part of what an assistant says, and not of how its turn is delimited."""


class ChatFormat:
    """Renders a prompt once, then only suffixes, so that a token buffer is append-only.

    The template is rendered with a marker in place of each content and split at the markers: what the template
    itself writes is encoded with control tokens, contents are encoded as text, each apart from its neighbours.
    What a policy says is never re-rendered where the template keeps it. Templates of thinking models drop earlier
    thoughts, and some move the tools: then the conversation forks, and its rewritten context is read anew.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        thinking: Literal["fork", "keep"] = "fork",
        calls: str | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        """Learn the end-of-turn tokens and check that the template shows a question once and preserves prefixes.

        Args:
            tokenizer: a fast transformers tokenizer with a chat template.
            thinking: where the template changes or drops earlier thoughts, or moves the tools, either `fork`, so that
                the model reads what the template says, or `keep` them in one append-only context, which is cheaper and
                not what it was trained on.
            calls: how the model writes tool calls, one of `agentgym.toolcalls.FORMATS`; None asks the template.
            stop_ids: tokens that end a turn beside those of the template and the tokenizer, as the model's
                `generation_config` has them.

        Raises:
            ChatFormatError: there is no template, or it rewrites history, or shows a question not once.
            UnknownNameError: there is no such format of tool calls.
        """
        if calls is not None and calls not in FORMATS:
            raise UnknownNameError("tool-call format", calls, FORMATS)
        self.template = Template(tokenizer)
        self.tokenizer = tokenizer
        self.encode_text = TextEncoder(tokenizer)
        self.call_format = calls or detect_format(self.template.source)
        self.opens_thought = self.template.opener.rstrip() == "<think>"
        """Whether the prompt opens a thought, so that what is sampled begins inside it."""
        self.encode_template = TemplateEncoder(tokenizer, self.encode_text)
        check_prefixes(self.template)
        self._ends = tuple(dict.fromkeys((self._find_end("user"), self._find_end("tool"))))
        self.end_id = self._ends[0]
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((*self._ends, *eos, *stop_ids)))
        self._opening = self.encode_template(self.template.render([QUESTION], generate=True))[-1]
        self._other_ends = frozenset() if len(self._ends) > 1 else self._find_other_ends()
        self._unsaid = {
            number
            for number, one in tokenizer.added_tokens_decoder.items()
            if (one.special or number in self.stop_ids) and not SYNTAX.fullmatch(one.content)
        }
        self._forks = thinking == "fork" and strips_thoughts(self.template)
        self._forks_with_tools = self._forks or (thinking == "fork" and moves_tools(self.template))
        self.prompt([Message(role="user", content="question")])
        self._proven = False  # environments open in ways of their own

    def conversation(self, tools: Sequence[ToolSchema] = ()) -> Conversation | None:
        """Return what follows an episode where the template may rewrite it; None where suffixes always do."""
        return Conversation(self, tools) if (self._forks_with_tools if tools else self._forks) else None

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[Piece]:
        """Return the pieces of a conversation's start, ready for the assistant to speak."""
        shown, contents = mark(messages, self)
        rendered = self.template.render(shown, self.encode_template.quoted(tools), generate=True)
        pieces = self.pieces(rendered, contents)
        self._proven = True
        return pieces

    def suffix(
        self, new_messages: Sequence[Message], *, ended: bool = True, generate: bool = True, stop_id: int | None = None
    ) -> list[Piece]:
        """Return what follows an assistant turn: the rest of its boundary, the new messages, the next turn's opening.

        Args:
            new_messages: messages since the assistant spoke.
            ended: the turn ended with a stop token that was sampled; if it was cut, the pieces begin with one.
            generate: open the next assistant turn.
            stop_id: the stop token that was sampled; None stands for the template's own.
        """
        shown, contents = mark(new_messages, self)
        head = [QUESTION, {"role": "assistant", "content": ANSWER}]
        tail = self.template.render([*head, *shown], generate=generate).partition(ANSWER)[2]
        pieces = self.pieces(tail, contents)
        first = pieces[0][0] if pieces else []
        if ended and first and first[0] in self.stop_ids and (stop_id in (None, first[0], *self._other_ends)):
            del first[0]
        return [piece for piece in pieces if piece[0]]

    def parse(self, ids: Sequence[int]) -> Message:
        """Return the assistant message that sampled ids spell, control tokens left out but those of calls and thoughts.

        Where the prompt opened a thought, the message begins with that opening.
        """
        opener = self.template.opener if self.opens_thought else ""
        return Message(role="assistant", content=opener + self.decode(ids), call_format=self.call_format)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of what an assistant said."""
        said = [one for one in ids if one not in self._unsaid]
        if not self.encode_text.marks_beginnings or self.encode_text.marks(self._opening):
            return self._decoded(said)
        # At a beginning, a tokenizer that marks it takes a space away; behind another token, none.
        return self._decoded([self.end_id, *said]).removeprefix(self._decoded([self.end_id]))

    def answer(self, text: str) -> list[int]:
        """Return the ids that a policy would have sampled to say this text, the end-of-turn token included.

        Marks of thoughts and tool calls are the tokens that the model knows them by. A thought that the prompt opened
        and the text does not close is closed first.
        """
        if self.opens_thought and THOUGHT_END not in text:
            text = f"\n{THOUGHT_END}\n\n{text}"
        ids = [self._opening]
        place = 0
        for found in SYNTAX.finditer(text):
            ids += self.encode_text(text[place : found.start()], after=ids[-1])
            ids += self.encode_template(found.group(), after=ids[-1])
            place = found.end()
        return [*ids[1:], *self.encode_text(text[place:], after=ids[-1]), self.end_id]

    def pieces(self, rendered: str, contents: Sequence[Content]) -> list[Piece]:
        """Return a rendered text as tokens, contents in place of their markers.

        Raises:
            ChatFormatError: the template left out, reordered, repeated or changed a message.
        """
        pieces: list[Piece] = []
        last: int | None = None
        for one in contents:
            before, found, after = rendered.partition(one.marker)
            if not found and one.may_vanish:
                continue
            if not found:
                raise ChatFormatError(
                    f"the chat template of {self.template.name!r} leaves out, reorders or rewrites a message: "
                    f"{one.label!r} is out of place; "
                    "choose a template that shows every message of every role, in order and as it is"
                )
            if OPEN in before:
                raise self._repeats()
            rendered = after
            written = self.encode_template(before, after=last)
            last = written[-1] if written else last
            said = one.ids(self.encode_text, last)
            last = said[-1] if said else last
            pieces += [(written, TokenKind.OBSERVATION), (said, one.kind)]
        if OPEN in rendered:
            raise self._repeats()
        pieces.append((self.encode_template(rendered, after=last), TokenKind.OBSERVATION))
        return [piece for piece in pieces if piece[0]]

    @contextmanager
    def blamed(self, messages: Sequence[Message], *, begins: bool, tools: Sequence[ToolSchema] = ()) -> Iterator[None]:
        """Tell an error that lies in the template, whatever these messages say, as the recipe's: it ends the run.

        Args:
            messages: what is being rendered.
            begins: they are a prompt, and not what follows an answer.
            tools: of the conversation.

        Raises:
            RecipeError: no prompt was shown yet, and none with such roles can be, with tools if there are any; or a
                message of such a role never is after an answer.
        """
        try:
            yield
        except ChatFormatError as error:
            try:
                if not begins:
                    for role in dict.fromkeys(one.role for one in messages):
                        self.suffix([Message(role=role, content="observation")])
                elif not self._proven:
                    plain = [Message(role=one.role, content="question") for one in messages]
                    self.prompt(plain, [TOOL] if tools else ())
            except ChatFormatError as always:
                raise RecipeError(str(error if begins else always)) from error
            raise

    def _repeats(self) -> ChatFormatError:
        return ChatFormatError(
            f"the chat template of {self.template.name!r} repeats or reorders a message; "
            "choose a template that shows each message once, in order"
        )

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _find_other_ends(self) -> frozenset[int]:
        """Return stop tokens that the template writes in place of its usual end, as Llama 3.1's <|eom_id|>.

        One that it writes around any message is none: it opens the next. One that it never writes leaves the turn
        open, as <|endoftext|> does in Qwen's: there the template's own end follows.
        """
        plain = [QUESTION, {"role": "assistant", "content": "answer"}, QUESTION]
        usual = self.encode_template(self.template.render(plain, generate=True))
        texts = {one: self.tokenizer.convert_ids_to_tokens(one) for one in self.stop_ids if one not in usual}
        return frozenset(one for one, text in texts.items() if text and text in self.template.source)

    def _find_end(self, role: str) -> int:
        messages = [QUESTION, {"role": "assistant", "content": ANSWER}, {"role": role, "content": "observation"}]
        boundary = self.encode_template(self.template.render(messages, generate=False).partition(ANSWER)[2])
        if not boundary or boundary[0] not in self.encode_text.control:
            found = self.tokenizer.decode(boundary[:1]) if boundary else "nothing"
            raise ChatFormatError(
                f"wanted a control token after an assistant message, found {found!r}; "
                "use a chat template that ends every turn with a special token"
            )
        return boundary[0]
