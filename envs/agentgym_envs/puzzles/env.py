"""The environment `agentgym/Puzzle-v0`: check answers against the rules over several turns, then hand one in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from agentgym.env import AgentEnv, Observation, Submit, tool
from agentgym.task import Public, Task, TaskSet
from agentgym.types import Message, Submission, Trust, Verdict
from agentgym_envs.puzzles.family import LONGEST_ANSWER, Found, malformed
from agentgym_envs.puzzles.tasks import find, puzzle_tasks

EXPLANATION = """{rules}
Each message is one fenced block named after a tool.
```check
<an answer>
```
says whether an answer has the right form{checked}.
```submit
<an answer>
```
hands an answer in and ends the episode."""


class PuzzleEnv(AgentEnv):
    """Generated puzzles of logic, grids and arithmetic, judged by their rules: every solution is right."""

    levels: ClassVar[tuple[str, ...]] = ("no_submission", "malformed", "failed", "passed")
    signals: ClassVar[tuple[str, ...]] = ("checked", "well_formed", "rules_held", "rules_gained", "submitted")

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        family: str = "sat",
        count: int = 1000,
        difficulty: float = 2.0,
        task_seed: int = 0,
        explain: bool = True,
        **options: Any,
    ) -> None:
        """Choose the puzzles.

        Args:
            tasks: a task set; without one, `family` makes it.
            family: `sat`, `latin`, `sudoku`, `path`, `countdown`, `equations`, `transforms`, or `mixed`.
            count: how many puzzles to generate.
            difficulty: 1 to 10.
            task_seed: which puzzles to generate.
            explain: open with a system message that tells the rules and the tools.
            **options: those of `AgentEnv`.
        """
        made = tasks or puzzle_tasks(family, count=count, difficulty=difficulty, seed=task_seed)
        super().__init__(made, **options)
        self.explain = explain
        self._best = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, in which nothing has been gained."""
        self._best = 0.0
        return super().reset(seed=seed, options=options)

    def prompt(self) -> Sequence[Message]:
        """The puzzle, after its family's rules."""
        family = find(str(self.task.data["family"]))
        checked = " and, if not all rules hold, which does not" if family.checkable else ""
        text = EXPLANATION.format(rules=family.rules, checked=checked)
        return (*((Message(role="system", content=text),) if self.explain else ()), *super().prompt())

    @tool
    def check(self, answer: str) -> str:
        """Check an answer without handing it in; the answer is `ok` or what is wrong."""
        checkable = find(str(self.task.data["family"])).checkable
        found = judged(self.task, {}, answer)
        self.emit("checked", 1.0)
        self.emit("well_formed", float(found.formed))
        if not checkable:
            return "the form is right; whether the answer is, is not told" if found.formed else found.problem
        self._emit_rules(found)
        return "ok" if found.right else found.problem

    @tool
    def submit(self, answer: str) -> Submit:
        """Hand in an answer and end the episode."""
        return Submit(answer)

    def grade(self, task: Task, submission: Submission) -> Verdict:
        """Judge by the rules."""
        found = judged(task.public, task.hidden.data, submission.answer or "")
        level = "passed" if found.right else "failed" if found.formed else "malformed"
        return Verdict(
            value=float(found.right),
            level=level,
            trust=Trust.RPC,
            components={"rules": found.held / found.total},
            feedback=found.problem,
        )

    def on_verdict(self, verdict: Verdict) -> None:
        """Emit of the submission what `check` emits of its answer."""
        self.emit("submitted", 1.0)
        self.emit("well_formed", float(verdict.level in ("failed", "passed")))
        self._gain(verdict.components.get("rules") or 0.0)

    def _emit_rules(self, found: Found) -> None:
        self._gain(found.held / found.total)

    def _gain(self, share: float) -> None:
        self.emit("rules_held", share)
        self.emit("rules_gained", max(0.0, share - self._best))
        self._best = max(self._best, share)

    def oracle(self, task: Task) -> Sequence[str]:
        """Check the planted solution, then hand it in."""
        answer = cast(str, task.hidden.reference["answer"])
        return [f"```check\n{answer}\n```", f"```submit\n{answer}\n```"]

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return the oracle's way, or as often without the check."""
        return self.oracle(task) if rng.random() < 0.5 else self.oracle(task)[-1:]

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Return answers that break one rule only, or hold the solution among other text."""
        answer = cast(str, task.hidden.reference["answer"])
        last = answer.rsplit(None, 1)
        return {
            "repeats the solution": Submission(answer=f"{answer}\n{answer}"),
            "leaves the end out": Submission(answer=last[0] if len(last) > 1 else answer[:-1]),
            "explains the solution": Submission(answer=f"The answer is {answer}"),
            "hands in the puzzle": Submission(answer=task.public.prompt),
            "hands it in as data": Submission(data={"answer": answer}),
        }


def judged(public: Public, hidden: Mapping[str, Any], answer: str) -> Found:
    """Judge an answer by a puzzle's rules."""
    if len(answer) > LONGEST_ANSWER:
        return malformed(f"wanted at most {LONGEST_ANSWER} characters, found {len(answer)}")
    puzzle = cast(dict[str, Any], public.data["puzzle"])
    return find(str(public.data["family"])).judge(puzzle, hidden, answer)
