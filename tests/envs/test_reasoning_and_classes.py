"""CRUXEval and ClassEval tasks: published solutions score 1, and what does nothing scores 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission, Verdict
from agentgym_envs.code import classeval, cruxeval
from agentgym_envs.code.env import CodeEnv

STRIDES = {"cruxeval": 6, "classeval": 4}
"""One task in so many is judged here; `agentgym validate` judges all."""
CRUX = {"id": "sample_7", "code": "def f(x):\n    return (x, {x})", "input": "3", "output": "(3, {3})"}
CLASS: dict[str, Any] = {
    "id": "classeval/made",
    "class_name": "Circle",
    "skeleton": (
        "import math\nclass Circle:\n    def __init__(self, r):\n        pass\n    def area(self):\n        pass\n"
    ),
    "solution": (
        "import math\nclass Circle:\n    def __init__(self, r):\n        self.r = r\n"
        "    def area(self):\n        return math.pi * self.r ** 2\n"
    ),
    "test": (
        "import unittest\nclass CircleTestArea(unittest.TestCase):\n"
        "    def test_one(self):\n        self.assertEqual(Circle(1).area(), math.pi)\n"
        "    def test_two(self):\n        self.assertEqual(Circle(0).area(), 0)\n"
    ),
}


def judged(backend: SandboxBackend, task: Task, code: str) -> Verdict:
    grader = registry.create("graders", task.grader or "function")
    file = str(task.public.data.get("file", "a.py"))
    found: Verdict = grader.grade(task, Submission(files={file: code}), backend)
    return found


@pytest.mark.parametrize(
    ("task", "wrong"),
    [
        (cruxeval.convert(CRUX), "def answer():\n    return (3, {4})"),
        (classeval.convert(CLASS), CLASS["solution"].replace("** 2", "* 3")),
    ],
    ids=["cruxeval", "classeval"],
)
def test_right_scores_wrong_does_not(backend: SandboxBackend, task: Task, wrong: str) -> None:
    assert judged(backend, task, str(task.hidden.reference["code"])).value == 1.0
    assert judged(backend, task, str(task.hidden.reference["stub"])).value == 0.0
    assert judged(backend, task, wrong).value == 0.0


def test_an_output_is_not_told_and_must_be_a_literal(tmp_path: Path) -> None:
    assert "(3, {3})" not in cruxeval.convert(CRUX).public.model_dump_json()
    file = tmp_path / "x.jsonl"
    rows = [CRUX, {**CRUX, "id": "odd", "output": "object()"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert list(cruxeval.tasks(file).refused()) == ["cruxeval/odd"]


def test_a_class_cannot_bring_names_that_its_tests_use(backend: SandboxBackend) -> None:
    task = classeval.convert(CLASS)
    forged = CLASS["skeleton"] + "\nclass math:\n    pi = None\n"
    assert judged(backend, task, forged).value == 0.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["cruxeval", "classeval"])
def test_published_solutions_score_and_stubs_do_not(backend: SandboxBackend, data: Path, family: str) -> None:
    env = CodeEnv(sandbox=backend, family=family, path=str(data / family / f"{family}.jsonl"))
    tasks = list(env.tasks)
    assert (len(tasks), dict(env.tasks.refused())) == ({"cruxeval": 606, "classeval": 43}[family], {})  # type: ignore[attr-defined]
    chosen = tasks[:: STRIDES[family]]
    assert {one.id for one in chosen if not judged(backend, one, str(one.hidden.reference["code"])).passed} == set()
    assert {one.id for one in chosen if judged(backend, one, str(one.hidden.reference["stub"])).value != 0.0} == set()
