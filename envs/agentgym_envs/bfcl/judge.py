"""Judge a conversation as BFCL does: the same state after every user turn, and every wanted answer read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agentgym_envs.bfcl.world import ApiWorld, Call, Scenario


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of one user turn; `problem` is empty if it is right."""

    problem: str
    answers: tuple[str, ...]
    """What the agent's calls returned."""


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
        self._heard: Counter[str] = Counter()
        self._turn = 0

    def close(self, calls: Sequence[Call]) -> Turn:
        """Judge the next user turn by the calls that the agent made in it.

        Raises:
            ValueError: a call names no tool of that turn, or its arguments do not fit.
        """
        turn, tools = self._turn, self._scenario.tools_at(self._turn)
        self._turn += 1
        agent, reference = self._worlds
        answers = tuple(agent.answer(one, tools) for one in calls)
        self._heard.update(answers)
        wanted = [reference.answer(one, tools) for one in self._gold[turn]]
        if not wanted:
            return Turn("", answers)
        if not calls:
            return Turn("no tool was called", answers)
        found = agent.states()
        wrong = [name for name, state in reference.states().items() if state != found[name]]
        if wrong:
            return Turn(f"the state of {', '.join(wrong)} is not as wanted", answers)
        missing = sum((Counter(wanted) - self._heard).values())
        return Turn(f"{missing} of {len(wanted)} wanted answers were never read" if missing else "", answers)
