"""Step rewards for sub-goals, weighed against the calls that they took."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentgym.rewards.base import AttemptScheme, Price
from agentgym.types import Trajectory, Turn

Penalty = Annotated[float, Field(le=0, allow_inf_nan=False)]


class SubGoals(AttemptScheme):
    """FTRL: precision and completeness of every turn's calls, and how complete the whole is in the end.

    A turn whose c calls solve s sub-goals earns `2 s / (c + 1)`: the harmonic mean of how many calls were of use and of
    the one sub-goal that a turn should solve. Handing in is worth `1 / (1 + u)` with u sub-goals unsolved, and nothing
    where nothing was handed in
    (Feedback-Driven Tool-Use Improvements in Large Language Models via Automated Build Environments).

    >>> scheme = SubGoals(solved="solved", unsolved="unsolved", empty=-0.5, malformed=-0.3)
    >>> [round(scheme.turn(calls=calls, solved=1), 3) for calls in (1, 2, 10)]
    [1.0, 0.667, 0.182]
    """

    solved: str
    """The turn signal that counts the sub-goals which this turn solved for the first time."""
    unsolved: str
    """The signal of the turn that hands in: how many sub-goals are left."""
    empty: Penalty
    """Of a turn that says and calls nothing (-0.5 in the paper's code)."""
    malformed: Penalty
    """Of a turn whose calls cannot be read (-0.3 in the paper's code)."""

    @property
    def signals(self) -> tuple[str, ...]:
        """The counts of sub-goals."""
        return (self.solved, self.unsolved, "malformed")

    def turn(self, *, calls: int, solved: float) -> float:
        """Return what a turn of so many calls, which solve so many sub-goals, earns."""
        return 2.0 * solved / (calls + 1)

    def price(self, one: Trajectory) -> Price:
        """Return the final and the step rewards; calls that were refused count as calls."""
        last = _signals(one.turns[-1]) if one.turns else {}
        left = last.get(self.unsolved)
        return Price(0.0 if left is None else 1.0 / (1.0 + left), [self._step(turn) for turn in one.turns])

    def _step(self, turn: Turn) -> float:
        signals = _signals(turn)
        if not (turn.action.content.strip() or turn.action.tool_calls):
            return self.empty
        if signals.get("malformed"):
            return self.malformed
        calls = sum(message.role == "tool" for message in turn.observation)
        return self.turn(calls=calls, solved=signals.get(self.solved, 0.0))


def _signals(turn: Turn) -> dict[str, float]:
    return {one.name: one.value for one in turn.signals}
