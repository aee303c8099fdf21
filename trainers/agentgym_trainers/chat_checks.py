"""The check at start-up: what stood before a message must still stand when it has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentgym.policy import ToolSchema
from agentgym_trainers.chat_template import ANSWER, CLOSE, OPEN, QUESTION, Shown, Template, first_difference
from agentgym_trainers.chat_text import ChatFormatError

TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at something.",
        "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}, "required": ["thing"]},
    },
}
"""What a template is tried out with where some do otherwise with tools."""
_THOUGHT = f"{OPEN}thought{CLOSE}"
_STEPS = (("user", "user", "user"), ("tool",), ("tool", "tool", "user"))
"""Roles that speak after each answer. Templates that want a record of every call refuse tools in long conversations."""


def check_prefixes(template: Template) -> None:
    """Render growing conversations.

    Raises:
        ChatFormatError: naming the template, the message that it changes, and what differs.
    """
    for history, before, after in _growing(template):
        if not after.startswith(before):
            raise ChatFormatError(_rewrites(template, history, before, after))


def moves_tools(template: Template) -> bool:
    """Return whether what was read changes in conversations with tools, which Mistral's show at the last question."""
    try:
        return any(not after.startswith(before) for _, before, after in _growing(template, [TOOL]))
    except ChatFormatError:
        return False


def strips_thoughts(template: Template) -> bool:
    """Return whether an earlier thought is changed or left out when any message follows."""
    if "</think>" not in template.source:
        return bool(template.opener)
    opener = template.opener if template.opener.rstrip() == "<think>" else "<think>\n"
    said = f"{opener}{_THOUGHT}\n</think>\n\n{ANSWER}"
    before = template.render([QUESTION], generate=True) + said.removeprefix(template.opener)
    answered = [QUESTION, {"role": "assistant", "content": said}]
    return any(
        not template.render([*answered, {"role": role, "content": "observation"}], generate=True).startswith(before)
        for role in ("user", "tool")
    )


def _growing(template: Template, tools: Sequence[ToolSchema] = ()) -> Iterator[tuple[list[Shown], str, str]]:
    """Yield conversations that grow, with what their last answer's reader had read, and what is read next."""
    for roles in _STEPS:
        history: list[Shown] = [QUESTION]
        for role in roles:
            before = template.render(history, tools, generate=True).removesuffix(template.opener) + ANSWER
            history = [*history, {"role": "assistant", "content": ANSWER}, {"role": role, "content": "observation"}]
            try:
                after = template.render(history, tools, generate=True)
            except ChatFormatError:
                if len(history) == 3:
                    raise
                break
            yield history, before, after


def _rewrites(template: Template, history: list[Shown], before: str, after: str) -> str:
    place, wanted, found = first_difference(before, after)
    number = next(
        (count for count in range(1, len(history)) if len(_shown(template, history[:count])) > place), len(history) - 2
    )
    return (
        f"the chat template of {template.name!r} rewrites message {number} ({history[number - 1]['role']!r}) when a "
        f"{history[-1]['role']!r} message follows: wanted {wanted}, found {found}; so sampled tokens would not be a "
        "prefix of the next prompt; use a template that only appends"
    )


def _shown(template: Template, messages: list[Shown]) -> str:
    return template.render(messages, generate=False)
