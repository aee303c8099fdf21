"""Task files: every solution that is right scores 1, every one that does nothing scores 0, no row vanishes unseen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import TaskError
from agentgym.graders.function import FunctionGrader
from agentgym.graders.unittests import UnittestGrader
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task, TaskSet
from agentgym.types import Submission, Trust, Verdict
from agentgym_envs.code import exercism, humaneval, mbpp
from agentgym_envs.code.env import CodeEnv

GRADERS: dict[str | None, FunctionGrader | UnittestGrader] = {None: FunctionGrader(), "unittest": UnittestGrader()}


def judged(backend: SandboxBackend, tasks: TaskSet, code_of: Callable[[Task], str]) -> dict[str, Verdict]:
    def judge(task: Task) -> tuple[str, Verdict]:
        return task.id, GRADERS[task.grader].grade(task, Submission(files={"a.py": code_of(task)}), backend)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(threads.map(judge, tasks))


def solution(task: Task) -> str:
    return str(task.hidden.reference["code"])


def stub(task: Task) -> str:
    if "stub" in task.hidden.reference:
        return str(task.hidden.reference["stub"])
    names: Any = task.public.data["entry"]
    return "\n".join(f"def {name}(*args): pass" for name in names)


def not_scoring(found: Mapping[str, Verdict], value: float) -> dict[str, str]:
    return {name: f"{one.level}: {one.feedback}" for name, one in found.items() if one.value != value}


@pytest.fixture(params=["mbpp", "exercism"])
def real(request: pytest.FixtureRequest, data: Path) -> TaskSet:
    if request.param == "mbpp":
        return mbpp.tasks(data / "mbpp" / "mbpp.jsonl")
    return exercism.tasks(data / "exercism_python" / "exercism_python.jsonl")


@pytest.mark.timeout(600)
def test_every_published_solution_scores_one(backend: SandboxBackend, real: TaskSet) -> None:
    found = judged(backend, real, solution)
    assert len(found) >= 100
    assert not_scoring(found, 1.0) == {}


@pytest.mark.timeout(600)
def test_every_stub_scores_zero(backend: SandboxBackend, real: TaskSet) -> None:
    assert not_scoring(judged(backend, real, stub), 0.0) == {}


def test_no_row_of_the_real_files_is_refused(data: Path) -> None:
    for found in (
        mbpp.tasks(data / "mbpp" / "mbpp.jsonl"),
        exercism.tasks(data / "exercism_python/exercism_python.jsonl"),
    ):
        assert found.refused() == {}


def test_visible_tests_pass_for_the_solution_and_fail_for_the_stub(backend: SandboxBackend, real: TaskSet) -> None:
    for task in real.take(5):
        with backend.start(task.sandbox) as box:
            grader = GRADERS[task.grader]
            assert grader.preview(task.public, solution(task), box).text == "ok"
            failed = grader.preview(task.public, stub(task), box)
            assert failed.passed < failed.total
            assert "None" in failed.text


def test_most_exercises_are_judged_beside_twins(backend: SandboxBackend, data: Path) -> None:
    tasks = exercism.tasks(data / "exercism_python" / "exercism_python.jsonl").take(12)
    found = judged(backend, tasks, solution)
    assert sum(one.trust is Trust.TWINS for one in found.values()) >= 9


def test_hidden_tests_and_solutions_are_not_in_what_the_agent_may_see(real: TaskSet) -> None:
    for task in real.take(40):
        shown = task.public.model_dump_json()
        assert solution(task) not in shown
        if task.grader is None:
            last: Any = task.hidden.data["cases"]
            assert last[-1]["call"] not in json.loads(shown)["prompt"]


@pytest.mark.skipif("unittest" not in registry.names("graders"), reason="the unittest grader is not installed by name")
def test_an_exercise_is_solved_over_several_turns(backend: SandboxBackend, data: Path) -> None:
    env = CodeEnv(sandbox=backend, family="exercism", path=str(data / "exercism_python" / "exercism_python.jsonl"))
    task = next(iter(env.tasks))
    env.reset(options={"task": task})
    observation, *_ = env.step(f"```test\n{stub(task)}\n```")
    assert "AssertionError" in observation[0].content
    *_, info = env.step(f"```submit\n{solution(task)}\n```")
    assert info["verdict"].passed


ROW = {"task_id": 7, "text": "Double it.", "code": "def twice(x):\n    return 2 * x\n", "test_setup_code": ""}


def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_the_original_and_the_sanitized_mbpp_format_are_read(backend: SandboxBackend, tmp_path: Path) -> None:
    tests = ["assert twice(2) == 4", "assert math.isclose(twice(0.1), 0.2)", "assert set(twice([1])) == {1}"]
    sanitized = {**ROW, "task_id": 8, "prompt": "Double it.", "test_imports": ["import math"], "test_list": tests}
    original = {**ROW, "test_list": ["assert twice(1) == 2", "assert not twice(0)", "assert 6 == twice(3), 'no'"]}
    found = judged(backend, mbpp.tasks(write(tmp_path, [sanitized, original])), solution)
    assert [one.level for one in found.values()] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (["assert twice(1) == 2"], "wanted more than 1 assertions, found 1"),
        (["assert True is False", "assert twice(1) == 2"], "does not call the solution"),
        (["for i in range(3): assert twice(i) == 2 * i"], "a test with the statement 'for i in range(3):'"),
        (["assert all(twice(i) == 2 * i for i in range(9))"], "depends on a loop's variable"),
        (["assert list(map(twice, [1])) == [2]"], "passes the solution on as a value"),
        (["assert twice(1) == "], "a test that is not Python"),
    ],
)
def test_a_row_that_cannot_be_told_as_calls_is_listed_with_its_reason(
    tests: list[str], reason: str, tmp_path: Path
) -> None:
    good = {**ROW, "test_list": ["assert twice(1) == 2", "assert twice(2) == 4"]}
    tasks = mbpp.tasks(write(tmp_path, [{**good, "task_id": 1}, {**ROW, "test_list": tests}]))
    assert [task.id for task in tasks] == ["mbpp/1"]
    assert reason in tasks.refused()["mbpp/7"]


def test_a_row_of_another_format_names_its_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"rows.jsonl:1 is not a row of the mbpp format: the field 'code' is missing"):
        list(mbpp.tasks(write(tmp_path, [{"task_id": 1, "text": "?", "test_list": []}])))
    with pytest.raises(TaskError, match="no task file"):
        list(mbpp.tasks(tmp_path / "none.jsonl"))


def test_splits_are_the_files_own_or_by_the_hash_of_the_id(tmp_path: Path) -> None:
    tests = ["assert twice(1) == 2", "assert twice(2) == 4"]
    own = [{**ROW, "task_id": i, "split": name, "test_list": tests} for i, name in enumerate(("prompt", "validation"))]
    assert [task.split for task in mbpp.tasks(write(tmp_path, own))] == ["train", "validation"]
    hashed = [{**ROW, "task_id": i, "test_list": tests} for i in range(60)]
    assert len({task.split for task in mbpp.tasks(write(tmp_path, hashed))}) == 3


PROMPT = '''from typing import List


def helper(x: int) -> int:
    return x + 1


def total(xs: List[int]) -> int:
    """Add one to each of xs and return the sum."""
'''
CHECKS = {
    "plain": "    assert candidate([1, 2]) == 5, 'first'\n    assert abs(candidate([]) - 0.0) < 1e-6\n    pass\n",
    "assigned": "    xs = [1, 2]\n    assert candidate(xs) == 5\n    assert candidate(xs) == total([2, 1]) == 5\n",
    "helper": "    assert candidate([helper(0)]) == 2\n    assert candidate([]) == helper(-1)\n",
    "loop": "    import random\n    for n in range(9):\n        assert candidate([0] * n) == n\n",
}


def humaneval_row(check: str) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{check}",
        "prompt": PROMPT,
        "entry_point": "total",
        "canonical_solution": "    return sum(helper(x) for x in xs)\n",
        "test": f"METADATA = {{'author': 'x'}}\n\ndef check(candidate):\n{CHECKS[check]}",
    }


@pytest.mark.parametrize("check", CHECKS)
def test_humaneval_rows_accept_their_solution_and_reject_a_wrong_one(
    backend: SandboxBackend, check: str, tmp_path: Path
) -> None:
    tasks = humaneval.tasks(write(tmp_path, [humaneval_row(check)]))
    (task,) = tasks
    assert (task.split, task.grader) == ("test", "unittest" if check == "loop" else None)
    assert judged(backend, tasks, solution)[task.id].passed
    assert judged(backend, tasks, lambda _: "def total(xs): return 1")[task.id].value == 0.0
    completed = "from typing import List\ndef total(xs: List[int]) -> int:\n    return sum(xs) + len(xs)\n"
    assert judged(backend, tasks, lambda _: completed if check != "helper" else solution(task))[task.id].passed
