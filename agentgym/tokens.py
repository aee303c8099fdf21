"""One append-only token buffer per trajectory: the only truth about what was read and what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import compress


class TokenKind(IntEnum):
    """Who wrote a token. Only sampled tokens carry loss."""

    OBSERVATION = 0
    SAMPLED = 1
    GUIDANCE = 2
    """Hint text: part of the behaviour context, removed from the train context."""


@dataclass(slots=True)
class TokenBuffer:
    """Token ids with, for each, its kind, the logprob it was sampled with, and its turn; all of length L.

    Where a chat template rewrites what came before, the buffer forks: the rewritten context follows as a row of its
    own, in which nothing that was sampled earlier counts as sampled again.

    Logprobs are natural logarithms under the distribution that was sampled from, 0.0 where nothing was sampled.
    The prompt belongs to turn 0; an observation belongs to the turn of the action that caused it.
    """

    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    forks: list[int] = field(default_factory=list)
    """Where rows after the first begin."""

    def __len__(self) -> int:
        return len(self.ids)

    def append_text(self, ids: Sequence[int], turn: int, kind: TokenKind = TokenKind.OBSERVATION) -> None:
        """Append tokens that nobody sampled: a prompt, an observation, or guidance."""
        if kind is TokenKind.SAMPLED:
            raise ValueError("sampled tokens come with logprobs; use append_sampled")
        self._append(ids, [0.0] * len(ids), turn, kind)

    def append_sampled(self, ids: Sequence[int], logprobs: Sequence[float], turn: int) -> None:
        """Append an engine's tokens verbatim, the end-of-turn token included."""
        if len(ids) != len(logprobs):
            raise ValueError(f"wanted one logprob per sampled token, found {len(ids)} ids and {len(logprobs)} logprobs")
        self._append(ids, logprobs, turn, TokenKind.SAMPLED)

    def fork(self) -> None:
        """Begin a new row: what is appended from here on is read without anything before."""
        self.forks.append(len(self.ids))

    @property
    def context(self) -> list[int]:
        """What the model reads: the ids of the last row."""
        return self.ids[self.forks[-1] :] if self.forks else self.ids

    def rows(self) -> list[TokenBuffer]:
        """Return one buffer per row; each sampled token is in exactly one of them.

        >>> buffer = TokenBuffer([1, 2], [0, 1], [0.0, -0.5], [0, 0])
        >>> buffer.fork()
        >>> buffer.append_text([1, 3], turn=0)
        >>> [row.ids for row in buffer.rows()]
        [[1, 2], [1, 3]]
        """
        if not self.forks:
            return [self]
        edges = zip([0, *self.forks], [*self.forks, len(self.ids)], strict=True)
        return [TokenBuffer(self.ids[a:b], self.kinds[a:b], self.logprobs[a:b], self.turns[a:b]) for a, b in edges]

    def _append(self, ids: Sequence[int], logprobs: Sequence[float], turn: int, kind: TokenKind) -> None:
        if self.turns and turn < self.turns[-1]:
            raise ValueError(f"the buffer is append-only: it is at turn {self.turns[-1]}, found turn {turn}")
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.kinds.extend([int(kind)] * len(ids))
        self.turns.extend([turn] * len(ids))

    def mask(self, kind: TokenKind) -> list[bool]:
        """Return [L]: which tokens are of this kind."""
        return [one == kind for one in self.kinds]

    @property
    def sampled_count(self) -> int:
        """How many tokens the policy sampled."""
        return self.kinds.count(int(TokenKind.SAMPLED))

    @property
    def guided(self) -> bool:
        """Whether any hint was in the behaviour context."""
        return int(TokenKind.GUIDANCE) in self.kinds

    def without_guidance(self) -> TokenBuffer:
        """Return the train context: the same tokens and behaviour logprobs, hints removed.

        >>> buffer = TokenBuffer()
        >>> buffer.append_text([5, 6], turn=0)
        >>> buffer.append_text([7], turn=0, kind=TokenKind.GUIDANCE)
        >>> buffer.append_sampled([8], [-0.1], turn=0)
        >>> buffer.without_guidance().ids
        [5, 6, 8]
        """
        keep = [kind != TokenKind.GUIDANCE for kind in self.kinds]
        return TokenBuffer(
            list(compress(self.ids, keep)),
            list(compress(self.kinds, keep)),
            list(compress(self.logprobs, keep)),
            list(compress(self.turns, keep)),
            [sum(keep[:place]) for place in self.forks],
        )
