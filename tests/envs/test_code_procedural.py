"""Generated pipelines: the verifier accepts the reference, rejects mutations, and the dial makes them harder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym.contamination import refuse_twins
from agentgym.graders.function import FunctionGrader
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission
from agentgym_envs.code import procedural, repair
from agentgym_envs.code.env import CodeEnv
from agentgym_envs.code.procedural import STEPS, generate

SEEDS = st.integers(0, 10**9)
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def passes(backend: SandboxBackend, task: Task, code: Any) -> bool:
    return FunctionGrader().grade(task, Submission(answer=str(code)), backend).passed


@SLOW
@given(seed=SEEDS, difficulty=st.floats(0.5, 6))
def test_the_verifier_accepts_the_reference_and_rejects_every_mutation(
    backend: SandboxBackend, seed: int, difficulty: float
) -> None:
    task = generate(seed, difficulty)
    mutations = cast(list[str], task.hidden.reference["mutations"])
    assert passes(backend, task, task.hidden.reference["code"])
    assert mutations
    assert not any(passes(backend, task, one) for one in mutations)


@SLOW
@given(seed=SEEDS, difficulty=st.sampled_from([0.5, 1, 2, 3, 4]), hard=st.booleans())
def test_repairs_accept_the_mended_function_and_reject_every_attempt_before(
    backend: SandboxBackend, seed: int, difficulty: float, hard: bool
) -> None:
    task = repair.generate(seed, difficulty, hard=hard)
    script = cast(dict[str, Any], task.hidden.reference["demonstration"])
    assert passes(backend, task, task.hidden.reference["code"])
    assert not any(passes(backend, task, one) for one in cast(list[str], task.hidden.reference["attempts"]))
    assert passes(backend, task, script["code"]) is not hard


@given(seed=SEEDS, difficulty=st.floats(0.5, 6))
def test_equal_arguments_give_equal_tasks(seed: int, difficulty: float) -> None:
    assert generate(seed, difficulty) == generate(seed, difficulty)
    assert repair.generate(seed, difficulty) == repair.generate(seed, difficulty)


def guess(task: Task, depth: int) -> Callable[[Any], Any] | None:
    """A solver that reads no words: it tries every pipeline of up to `depth` steps on the visible examples."""
    examples = [(eval(case["call"][2:-1]), case["expected"]) for case in cast(Any, task.public.data["examples"])]
    kind = {int: "number", str: "text", list: "list"}[type(examples[0][0])]
    steps = [one.of(k) for one in STEPS[kind] for k in (range(2, 8) if "{k}" in one.source else (2,))]
    for length in range(1, depth + 1):
        for chosen in product(steps, repeat=length):
            if all(procedural.run(chosen, value) == want for value, want in examples):
                return partial(procedural.run, chosen)
    return None


def test_a_scripted_solver_solves_fewer_tasks_as_difficulty_rises() -> None:
    solved = []
    for difficulty in (1, 2, 4):
        right = 0
        for seed in range(25):
            task = generate(seed, difficulty)
            found = guess(task, 2)
            hidden = cast(Any, task.hidden.data["cases"])
            right += found is not None and all(found(eval(one["call"][2:-1])) == one["expected"] for one in hidden)
        solved.append(right)
    assert solved[0] == 25
    assert solved[0] >= solved[1] > solved[2]


@pytest.mark.parametrize("difficulty", [0, 7, -1])
def test_a_difficulty_off_the_dial_is_refused(difficulty: float) -> None:
    with pytest.raises(ValueError, match="wanted a difficulty"):
        generate(0, difficulty)


def test_splits_share_no_task_and_no_near_duplicate() -> None:
    tasks = list(CodeEnv(family="functions", count=600, difficulty=3).tasks)
    assert len({task.content for task in tasks}) == len(tasks)
    refuse_twins((t for t in tasks if t.split == "train"), (t for t in tasks if t.split != "train"))
