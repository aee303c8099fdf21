"""A tokenizer's chat template, tried out once to learn what it accepts and how it shows each role."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from agentgym.policy import ToolSchema
from agentgym_trainers.chat_quotes import breaks_quotes
from agentgym_trainers.chat_text import ChatFormatError

Shown = dict[str, Any]
"""A message as a template takes it."""

OPEN, CLOSE = "\ue000agentgym", "\ue001"  # private use: templates neither trim nor look for them
ANSWER = f"{OPEN}answer{CLOSE}"
QUESTION: Shown = {"role": "user", "content": "question"}
_STAND_INS = {"tool_call_id": "agentgym0", "name": "unknown"}  # Mistral's templates want nine letters or digits
_PROBE = 'a"b\nc'
_REMEMBERED = 256
_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a template's own methods and filters raise, such as `split` with nothing to split at."""
_OPENER = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class Template:
    """Renders messages as text.

    Templates differ in what they refuse: Gemma's know no system messages, Mistral's want user and assistant to take
    turns. What a template refuses is shown in the nearest way that it accepts: a system message joins the user message
    that follows, a tool's message becomes a user's, neighbours of the same role become one, and a call's id or name
    that a model made up gives way to another.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Try the template out.

        Raises:
            ChatFormatError: there is no template, or it accepts not even a question and an answer.
        """
        self.name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        if not getattr(tokenizer, "chat_template", None):
            raise ChatFormatError(
                f"the tokenizer {self.name!r} has no chat template; "
                "set tokenizer.chat_template, or take the tokenizer of an instruction-tuned model"
            )
        self._tokenizer = tokenizer
        self._refused: set[str] = set()
        self._joins = False
        self._rendered = lru_cache(_REMEMBERED)(self._render)
        self._takes = lru_cache(_REMEMBERED)(self._tries)
        answered = [QUESTION, {"role": "assistant", "content": ANSWER}]
        self.render(answered, generate=True)
        trials = {"system": [_probe("system"), QUESTION], "tool": [*answered, _probe("tool")]}
        self._refused = {role for role, messages in trials.items() if not self._accepts(messages)}
        self._joins = not self._accepts([*answered, QUESTION, QUESTION])
        self._escaped = frozenset(role for role in ("user", "tool") if self._escapes(role))
        found = _OPENER.search(self.render([QUESTION], generate=True))
        self.opener = found.group() if found else ""
        """What the opening of an assistant turn says of a thought: `<think>`, an empty one, or nothing."""

    def escapes(self, role: str) -> bool:
        """Return whether a role's content is written as a JSON string, as Llama 3's templates do with a tool's."""
        return ("user" if role in self._refused else role) in self._escaped

    @property
    def source(self) -> str:
        """The template itself; of several, all of them."""
        found = self._tokenizer.chat_template
        return "\n".join(found.values()) if isinstance(found, dict) else str(found)

    def render(self, messages: Iterable[Shown], tools: Sequence[ToolSchema] = (), *, generate: bool) -> str:
        """Return the text of a conversation.

        Raises:
            ChatFormatError: the template refuses it.
        """
        return self._rendered(json.dumps([list(self._adapted(messages)), [dict(tool) for tool in tools], generate]))

    def _render(self, given: str) -> str:
        """Render messages, tools and whether to generate, as JSON; episodes alike ask for the same again and again."""
        messages, tools, generate = json.loads(given)
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=generate
            )
        except (TemplateError, *_FAULTS) as error:
            reason = " ".join(str(error).split())
            raise ChatFormatError(
                f"the chat template of {self.name!r} refuses a conversation: {reason}; choose another template"
            ) from error
        return rendered

    def _adapted(self, messages: Iterable[Shown]) -> Iterator[Shown]:
        given = [dict(one) for one in messages]
        for one in given:
            if one["role"] == "tool":
                one.setdefault("tool_call_id", _STAND_INS["tool_call_id"])
                extras = {key: one[key] for key in _STAND_INS if key in one}
                if not self._takes(tuple(extras.items())):
                    one |= {key: _STAND_INS[key] for key in extras}
            if one["role"] in self._refused:
                one["role"] = "user"
        if not self._joins and "system" not in self._refused:
            yield from given
            return
        for role, group in groupby(given, key=lambda one: one["role"]):
            each = list(group)
            if role == "user":
                yield {**each[-1], "content": "\n\n".join(one["content"] for one in each if one["content"])}
            else:
                yield from each

    def _tries(self, extras: tuple[tuple[str, str], ...]) -> bool:
        """Return whether a tool's message may have such a name and such an id."""
        message = {**_probe("user" if "tool" in self._refused else "tool"), **dict(extras)}
        answered = [QUESTION, {"role": "assistant", "content": "answer"}]
        try:
            return not breaks_quotes(self._rendered(json.dumps([[*answered, message], [], True])))
        except ChatFormatError:
            return False

    def _accepts(self, messages: Iterable[Shown]) -> bool:
        try:
            self.render(messages, generate=True)
        except ChatFormatError:
            return False
        return True

    def _escapes(self, role: str) -> bool:
        shown = self.render([QUESTION, {"role": "assistant", "content": ANSWER}, _probe(role)], generate=False)
        return _PROBE not in shown and json.dumps(_PROBE)[1:-1] in shown


def _probe(role: str) -> Shown:
    return {"role": role, "content": _PROBE}


def first_difference(before: str, after: str) -> tuple[int, str, str]:
    """Return where two texts part, and what either says there."""
    place = next(
        (at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other),
        min(len(before), len(after)),
    )
    start = max(0, place - 12)
    return place, _excerpt(before[start : place + 24]), _excerpt(after[start : place + 24])


def _excerpt(text: str) -> str:
    return repr(text.replace(OPEN, "[").replace(CLOSE, "]"))
