"""An evaluation reports what was scored, on which split, with intervals, and keeps the evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from agentgym import scripted
from agentgym.env import AgentEnv, tool
from agentgym.errors import AgentgymError, SandboxError, UnknownNameError, VerifierError
from agentgym.evaluate import Report, evaluate
from agentgym.policy import Episode, Policy, ScriptedPolicy
from agentgym.rollout import Limits
from agentgym.run import RunDirectory
from agentgym.task import Task
from agentgym.testing import ToyEnv, toy_task
from agentgym.types import Submission, Trajectory, Trust, Verdict

TEST_TASKS = list(ToyEnv.tasks.split("test"))


def report_of(policy: Policy, make_env: Any = ToyEnv, **options: Any) -> Report:
    tasks = options.pop("tasks", TEST_TASKS)
    return evaluate(make_env, tasks, policy, limits=Limits(retry_wait_s=0.0), **options)


def test_the_oracle_passes_everything_and_the_interval_says_how_sure_that_is() -> None:
    found = report_of(scripted.oracle(ToyEnv(), TEST_TASKS), attempts=4)
    assert [one.k for one in found.pass_at] == [1, 2, 4]
    assert all(one.value == 1.0 and one.high == 1.0 for one in found.pass_at)
    assert found.pass_at[0].low == pytest.approx(0.566, abs=0.001)
    assert str(found.pass_at[0]) == "100.0% [56.6, 100.0]"
    assert (found.tasks, found.scored, found.unscored, found.held_out) == (5, 20, 0, True)
    assert (found.by_end, found.by_level, found.splits) == ({"submitted": 20}, {"passed": 20}, {"test": 5})
    assert (found.trust, found.mean_turns, found.mean_sampled_tokens) == (Trust.RPC, 2.0, None)


@pytest.mark.parametrize(
    ("policy", "end"),
    [
        pytest.param(scripted.noop(), "turns", id="noop"),
        pytest.param(scripted.spam(ToyEnv()), "submitted", id="spam"),
        pytest.param(scripted.spam(ToyEnv(), "reverse"), "turns", id="spam-one-tool"),
        pytest.param(scripted.hasty(), "submitted", id="hasty"),
        pytest.param(scripted.recital(), "submitted", id="recital"),
        pytest.param(scripted.random(), "submitted", id="random"),
    ],
)
def test_policies_that_know_nothing_score_zero(policy: Policy, end: str) -> None:
    found = report_of(policy)
    assert found.pass_at[0].value == 0.0
    assert found.by_end == {end: 5}


def test_the_random_policy_repeats_with_the_seed() -> None:
    def said(seed: int) -> list[list[str]]:
        kept: list[Trajectory] = []
        report_of(scripted.random(), seed=seed, on_done=kept.append)
        kept.sort(key=lambda one: one.task_id)
        return [[turn.action.model_dump_json() for turn in one.turns] for one in kept]

    assert said(0) == said(0) != said(1)


def test_random_calls_are_well_formed_and_draw_on_what_was_heard() -> None:
    class Echo(ToyEnv):
        """Says one word that no prompt holds."""

        @tool
        def ask(
            self, many: list[int], flag: bool, size: float, kind: Literal["a", "b"], more: int | None = None
        ) -> str:
            """Ask."""
            return "xylophone"

    kept: list[Trajectory] = []
    report_of(scripted.random(), Echo, attempts=8, on_done=kept.append)
    turns = [turn for one in kept for turn in one.turns if turn.action.tool_calls]
    assert {turn.action.tool_calls[0].name for turn in turns} == {"ask", "reverse", "answer"}
    assert all(turn.signal("valid_calls") == 1.0 for turn in turns)
    assert "xylophone" in " ".join(str(turn.action.tool_calls[0].arguments) for turn in turns)


def test_a_recital_repeats_what_was_heard_to_every_tool() -> None:
    kept: list[Trajectory] = []
    report_of(scripted.recital(), tasks=[toy_task(3)], on_done=kept.append)
    text, reverse, answer = [turn.action for turn in kept[0].turns]
    assert toy_task(3).public.prompt in text.content
    assert [one.tool_calls[0].name for one in (reverse, answer)] == ["reverse", "answer"]
    assert kept[0].turns[1].observation[0].content in str(answer.tool_calls[0].arguments["text"])


def test_spamming_a_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'reverse'"):
        scripted.spam(ToyEnv(), "revers")


def test_pass_at_k_differs_from_pass_at_1_where_attempts_differ() -> None:
    def script(episode: Episode) -> list[str]:
        return ["```answer\nelbram\n```"] if episode.seed % 2 else [""]

    found = report_of(ScriptedPolicy(script), tasks=[toy_task(0)], attempts=16)
    assert found.pass_at[0].value is not None
    assert 0.0 < found.pass_at[0].value < 1.0
    assert found.pass_at[-1].value == 1.0


class Losing(ToyEnv):
    """Loses the attempts at some tasks to other people's failures."""

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        if task.id == "toy-3":
            raise SandboxError("gone")
        if task.id == "toy-7":
            raise VerifierError("crashed")
        return super().grade(task, submission)


def test_unscored_attempts_are_counted_explained_and_left_out() -> None:
    found = report_of(scripted.oracle(ToyEnv(), TEST_TASKS), Losing, attempts=2)
    assert (found.scored, found.unscored) == (6, 4)
    assert (found.pass_at[0].value, found.pass_at[0].tasks, found.pass_at[0].left_out) == (1.0, 3, 2)
    assert found.errors == {"SandboxError: gone": 2, "VerifierError: crashed": 2}


def test_when_nothing_is_scored_the_result_is_unknown() -> None:
    class Lost(ToyEnv):
        def reset(self, **options: Any) -> Any:
            raise SandboxError("no sandbox today")

    found = report_of(scripted.noop(), Lost)
    assert (found.pass_at[0].value, found.trust, found.scored) == (None, None, 0)
    assert str(found.pass_at[0]) == "unknown (no scored task)"
    assert Report.model_validate_json(found.model_dump_json()) == found


def test_the_weakest_trust_of_all_verdicts_is_shown() -> None:
    class Mixed(ToyEnv):
        def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
            return Verdict(value=1.0, level="passed", trust=Trust.SHARED if task.id == "toy-3" else Trust.TWINS)

    assert report_of(scripted.spam(ToyEnv(), "answer"), Mixed).trust is Trust.SHARED


def test_results_are_split_by_difficulty() -> None:
    tasks = [toy_task(3, 1.0), toy_task(7, 2.0), toy_task(11, 2.0)]
    easy = ScriptedPolicy(lambda one: ToyEnv().oracle(tasks[0]) if one.task_id == "toy-3" else [""])
    found = report_of(easy, tasks=tasks)
    assert {name: (one.value, one.tasks) for name, one in found.by_difficulty.items()} == {"1": (1.0, 1), "2": (0.0, 2)}


def test_many_difficulties_are_told_in_bands() -> None:
    found = report_of(scripted.noop(), tasks=[toy_task(one, float(one)) for one in range(24)])
    assert [(name, one.tasks) for name, one in found.by_difficulty.items()] == [
        (f"{low}_to_{low + 1}", 2) for low in range(0, 24, 2)
    ]
    assert found.metrics().keys() >= {f"eval/difficulty_{name}" for name in found.by_difficulty}


def test_a_number_on_training_tasks_is_not_called_held_out() -> None:
    assert not report_of(scripted.noop(), tasks=[toy_task(0), toy_task(3)]).held_out


def test_the_run_directory_keeps_the_report_and_the_trajectories_and_nothing_hidden(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, {"name": "eval"}, name="run", kind="eval")
    found = report_of(scripted.noop(), attempts=2, run=run)
    assert Report.model_validate_json((run.path / "report.json").read_text()) == found
    kept = run.read_trajectories(0)
    assert [one.attempt for one in kept] == [0, 1] * 5
    everything = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    written = json.dumps([str(one) for one in kept]) + everything.decode("latin1")
    for task in TEST_TASKS:
        assert str(task.hidden.data["answer"]) not in written


def test_a_replay_says_again_what_was_said(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, {"name": "eval"}, name="run", kind="eval")
    first = report_of(scripted.oracle(ToyEnv(), TEST_TASKS), attempts=2, run=run)
    again = scripted.replay(run.path / "trajectories" / "step-000000.parquet")
    assert report_of(again, attempts=3).pass_at[0].value == first.pass_at[0].value == 1.0
    with pytest.raises(AgentgymError, match="holds no attempt at task 'toy-0'"):
        report_of(again, tasks=[toy_task(0)])


def test_the_metrics_of_a_report_are_plain_numbers() -> None:
    found = report_of(scripted.noop(), attempts=2).metrics()
    assert found["eval/pass@1"] == found["eval/pass@2"] == 0.0
    assert found["eval/pass@1_high"] > 0.3


def test_every_argument_type_gets_a_meaningless_value() -> None:
    class Wide(ToyEnv):
        """Tools of all types."""

    made: AgentEnv = Wide()
    assert scripted.junk_call(made.tools["reverse"]) == (
        '<tool_call>{"name": "reverse", "arguments": {"text": "x", "times": 1}}</tool_call>'
    )
