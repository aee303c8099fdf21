"""How long the episodes of the trainer's benchmark are, for all that take part; it imports nothing."""

from __future__ import annotations

from dataclasses import dataclass

TURN_TOKENS = 48
"""Tokens that a turn may sample; a call takes 33 at most."""
_PROMPT = 16


@dataclass(frozen=True, slots=True)
class Chain:
    """Expressions of so many operators, and the room that both trainers give their episodes."""

    operators: int

    @property
    def turns(self) -> int:
        """Calls, an answer, and three turns to spare."""
        return self.operators + 4

    @property
    def context(self) -> int:
        """Tokens of a whole episode: all calls, three to spare, and what the tool says."""
        return 128 + 64 * self.operators

    @property
    def completion(self) -> int:
        """Tokens after the prompt."""
        return self.context - _PROMPT
