"""How long the episodes of the trainer's benchmark are, for all that take part; it imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chain:
    """Expressions of so many operators, and the room that both trainers give their episodes."""

    operators: int

    @property
    def turns(self) -> int:
        """Calls, an answer, and three turns to spare."""
        return self.operators + 4

    @property
    def sampled_tokens(self) -> int:
        """Tokens that an episode may sample."""
        return 64 + 48 * self.operators

    @property
    def context(self) -> int:
        """Tokens of a whole episode."""
        return 128 + 64 * self.operators
