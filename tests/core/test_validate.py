"""Validation passes an honest environment and finds each way of being dishonest, by the check that is about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentgym.env import tool
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.testing import ToyEnv
from agentgym.types import Message, Submission, Trust, Verdict
from agentgym.validate import Validation, rounds, validate

GOLD = "gold-answer-of-many-letters"


def one_task(**hidden: Any) -> Task:
    data = {"answer": GOLD, **hidden}
    return Task(id="t", split="train", public=Public(prompt="Say the word."), hidden=Hidden(data=data, reference=data))


class GoldEnv(ToyEnv):
    """A single task with a long answer; honest."""

    tasks = TaskSet("gold", lambda: [one_task()])

    def oracle(self, task: Task) -> Sequence[str]:
        return [f"```answer\n{GOLD}\n```"]


def validated(env: type[ToyEnv]) -> Validation:
    return validate(env, list(env.tasks))


def test_an_honest_environment_passes_every_check() -> None:
    for env in (ToyEnv, GoldEnv):
        found = validated(env)
        assert found.findings == ()
        assert found.passed
        assert Validation.model_validate_json(found.model_dump_json()) == found


def test_no_task_at_all_is_no_pass() -> None:
    assert not validate(ToyEnv, []).passed


def test_progress_counts_every_visit() -> None:
    visits: list[int] = []
    tasks = list(ToyEnv.tasks)
    validate(ToyEnv, tasks, on_done=lambda: visits.append(1))
    assert len(visits) == rounds(ToyEnv(), tasks) >= 20 * 8


class WrongOracle(GoldEnv):
    """The expert is no expert."""

    def oracle(self, task: Task) -> Sequence[str]:
        return ["```answer\nwrong\n```"]


class SilentOracle(GoldEnv):
    """The expert raises."""

    def oracle(self, task: Task) -> Sequence[str]:
        raise KeyError("solution")


class Moody(GoldEnv):
    """Grades by mood."""

    moods = [0.0]

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        self.moods.append(1.0 - self.moods[-1])
        return self.moods[-1] if submission.answer == GOLD else 0.0


class Generous(GoldEnv):
    """Anything will do."""

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        return bool(submission.answer)


class TakesEmpty(GoldEnv):
    """Nothing will do, too."""

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        return submission.answer in (None, GOLD)


class TakesSilence(GoldEnv):
    """Saying nothing wins."""

    def _judge(self, submission: Submission | None) -> Verdict:
        return Verdict(value=1.0, level="passed", trust=Trust.RPC) if submission is None else super()._judge(submission)


class TellsInPrompt(GoldEnv):
    """The prompt tells."""

    def prompt(self) -> Sequence[Message]:
        return (Message(role="user", content=f"Say {self._full_task.hidden.data['answer']}."),)


class TellsInTool(GoldEnv):
    """A tool tells."""

    @tool
    def peek(self) -> str:
        """Look."""
        return f"it is {self._full_task.hidden.data['answer']}"


class TellsInFeedback(GoldEnv):
    """The verdict's feedback tells."""

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        right = submission.answer == GOLD
        return Verdict(
            value=float(right), level="passed" if right else "failed", trust=Trust.RPC, feedback=f"wanted {GOLD}"
        )


class TellsInInfo(GoldEnv):
    """The info tells."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "answer": self._full_task.hidden.data["answer"]}


class NeverEnds(GoldEnv):
    """Breaks Gymnasium's contract."""

    def step(self, action: Message | str) -> Any:
        observation, reward, _, _, info = super().step(action)
        self._running = True
        return observation, reward, False, False, info


@pytest.mark.parametrize(
    ("env", "check"),
    [
        pytest.param(WrongOracle, "oracle scores 1", id="wrong-oracle"),
        pytest.param(SilentOracle, "oracle has a script", id="raising-oracle"),
        pytest.param(Moody, "oracle repeats", id="moody-grader"),
        pytest.param(Generous, "spam of answer scores 0", id="generous-grader"),
        pytest.param(TakesSilence, "no-op scores 0", id="silence-rewarded"),
        pytest.param(TakesEmpty, "empty submission scores 0", id="empty-accepted"),
        pytest.param(TellsInPrompt, "nothing hidden is shown", id="prompt-tells"),
        pytest.param(TellsInTool, "nothing hidden is shown", id="tool-tells"),
        pytest.param(TellsInFeedback, "nothing hidden is shown", id="feedback-tells"),
        pytest.param(TellsInInfo, "nothing hidden is shown", id="info-tells"),
        pytest.param(NeverEnds, "gymnasium's contract holds", id="endless"),
    ],
)
def test_a_dishonest_environment_is_found_out(env: type[ToyEnv], check: str) -> None:
    found = validated(env)
    assert not found.passed
    assert found.failed(check), found.findings


def test_what_the_agent_said_itself_and_what_is_public_is_no_leak() -> None:
    class Echo(GoldEnv):
        tasks = TaskSet(
            "echo",
            lambda: [
                one_task(example="shown-to-everybody").model_copy(
                    update={"public": Public(prompt="Like shown-to-everybody.")}
                )
            ],
        )

        @tool
        def echo(self, text: str) -> str:
            """Repeat."""
            return text

        def oracle(self, task: Task) -> Sequence[str]:
            return [f"```echo\n{GOLD}\n```", *super().oracle(task)]

    assert validated(Echo).findings == ()


def test_a_long_line_of_a_hidden_program_is_a_leak_too() -> None:
    program = "def solve(x):\n    return x * 31 + sum(map(int, str(x)))\n"

    class Quoting(GoldEnv):
        tasks = TaskSet("quoting", lambda: [one_task(program=program)])

        @tool
        def look(self) -> str:
            """Show a failing line."""
            return ">   return x * 31 + sum(map(int, str(x)))"

    assert validated(Quoting).failed("nothing hidden is shown")


def test_a_literal_whose_value_the_prompt_says_is_no_leak_and_another_is() -> None:
    def saying(literal: str) -> Validation:
        class Says(GoldEnv):
            tasks = TaskSet("says", lambda: [one_task(expected=literal)])

            def on_text(self, text: str) -> str:
                return f"TypeError: expected {literal}"

        return validated(Says)

    assert saying("'the word'").findings == ()
    assert saying("'the gold'").failed("nothing hidden is shown")
