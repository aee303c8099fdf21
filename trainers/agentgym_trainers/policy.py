"""A policy that speaks tokens: an engine, a chat format, and one append-only buffer per episode."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from agentgym.errors import InfrastructureError
from agentgym.policy import Action, BudgetExceeded, Engine, Episode, Sampling
from agentgym.rollout import Limits
from agentgym.sampling import derive_seed
from agentgym.tokens import TokenBuffer
from agentgym.types import Message
from agentgym_trainers.chat import ChatFormat, Piece


class TokenPolicy:
    """Plays episodes with an engine; every trajectory carries its token ids."""

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        sampling: Sampling,
        context_length: int,
        *,
        limits: Limits | None = None,
    ) -> None:
        """Combine the parts.

        Args:
            engine: samples tokens.
            chat: renders messages and parses answers.
            sampling: temperature, top_p and, if wanted, fewer tokens per turn than the episode's limits allow; its seed
                is replaced for each turn.
            context_length: tokens that the model can attend to, prompt and answers together.
            limits: what its episodes were bounded by when it was trained, for whoever evaluates it.
        """
        self.engine = engine
        self.chat = chat
        self.sampling = sampling
        self.context_length = context_length
        self.limits = limits

    def session(self, episode: Episode) -> TokenSession:
        """Begin one episode."""
        self.engine.open(episode.session)
        return TokenSession(self, episode)


class TokenSession:
    """One episode of a `TokenPolicy`."""

    def __init__(self, policy: TokenPolicy, episode: Episode) -> None:
        self._buffer = TokenBuffer()
        self.tokens: TokenBuffer | None = self._buffer
        self._policy = policy
        self._episode = episode
        self._turn = 0
        self._stop_id: int | None = None
        self._conversation = policy.chat.conversation(episode.tools)

    async def act(self, new_messages: Sequence[Message]) -> Action:
        """Append the new messages, sample one assistant turn, append it verbatim.

        Raises:
            BudgetExceeded: there is no room for another turn; the messages were then not appended.
            InfrastructureError: the engine aborted the turn, so that nobody knows what would have been said.
            RecipeError: the chat template cannot show such messages, whatever they say.
            ChatFormatError: it cannot show these.
        """
        policy = self._policy
        with self._blamed(new_messages):
            rewritten = self._rewritten(new_messages)
            pieces = rewritten or self._render(new_messages, generate=True)
        limit = self._room(sum(len(ids) for ids, _ in pieces), 0 if rewritten else len(self._buffer.context))
        if rewritten:
            self._buffer.fork()
        self._append(pieces)
        sampling = policy.sampling.model_copy(
            update={"max_tokens": limit, "seed": derive_seed(self._episode.seed, "turn", self._turn)}
        )
        made = await policy.engine.generate(self._buffer.context, sampling, self._episode.session, policy.chat.stop_ids)
        self._buffer.append_sampled(made.ids, made.logprobs, self._turn)
        self._turn += 1
        if made.stop_reason == "abort":
            raise InfrastructureError(f"the engine aborted turn {self._turn} after {len(made.ids)} tokens")
        self._stop_id = made.ids[-1] if made.ids and made.ids[-1] in policy.chat.stop_ids else None
        if self._conversation is not None:
            self._conversation.said(made.ids)
        return Action(policy.chat.parse(made.ids), made.stop_reason, made.weight_version, len(made.ids))

    def observe(self, new_messages: Sequence[Message]) -> None:
        """Append the last observation of an episode that has ended."""
        with self._blamed(new_messages):
            pieces = self._render(new_messages, generate=False)
        self._append(pieces)

    def close(self) -> None:
        """Release the engine's session."""
        self._policy.engine.release(self._episode.session)

    def _blamed(self, messages: Sequence[Message]) -> AbstractContextManager[None]:
        return self._policy.chat.blamed(messages, begins=self._turn == 0, tools=self._episode.tools)

    def _render(self, messages: Sequence[Message], *, generate: bool) -> list[Piece]:
        if self._turn == 0:
            return self._policy.chat.prompt(messages, self._episode.tools)
        return self._policy.chat.suffix(
            messages, ended=self._stop_id is not None, generate=generate, stop_id=self._stop_id
        )

    def _rewritten(self, messages: Sequence[Message]) -> list[Piece] | None:
        """Return the whole context where the template rewrites what the policy read or said."""
        found = self._conversation.heard(messages) if self._conversation is not None else None
        return found if self._turn else None

    def _room(self, new: int, kept: int) -> int:
        """Return how many tokens the next turn may have."""
        left = self._episode.max_tokens - self._buffer.sampled_count
        if left < 1:
            raise BudgetExceeded("tokens")
        context = self._policy.context_length - kept - new
        if context < 1:
            raise BudgetExceeded("context")
        return min(left, context, self._episode.max_tokens_per_turn, self._policy.sampling.max_tokens or left)

    def _append(self, pieces: Sequence[Piece]) -> None:
        turn = max(self._turn - 1, 0)
        for ids, kind in pieces:
            self._buffer.append_text(ids, turn, kind)
