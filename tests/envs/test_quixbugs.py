"""QuixBugs tasks: mended programs score 1, programs with their defect score 0, and one that loops for ever ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission, Trust, Verdict
from agentgym_envs.code import quixbugs
from agentgym_envs.code.env import CodeEnv

TABLE = """
import pytest
from load_testdata import load_json_testcases

@pytest.mark.parametrize("input_data,expected", load_json_testcases("down"))
def test_down(input_data, expected):
    assert {assertion}
"""
NODES = """
import pytest
from node import Node

if pytest.use_correct:
    from correct_python_programs.last import last
else:
    from python_programs.last import last

three = Node(3)

def test1():
    "A chain."
    assert last(Node(1, Node(2, three))) == three
    assert last(three)

def test2():
    assert not last(Node(0)).next
"""
NODE = "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\n"


def row(name: str, buggy: str, fixed: str, test: str, support: dict[str, str]) -> dict[str, Any]:
    return {
        "id": f"made/{name}",
        "path": f"python_programs/{name}.py",
        "buggy": buggy,
        "fixed": fixed,
        "tests": {f"python_testcases/test_{name}.py": test},
        "support": support,
    }


def down(assertion: str = "down(*input_data) == expected") -> dict[str, Any]:
    source = "def down(n):\n    steps = 0\n    while n > 0:\n        n -= {}\n        steps += 1\n    return steps\n"
    table = {"json_testcases/down.json": "[[3], 3]\n[[5], 5]\n[0, 0]\n"}
    return row("down", source.format(0), source.format(1), TABLE.format(assertion=assertion), table)


def last() -> dict[str, Any]:
    source = "def last(node):\n    while node.next:\n        node = node.next\n    return {}\n"
    nodes = {"python_testcases/node.py": NODE}
    return row("last", source.format("node.value"), source.format("node"), NODES, nodes)


def judged(backend: SandboxBackend, task: Task, which: str) -> Verdict:
    grader = registry.create("graders", task.grader or "function")
    found: Verdict = grader.grade(task, Submission(files={"a.py": str(task.hidden.reference[which])}), backend)
    return found


@pytest.mark.parametrize("made", [down, last])
def test_the_mended_program_scores_and_the_defect_does_not(
    backend: SandboxBackend, made: Callable[[], dict[str, Any]]
) -> None:
    task = quixbugs.convert(made())
    began = time.monotonic()
    assert judged(backend, task, "code").passed
    verdict = judged(backend, task, "stub")
    assert (verdict.value, verdict.level, verdict.error) == (0.0, "failed", None)
    assert time.monotonic() - began < 60


def test_assertions_become_unittests_that_have_twins(backend: SandboxBackend) -> None:
    task = quixbugs.convert(last())
    text = str(task.hidden.data["tests"])
    assert "self.assertTrue(last(three))" in text
    assert "self.assertFalse(last(Node(0)).next)" in text
    assert judged(backend, task, "code").trust is Trust.TWINS


def test_a_generator_is_asked_for_its_list() -> None:
    cases: Any = quixbugs.convert(down("list(down(*input_data)) == expected")).hidden.data["cases"]
    assert cases[0] == {"call": "list(down(*[5]))", "literal": "5"}


def test_the_answers_are_hidden_and_rows_that_cannot_be_told_are_listed(tmp_path: Path) -> None:
    task = quixbugs.convert(down())
    assert "n -= 1" not in task.public.model_dump_json()
    assert "[5]" not in task.public.model_dump_json()
    file = tmp_path / "x.jsonl"
    odd = down("[down(x) for x in input_data] == expected")
    file.write_text("\n".join(json.dumps(one) for one in (down(), {**odd, "id": "made/odd"})))
    assert list(quixbugs.tasks(file).refused()) == ["made/odd"]


@pytest.mark.timeout(600)
def test_the_published_programs_are_told_apart(backend: SandboxBackend, data: Path) -> None:
    env = CodeEnv(sandbox=backend, family="quixbugs", path=str(data / "quixbugs" / "quixbugs_python.jsonl"))
    tasks = list(env.tasks)
    assert len(tasks) == 20
    assert {one.id for one in tasks if not judged(backend, one, "code").passed} == set()
    assert {one.id for one in tasks if judged(backend, one, "stub").value != 0.0} == set()
