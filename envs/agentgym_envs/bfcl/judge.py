"""Judge a conversation as BFCL does: the same state after every user turn, and every wanted answer read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agentgym_envs.bfcl.world import ApiWorld, Call, Scenario

MOST_CALLS = 200
"""Calls in one user turn; the longest reference of a turn has fewer than ten."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of one user turn; `problem` is empty if it is right."""

    problem: str
    refused: tuple[bool, ...]
    """Which of the agent's calls a tool refused."""
    compared: bool
    """Whether the reference calls something in it; else it is right whatever the agent did, and tells nothing."""


class Judge:
    """Replays the agent's calls and the reference's side by side, a user turn at a time.

    After Patil et al. 2025 ("The Berkeley Function Calling Leaderboard"): where the reference calls something, the
    agent must have called something in the same turn, both worlds must be in the same state, and what the reference's
    calls returned must be among all that the agent's calls have returned so far. Where the reference calls nothing,
    because a tool or a fact is missing, nothing is compared until the next turn; what was changed too early shows then.
    """

    def __init__(self, scenario: Scenario, gold: Sequence[Sequence[Call]]) -> None:
        self._scenario = scenario
        self._gold = gold
        self._worlds = ApiWorld(scenario), ApiWorld(scenario)
        self._heard: Counter[bytes] = Counter()
        self._turn = 0

    def close(self, calls: Sequence[Call]) -> Turn:
        """Judge the next user turn by the calls that the agent made in it.

        Raises:
            ValueError: a call names no tool of that turn, its arguments do not fit, or there are too many calls.
        """
        if len(calls) > MOST_CALLS:
            raise ValueError(f"there are {len(calls)} calls; wanted at most {MOST_CALLS} in one turn")
        turn, tools = self._turn, self._scenario.tools_at(self._turn)
        self._turn += 1
        agent, reference = self._worlds
        refused = []
        for one in calls:
            answer = agent.answer(one, tools)
            refused.append(answer.startswith("error: "))
            self._heard[_digest(answer)] += 1
        wanted = [_digest(reference.answer(one, tools)) for one in self._gold[turn]]
        return Turn(self._problem(calls, wanted), tuple(refused), bool(wanted))

    def _problem(self, calls: Sequence[Call], wanted: Sequence[bytes]) -> str:
        if not wanted:
            return ""
        if not calls:
            return "no tool was called"
        agent, reference = self._worlds
        found = agent.states()
        wrong = [name for name, state in reference.states().items() if state != found[name]]
        if wrong:
            return f"the state of {', '.join(wrong)} is not as wanted"
        missing = sum((Counter(wanted) - self._heard).values())
        return f"{missing} of {len(wanted)} wanted answers were never read" if missing else ""


def _digest(answer: str) -> bytes:
    # Whoever asks for a long answer again and again must not fill the memory of the judge.
    return hashlib.sha256(answer.encode()).digest()
