"""What learns beside the policy: it is updated once per training step, and saved with every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from agentgym.types import Group


@runtime_checkable
class Learnable(Protocol):
    """Anything that keeps estimates of its own; between two updates it behaves like a constant."""

    def update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Learn from a step's groups, after they were priced, and return what to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain data, all that is needed to go on from here."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        ...
