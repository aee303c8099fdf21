"""The calculator: solvable by its oracle, not by its bad demonstrations, with splits that never meet."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agentgym.task import Task
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks, generate

TASKS = calculator_tasks(train=60, validation=15, test=15, hard_share=0.3)
ALL = list(TASKS)


def play(task: Task, script: list[str]) -> float:
    env = CalculatorEnv(TASKS)
    env.reset(options={"task": task})
    for line in script:
        _, reward, terminated, truncated, _ = env.step(line)
        if terminated or truncated:
            return reward
    raise AssertionError("the script ended before the episode")


def test_it_is_a_gymnasium_environment() -> None:
    check_env(CalculatorEnv(TASKS), skip_render_check=True)


@pytest.mark.parametrize("difficulty", [0, 1, 2, 3, -1, -2])
def test_the_oracle_solves_every_task(difficulty: float) -> None:
    for seed in range(30):
        task = generate(seed, difficulty)
        script = list(CalculatorEnv(TASKS).oracle(task))
        assert len(script) == 1 + sum(not letter.isdigit() for letter in task.public.prompt)
        assert play(task, script) == 1.0


def test_about_half_of_the_plain_demonstrations_fail_and_no_hard_one_succeeds() -> None:
    env, rng = CalculatorEnv(TASKS), np.random.default_rng(0)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for task in ALL * 5:
        scores[bool(task.hints)].append(play(task, list(env.demonstration(task, rng))))
    assert 0.5 < np.mean(scores[False]) < 0.8
    assert np.mean(scores[True]) == 0.0


def test_a_seed_always_gives_the_same_task_in_the_same_split() -> None:
    assert generate(7, 1.0) == generate(7, 1.0)
    assert {task.id: task.split for task in calculator_tasks(seed=1)}.items() >= {
        task.id: task.split for task in calculator_tasks(seed=1).take(100)
    }.items()


def test_splits_have_the_wanted_sizes_and_never_meet() -> None:
    expressions = {name: {task.public.prompt for task in TASKS.split(name)} for name in ("train", "validation", "test")}
    assert {name: len(found) for name, found in expressions.items()} == {"train": 60, "validation": 15, "test": 15}
    other = {task.public.prompt for task in calculator_tasks(train=0, validation=0, test=400, hard_share=0.5, seed=5)}
    assert not expressions["train"] & other


def test_the_answer_is_not_in_what_the_agent_sees() -> None:
    task = generate(3, -2)
    env = CalculatorEnv(TASKS)
    messages, info = env.reset(options={"task": task})
    assert messages[0].content == task.public.prompt
    assert messages[0].guidance == ""
    assert str(task.hidden.data["answer"]) not in str(info["tools"])


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        pytest.param("```calc\n12+30", "42", id="sum"),
        pytest.param("```calc\n12-30", "-18", id="difference"),
        pytest.param("```calc\n12+30+1", "error: wanted a+b or a-b", id="three-operands"),
        pytest.param("```calc\n__import__('os')", "error: wanted a+b or a-b", id="code"),
        pytest.param("```merge\n12@30", "882", id="merge"),
        pytest.param("```merge\n12+30", "error: wanted a@b", id="not-merge"),
    ],
)
def test_tools_answer_or_say_what_they_want(call: str, reply: str) -> None:
    env = CalculatorEnv(TASKS)
    env.reset(options={"task": ALL[0]})
    assert env.step(call)[0][-1].content == reply


def test_more_tasks_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="there are no 900 distinct validation expressions"):
        list(calculator_tasks(train=0, validation=900, test=0, hard_share=1.0, hard_operators=1))
