"""The code environment: several turns of testing and mending, then hidden cases decide."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import agentgym
from agentgym.contamination import refuse_twins
from agentgym.errors import TaskError, UnknownNameError
from agentgym.rewards import GatedRewards
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym_envs.code.env import CodeEnv
from agentgym_envs.code.repair import HINT

LEVELS = ("no_submission", "empty", "broken", "failed", "passed")


def play(env: CodeEnv, task: Task, messages: Any, **options: Any) -> tuple[list[str], float, dict[str, Any]]:
    env.reset(options={"task": task, **options})
    shown: list[str] = []
    paid, info = 0.0, dict[str, Any]()
    for one in messages:
        observation, reward, terminated, truncated, info = env.step(one)
        shown += [message.content for message in observation]
        paid += reward
        if terminated or truncated:
            break
    return shown, paid, info


@pytest.fixture
def env(backend: SandboxBackend) -> CodeEnv:
    return CodeEnv(sandbox=backend, count=60)


def first(env: CodeEnv, prefix: str = "repair") -> Task:
    return next(task for task in env.tasks if task.id.startswith(prefix))


def test_gymnasium_accepts_the_environment(backend: SandboxBackend) -> None:
    env = gymnasium.make("agentgym/Code-v0", count=20)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_the_oracle_needs_several_turns_and_is_paid(env: CodeEnv) -> None:
    for task in env.tasks.take(12):
        messages = env.oracle(task)
        _, paid, info = play(env, task, messages)
        assert len(messages) > 1
        assert (paid, info["verdict"].level, info["end"]) == (1.0, "passed", "submitted")


def test_a_failing_test_shows_the_constant_to_copy(env: CodeEnv) -> None:
    task = first(env)
    shown, _, info = play(env, task, env.oracle(task)[:1])
    examples: Any = task.public.data["examples"]
    wanted = examples[0]["expected"]
    assert shown == [f"f(0): got 0, want {wanted}"]
    assert info["signals"].items() >= {"tests_run": 1.0, "compiles": 1.0, "visible_passed": 0.0}.items()


def test_doing_nothing_spamming_tools_and_empty_code_are_paid_nothing(env: CodeEnv) -> None:
    task = first(env)
    scripts = [[""] * 8, ["```test\nf=1\n```"] * 8, ["```submit\n\n```"], ["```submit\ndef\n```"], ["I am done."] * 8]
    found = [play(env, task, script) for script in scripts]
    assert [paid for _, paid, _ in found] == [0.0] * len(scripts)
    assert [info["verdict"].level for *_, info in found] == [LEVELS[i] for i in (0, 0, 1, 2, 0)]


def test_the_value_of_the_visible_example_alone_is_not_an_answer(env: CodeEnv) -> None:
    task = first(env)
    examples: Any = task.public.data["examples"]
    wanted = examples[0]["expected"]
    _, paid, info = play(env, task, [f"```submit\nf=lambda x:{wanted}\n```"])
    assert (paid, info["verdict"].components["visible"]) == (0.0, 1.0)


def test_nothing_hidden_is_ever_shown(env: CodeEnv) -> None:
    task = first(env)
    opening, opening_info = env.reset(options={"task": task})
    shown, _, info = play(env, task, [*env.oracle(task)[:-1], "```submit\nf=lambda x:0\n```"])
    text = json.dumps([[one.content for one in opening], opening_info, shown, info["verdict"].feedback])
    cases: Any = task.hidden.data["cases"]
    assert not any(case["call"] in text for case in cases)
    assert "expected" not in text


def test_the_share_of_bad_demonstrations_is_what_was_asked_for(backend: SandboxBackend) -> None:
    for bad in (0.0, 1.0):
        env = CodeEnv(sandbox=backend, count=12, bad=bad)
        paid = [
            play(env, task, env.demonstration(task, np.random.default_rng(i)))[1] for i, task in enumerate(env.tasks)
        ]
        assert np.mean(paid) == 1.0 - bad


def test_demonstrations_are_drawn_by_the_generator_alone(env: CodeEnv) -> None:
    task = first(env)
    assert env.demonstration(task, np.random.default_rng(3)) == env.demonstration(task, np.random.default_rng(3))
    assert len({tuple(env.demonstration(task, np.random.default_rng(seed))) for seed in range(40)}) == 3


def test_hard_tasks_need_what_only_their_hint_tells(backend: SandboxBackend) -> None:
    env = CodeEnv(sandbox=backend, count=20, hard=1.0, bad=0.0)
    for task in env.tasks.take(5):
        assert task.hints == (HINT,)
        assert play(env, task, env.demonstration(task, np.random.default_rng(0)))[1] == 0.0
        assert play(env, task, env.oracle(task), hint=task.hints[-1])[1] == 1.0
        assert HINT.partition(" is ")[2] not in task.public.prompt


def test_the_share_of_hard_tasks_is_what_was_asked_for() -> None:
    tasks = list(CodeEnv(count=100, hard=0.3).tasks)
    assert sum(bool(task.hints) for task in tasks) == 30


@pytest.mark.parametrize("difficulty", [0.5, 1.0, 2.0, 3.0, 4.0])
def test_repair_tasks_are_all_different_split_by_content_and_without_twins(difficulty: float) -> None:
    tasks = list(CodeEnv(count=1000 if difficulty >= 1 else 150, difficulty=difficulty).tasks)
    assert len({task.content for task in tasks}) == len(tasks)
    assert len({task.split for task in tasks}) == 3
    refuse_twins((t for t in tasks if t.split == "train"), (t for t in tasks if t.split != "train"))


def test_a_task_has_the_same_split_whatever_seed_made_it() -> None:
    one = {task.content: task.split for task in CodeEnv(count=1500, task_seed=1).tasks}
    other = {task.content: task.split for task in CodeEnv(count=1500, task_seed=2).tasks}
    assert one.keys() & other.keys()
    assert all(one[content] == other[content] for content in one.keys() & other.keys())


def test_more_difficult_repairs_take_more_turns() -> None:
    env = CodeEnv(count=1)
    turns = [np.mean([len(env.oracle(task)) for task in CodeEnv(count=20, difficulty=d).tasks]) for d in (1, 3)]
    assert turns == [2, 3]


def test_the_ladder_of_a_gated_scheme_is_checked_when_the_environment_is_made() -> None:
    with pytest.raises(agentgym.errors.RecipeError, match="empty, broken"):
        CodeEnv(
            scheme=GatedRewards(ladder={"no_submission": -1, "failed": 0, "passed": 1}, threshold=1, step_weights={})
        )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"family": "mbbp"}, UnknownNameError, "did you mean 'mbpp'"),
        ({"family": "mbpp"}, TaskError, "pass path="),
        ({"family": "repair", "path": "x"}, TaskError, "reads no file"),
        ({"family": "functions", "hard": 0.5}, TaskError, "only the family 'repair'"),
        ({"bad": 2.0}, ValueError, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        CodeEnv(**options)


def test_prompts_explain_the_tools_unless_they_are_kept_short(env: CodeEnv, backend: SandboxBackend) -> None:
    assert [one.role for one in env.reset()[0]] == ["user"]
    explained = CodeEnv(sandbox=backend, family="functions", count=3)
    assert [one.role for one in explained.reset()[0]] == ["system", "user"]
