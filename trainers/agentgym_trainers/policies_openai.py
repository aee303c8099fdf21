"""A model behind an OpenAI-compatible endpoint as a policy: for evaluation, since it speaks text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from agentgym.errors import RecipeError
from agentgym.policy import Action, BudgetExceeded, Episode, Sampling, StopReason
from agentgym.sampling import derive_seed
from agentgym.tokens import TokenBuffer
from agentgym.toolcalls.common import UnreadableError, make_call, read_json
from agentgym.types import Message, ToolCall
from agentgym_trainers.addresses import read_options
from agentgym_trainers.engines.openai import Completion, OpenAIEngine, OpenAISettings

_ADDRESS = re.compile(r"(?P<model>.+?)@(?P<url>https?://[^,\s]+)(?:,(?P<options>.*))?")
_FEWEST = 64
"""Tokens of a turn: with less room than that, the context is full."""


def openai_policy(address: str, *, sampling: Sampling | None = None) -> OpenAIPolicy:
    """Return the policy that `MODEL@URL` names, with options after commas.

    >>> policy = openai_policy("qwen@http://localhost:8000/v1,concurrency=4,retries=2")
    >>> policy.engine.settings.concurrency
    4

    Args:
        address: such as `gpt-5@https://api.openai.com/v1,api_key_variable=OPENAI_API_KEY`; the options are the fields
            of `OpenAISettings`.
        sampling: how to draw; without it the endpoint's own defaults hold.

    Raises:
        RecipeError: the address is malformed, or names an option that does not exist.
        MissingExtraError: httpx is not installed.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise RecipeError(f"wanted an endpoint like openai:MODEL@http://localhost:8000/v1, found 'openai:{address}'")
    settings = read_options(
        found["options"] or "",
        partial(OpenAISettings, model=found["model"], url=found["url"]),
        [name for name in OpenAISettings.model_fields if name not in ("model", "url")],
        owner="endpoint",
        example="concurrency=4",
    )
    return OpenAIPolicy(OpenAIEngine(settings), sampling)


class OpenAIPolicy:
    """Plays episodes by asking an endpoint, which is given the environment's tools."""

    def __init__(self, engine: OpenAIEngine, sampling: Sampling | None = None) -> None:
        """Take the engine, and how to draw; its seed is replaced for each turn."""
        self.engine = engine
        self.sampling = sampling

    def session(self, episode: Episode) -> OpenAISession:
        """Begin one episode."""
        self.engine.open(episode.session)
        return OpenAISession(self.engine, self.sampling, episode)


class OpenAISession:
    """One conversation with an endpoint."""

    def __init__(self, engine: OpenAIEngine, sampling: Sampling | None, episode: Episode) -> None:
        self.tokens: TokenBuffer | None = None
        self._engine = engine
        self._sampling = sampling
        self._episode = episode
        self._history: list[dict[str, Any]] = []
        self._sampled = 0
        self._turn = 0

    async def act(self, new_messages: Sequence[Message]) -> Action:
        """Ask for the next message; what the endpoint counts as its tokens counts against the episode's budget.

        Raises:
            BudgetExceeded: there is no room for another turn.
            EndpointError: the endpoint failed, which is nobody's zero.
        """
        self.observe(new_messages)
        left = self._episode.max_tokens - self._sampled
        if left < 1:
            raise BudgetExceeded("tokens")
        made = await self._complete(left)
        message, shown = _message(made, self._turn)
        self._history.append(shown)
        self._sampled += made.completion_tokens
        self._turn += 1
        stop: StopReason = "length" if made.finish_reason == "length" else "stop"
        return Action(message, stop, sampled=made.completion_tokens)

    async def _complete(self, left: int) -> Completion:
        """Ask, and again for fewer tokens: servers count those that are asked for as if they were in the context."""
        settings, sampling, episode = self._engine.settings, self._sampling, self._episode
        limit = min(left, episode.max_tokens_per_turn, (sampling and sampling.max_tokens) or left)
        while True:
            try:
                return await self._engine.complete({**self._body(), settings.max_tokens_field: limit})
            except BudgetExceeded:
                if limit <= _FEWEST:
                    raise
                limit = max(_FEWEST, limit // 2)

    def observe(self, new_messages: Sequence[Message]) -> None:
        """Add messages to the conversation."""
        self._history += [_shown(one) for one in new_messages]

    def close(self) -> None:
        """Release the engine's session."""
        self._engine.release(self._episode.session)

    def _body(self) -> dict[str, Any]:
        settings, sampling, episode = self._engine.settings, self._sampling, self._episode
        body: dict[str, Any] = {
            "messages": self._history,
            "seed": derive_seed(episode.seed, "turn", self._turn) % (1 << 31),
        }
        if episode.tools and settings.native_tools:
            body["tools"] = [dict(one) for one in episode.tools]
        if sampling is not None:
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return body


def _shown(message: Message) -> dict[str, Any]:
    shape = message.openai()
    if message.role == "tool":
        shape.pop("name", None)
        if message.tool_call_id is None:  # it answers a call that was written as text, which the endpoint never saw
            shape["role"] = "user"
    return shape


def _message(made: Completion, turn: int) -> tuple[Message, dict[str, Any]]:
    """Return what the model said, for the environment and for the history that the endpoint is shown."""
    content = made.message.get("content")
    text = content if isinstance(content, str) else ""
    given = made.message.get("tool_calls")
    calls = tuple(
        _call(one, f"call_{turn}_{index}") for index, one in enumerate(given if isinstance(given, list) else [])
    )
    message = Message(role="assistant", content=text, tool_calls=calls)
    return message, message.openai()


def _call(given: Any, default_id: str) -> ToolCall:
    """Read one call; what is wrong with it becomes its problem, which the environment tells."""
    shape = given if isinstance(given, dict) else {}
    function = shape.get("function")
    function = function if isinstance(function, dict) else {}
    name, text = function.get("name"), function.get("arguments")
    call_id = shape["id"] if isinstance(shape.get("id"), str) and shape["id"] else default_id
    if not isinstance(name, str) or not name:
        return ToolCall(name="unknown", id=call_id, problem="the tool call has no name")
    try:
        arguments = text if isinstance(text, dict) else _arguments(text)
    except UnreadableError as error:
        return ToolCall(name=name, id=call_id, problem=f"{name}: {error}")
    made = make_call(name, arguments, call_id)
    return made if isinstance(made, ToolCall) else ToolCall(name=name, id=call_id, problem=made)


def _arguments(text: Any) -> dict[str, Any]:
    written = text.strip() if isinstance(text, str) else json.dumps(text)
    found, end = read_json(written or "{}")
    if written[end:].strip() or not isinstance(found, dict):
        raise UnreadableError(f"the arguments must be one JSON object, found {written[:80]!r}")
    return found
