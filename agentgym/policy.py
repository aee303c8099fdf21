"""What acts in an environment: an engine samples tokens from tokens, a policy turns messages into an action."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from agentgym.tokens import TokenBuffer
from agentgym.types import Message, Record

StopReason = Literal["stop", "length", "abort"]
ToolSchema = Mapping[str, Any]


class Sampling(Record):
    """How an engine draws tokens; the same words as every inference server's."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Per turn; None leaves it to the limits of the episode, and an engine has to be told."""
    seed: int = 0

    @property
    def limit(self) -> int:
        """`max_tokens`, which an engine has to be told.

        Raises:
            ValueError: there is none.
        """
        if self.max_tokens is None:
            raise ValueError("wanted sampling.max_tokens, found none: an engine samples no more tokens than it is told")
        return self.max_tokens


@dataclass(frozen=True, slots=True)
class Generation:
    """What an engine sampled: ids verbatim (the stop token included) with their logprobs, both [N]."""

    ids: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    weight_version: int = 0
    """The oldest weights that sampled any of the tokens."""
    spans: tuple[tuple[int, int], ...] = ()
    """(weight version, tokens) in order, where the weights changed on the way; empty where one version sampled all."""


class Engine(Protocol):
    """Generates tokens from tokens; safe for many concurrent requests on one event loop."""

    weight_version: int

    def open(self, session: str) -> None:
        """Announce an episode, so that a lock-step engine knows whom to wait for."""
        ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        """Sample until a stop id or the token limit.

        The same prompt, sampling (with its seed) and weights give the same ids.
        """
        ...

    def release(self, session: str) -> None:
        """Forget an episode, whether it ended, failed or was cancelled."""
        ...

    async def close(self) -> None:
        """Free what the engine holds; pending requests end with stop reason `abort`."""
        ...


class TrainableEngine(Engine, Protocol):
    """An engine that can be trained with: its tokens are the model's own, and its weights follow the learner's."""

    owns_weights: bool
    """False where it samples from the learner's own tensors: nothing may be pending while those change."""

    @property
    def pending(self) -> int:
        """Requests that wait or are under way."""
        ...

    async def abort(self, session: str) -> None:
        """End the session's request, if it has one: its `generate` returns what was sampled so far, as `abort`."""
        ...

    async def update_weights(
        self, weights: Iterable[tuple[str, Any]] | None = None, version: int | None = None
    ) -> None:
        """Sample from the learner's present weights from here on; no key or value of older ones is read again.

        Requests under way continue with the new weights, and their generations tell which version sampled what.

        Args:
            weights: names and whole tensors as transformers names them; None takes those of the model it was built of.
            version: what to call them; by default one more than before.
        """
        ...


@dataclass(frozen=True, slots=True)
class Action:
    """One assistant message and how its generation ended."""

    message: Message
    stop_reason: StopReason = "stop"
    weight_version: int = 0
    sampled: int = 0
    """Tokens sampled for it."""


class BudgetExceeded(Exception):  # noqa: N818 -- a signal between the rollout and a policy, not an error
    """The episode's token budget or the model's context has no room for another turn."""

    def __init__(self, reason: Literal["tokens", "context"]) -> None:
        super().__init__(reason)
        self.reason = reason


class PolicySession(Protocol):
    """A policy in one episode."""

    tokens: TokenBuffer | None
    """None for policies that speak text only; those can be evaluated, never trained on."""

    async def act(self, new_messages: Sequence[Message]) -> Action:
        """Read the messages that are new since the last action, and answer.

        Raises:
            BudgetExceeded: there is no room for another turn.
        """
        ...

    def observe(self, new_messages: Sequence[Message]) -> None:
        """Read the last observation of an episode that has ended."""
        ...

    def close(self) -> None:
        """Release what the engine holds for this episode."""
        ...


@dataclass(frozen=True, slots=True)
class Episode:
    """What a policy is told when an episode begins: never anything hidden."""

    session: str
    task_id: str
    seed: int
    tools: tuple[ToolSchema, ...]
    max_tokens_per_turn: int
    max_tokens: int
    """Sampled tokens over the whole episode."""
    prompt: tuple[Message, ...] = ()


class Policy(Protocol):
    """Starts sessions; safe for many concurrent episodes on one event loop."""

    def session(self, episode: Episode) -> PolicySession:
        """Begin one episode."""
        ...


class ScriptedPolicy:
    """Says what a script says: oracles, no-ops, spam and replays, without tokens or an engine.

    A script that has run out repeats its last message; an empty one says nothing, again and again.
    """

    def __init__(self, script: Callable[[Episode], Sequence[str]]) -> None:
        self._script = script

    def session(self, episode: Episode) -> PolicySession:
        """Begin one episode."""
        return _ScriptedSession(self._script(episode))


class _ScriptedSession:
    def __init__(self, lines: Sequence[str]) -> None:
        self.tokens: TokenBuffer | None = None
        self._lines = list(lines) or [""]
        self._next = 0

    async def act(self, new_messages: Sequence[Message]) -> Action:  # noqa: ARG002 -- a script is deaf
        line = self._lines[min(self._next, len(self._lines) - 1)]
        self._next += 1
        return Action(Message(role="assistant", content=line))

    def observe(self, new_messages: Sequence[Message]) -> None:
        """A script is deaf."""

    def close(self) -> None:
        """There is nothing to release."""
