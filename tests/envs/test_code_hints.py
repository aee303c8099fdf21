"""Guidance material of code tasks: it helps to work and plan, and tells nothing of the solution or of hidden tests."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.graders.sources import parse
from agentgym.guidance import Guide
from agentgym.policy import ScriptedPolicy
from agentgym.rollout import Rollouts
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.validate.secrets import texts
from agentgym_envs.code import hints, procedural
from agentgym_envs.code.env import CodeEnv

FILES = {
    "mbpp": ("mbpp/mbpp.jsonl", 25),
    "exercism": ("exercism_python/exercism_python.jsonl", 10),
    "quixbugs": ("quixbugs/quixbugs_python.jsonl", 2),
    "classeval": ("classeval/classeval.jsonl", 4),
    "cruxeval": ("cruxeval/cruxeval.jsonl", 40),
    "exercism_canonical": ("exercism_canonical/canonical.jsonl", 10),
}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@cache
def common() -> frozenset[str]:
    """What any hint may say: the words of the templates, and Python's own names."""
    source = parse(inspect.getsource(hints))
    templates = {one.value for one in ast.walk(source) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    kinds = (str, list, dict, set, tuple, bytes)
    own = {name for kind in kinds for name in dir(kind)} | set(dir(builtins)) | set(sys.stdlib_module_names)
    return frozenset(set().union(*map(words, templates)) | own)


def strange(task: Task, hint: str) -> set[str]:
    """Words of a hint that are neither public nor anybody's: what would be a leak, but for a count of lines."""
    public = words("\n".join(texts(task.public.model_dump())))
    size = re.search(r"A known solution has (\d+) lines", hint)
    return words(hint) - public - common() - ({size[1]} if size else set())


def leaks(tasks: Iterable[Task]) -> dict[str, set[str]]:
    return {task.id: found for task in tasks for hint in task.hints if (found := strange(task, hint))}


@pytest.mark.parametrize("family", FILES)
def test_no_hint_of_a_real_task_says_a_word_that_is_the_solutions_or_a_hidden_tests(data: Path, family: str) -> None:
    file, stride = FILES[family]
    tasks = list(CodeEnv(family=family, path=str(data / file)).tasks)[::stride]
    assert all(len(task.hints) >= 2 for task in tasks)
    assert leaks(tasks) == {}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), difficulty=st.floats(0.5, 6))
def test_no_hint_of_a_generated_task_does(seed: int, difficulty: float) -> None:
    task = procedural.generate(seed, difficulty)
    assert len(task.hints) == 3
    assert leaks([task]) == {}


@pytest.mark.parametrize("leak", ["return secret_name(x)", "the answer is 982451653", "it calls helper_of_mine"])
def test_a_hint_that_leaked_would_be_seen(leak: str) -> None:
    task = procedural.generate(1, 2)
    assert leaks([task.model_copy(update={"hints": (leak,)})])


def test_hints_are_tiers_of_which_each_holds_those_before_it() -> None:
    task = procedural.generate(3, 4)
    weak, middle, strong = task.hints
    assert strong.startswith(middle)
    assert middle.startswith(weak)
    assert "test" in weak
    assert "Plan:" in middle
    assert "A known solution has" in strong
    assert hints.with_hints(task) is task


def test_without_a_solution_there_is_a_plan_and_no_shape(data: Path) -> None:
    env = CodeEnv(family="exercism_canonical", path=str(data / "exercism_canonical" / "canonical.jsonl"), language="c")
    for task in env.tasks.take(5):
        assert len(task.hints) == 2
        assert "Plan: read" in task.hints[-1]


def run_guided(backend: SandboxBackend, task: Task, lines: list[str], guide: Guide) -> Any:
    rollouts = Rollouts(lambda: CodeEnv(sandbox=backend, family="functions"), ScriptedPolicy(lambda _: lines))
    (group,) = asyncio.run(rollouts.run_guided([task], guide, size=2, seed=0))
    return group


def test_guidance_shows_the_failed_attempts_own_test_log_beside_the_hint(backend: SandboxBackend) -> None:
    task = procedural.generate(5, 3)
    wrong = "def f(v): return 12345"
    group = run_guided(backend, task, [f"```test\n{wrong}\n```", f"```submit\n{wrong}\n```"], Guide(feedback=True))
    assert group.guided
    examples: Any = task.public.data["examples"]
    for one in group.trajectories:
        shown = one.prompt[-1].guidance
        assert shown.startswith(f"\n{task.hints[-1]}\nIn an earlier attempt that failed,")
        assert f"the environment last answered: {examples[0]['call']}: got 12345, want" in shown
        assert "it was judged: the visible example" in shown
        cases: Any = task.hidden.data["cases"]
        assert not any(case["call"] in shown for case in cases)


def test_feedback_alone_earns_a_second_round_and_silence_none(backend: SandboxBackend) -> None:
    task = procedural.generate(5, 3).model_copy(update={"hints": ()})
    wrong = ["```submit\ndef f(v): return 12345\n```"]
    assert run_guided(backend, task, wrong, Guide(feedback=True)).guided
    assert not run_guided(backend, task, wrong, Guide()).guided
