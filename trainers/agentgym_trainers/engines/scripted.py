"""Answer with scripted tokens: demonstrations, oracles and replays go the way of sampled episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from agentgym.policy import Episode, Generation, Sampling
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.policy import TokenPolicy, TokenSession


class ScriptedEngine:
    """Says the next message of the session's script; logprob 0, for nothing was drawn.

    A script that has run out goes on with empty messages.
    """

    not_for_training: ClassVar[str] = "its tokens are written, not sampled; use hf"

    def __init__(self, chat: ChatFormat) -> None:
        self.weight_version = 0
        self._chat = chat
        self._scripts: dict[str, list[str]] = {}

    def assign(self, session: str, script: Sequence[str]) -> None:
        """Give a session its assistant messages."""
        self._scripts[session] = list(script)

    def open(self, session: str) -> None:
        """Announce an episode."""
        self._scripts.setdefault(session, [])

    async def generate(
        self,
        prompt_ids: Sequence[int],  # noqa: ARG002 -- a script does not listen
        sampling: Sampling,
        session: str,
        stop_ids: Sequence[int],
    ) -> Generation:
        """Return the next message's tokens, cut after a stop id or at the token limit."""
        script = self._scripts.get(session, [])
        ids = self._chat.answer(script.pop(0) if script else "")
        ids = ids[: next((place for place, one in enumerate(ids, 1) if one in stop_ids), len(ids))]
        cut = ids[: sampling.max_tokens]
        return Generation(cut, [0.0] * len(cut), "stop" if len(cut) == len(ids) else "length", self.weight_version)

    def release(self, session: str) -> None:
        """Forget an episode."""
        self._scripts.pop(session, None)

    async def close(self) -> None:
        """Forget every episode."""
        self._scripts.clear()


class DemonstrationPolicy(TokenPolicy):
    """Plays scripts as tokens; the sampled mask of its trajectories marks what a warm start imitates."""

    def __init__(self, chat: ChatFormat, script: Callable[[Episode], Sequence[str]], context_length: int) -> None:
        """Take the function that writes the script of an episode."""
        self._scripted = ScriptedEngine(chat)
        self._script = script
        super().__init__(self._scripted, chat, Sampling(), context_length)

    def session(self, episode: Episode) -> TokenSession:
        """Begin one episode with its own script."""
        session = super().session(episode)
        self._scripted.assign(episode.session, self._script(episode))
        return session
