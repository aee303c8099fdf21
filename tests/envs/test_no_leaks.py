"""No task's solution or hidden test can be found where the agent works.

Not in its container's files, variables or processes, before its first turn or after a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import VerifierError
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.validate.inside import hidden_in
from agentgym.validate.secrets import SHORT, secrets
from agentgym_envs.code.env import CodeEnv

FILES = {
    "mbpp": "mbpp/mbpp.jsonl",
    "exercism": "exercism_python/exercism_python.jsonl",
    "quixbugs": "quixbugs/quixbugs_python.jsonl",
    "classeval": "classeval/classeval.jsonl",
    "cruxeval": "cruxeval/cruxeval.jsonl",
    "exercism_canonical": "exercism_canonical/canonical.jsonl",
}
HUMANEVAL = {
    "task_id": "HumanEval/made",
    "prompt": 'def add_up(xs):\n    """Return the sum of the squares of xs."""\n',
    "entry_point": "add_up",
    "canonical_solution": "    squares_of_all = [one * one for one in xs]\n    return sum(squares_of_all)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 5\n    assert candidate([12345, 2]) == 152399029\n",
}
PROGRAM = {
    "id": "sum",
    "prompt": "Add two numbers.",
    "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "777111333 5\n", "output": "777111338\n"}],
    "solutions": {
        "python": "first_of_two, second_of_two = map(int, input().split())\nprint(first_of_two + second_of_two)"
    },
}
ROW = {"prompt": "Double it.", "tests": ["assert twice(1) == 2", "assert twice(987654321) == 1975308642"],
       "reference": "def twice(number_to_double):\n    return 2 * number_to_double\n"}  # fmt: skip
MADE: dict[str, Mapping[str, Any]] = {"humaneval": HUMANEVAL, "stdio": PROGRAM, "dataset": ROW}
FAMILIES = ("repair", "functions", *FILES, *MADE)


def environment(family: str, data: Path, folder: Path, backend: SandboxBackend) -> CodeEnv:
    if family in MADE:
        path = folder / "rows.jsonl"
        path.write_text(json.dumps(MADE[family]))
        if family == "dataset":
            return CodeEnv(sandbox=backend, family=family, dataset={"path": str(path), "kind": "asserts"})
        return CodeEnv(sandbox=backend, family=family, path=str(path))
    path_of = {"path": str(data / FILES[family])} if family in FILES else {}
    return CodeEnv(sandbox=backend, family=family, **path_of)  # type: ignore[arg-type]


@pytest.mark.docker
@pytest.mark.parametrize("family", FAMILIES)
def test_the_agents_container_holds_nothing_hidden(
    docker: SandboxBackend, data: Path, tmp_path: Path, family: str
) -> None:
    env = environment(family, data, tmp_path, docker)
    (task,) = env.tasks.take(1)
    assert len(list(secrets(task, SHORT))) >= 1
    env.reset(options={"task": task})
    try:
        assert hidden_in(env, task) is None
        env.step("```test\ndef f(x): pass\n```")
        assert hidden_in(env, task) is None
    finally:
        env.close()


SECRET = "secret_of_the_solution = 12345 * 67891"
PLACES: dict[str, dict[str, Any]] = {
    "file": {"elsewhere": f"echo '# {SECRET}' > notes.txt"},
    "variable": {"env": {"NOTE": SECRET}},
    "elsewhere": {"elsewhere": f"echo '{SECRET}' > /tmp/.cache"},
    "process": {"elsewhere": f"sh -c 'sleep 60; : {SECRET}' >/dev/null 2>&1 &"},
}


@pytest.mark.docker
@pytest.mark.parametrize("place", PLACES)
def test_a_task_that_leaks_is_found(docker: SandboxBackend, place: str) -> None:
    leak = PLACES[place]
    task = Task(
        id="leaking",
        split="train",
        public=Public(prompt="Write f.", data={"entry": ["f"]}),
        hidden=Hidden(
            data={"cases": [{"call": "f(1)", "expected": 1}]}, reference={"code": f"def f(x):\n    {SECRET}\n"}
        ),
    )
    task = task.model_copy(update={"sandbox": task.sandbox.model_copy(update={"env": leak.get("env", {})})})
    env = CodeEnv(TaskSet("leaking", lambda: [task]), sandbox=docker)
    env.reset(options={"task": task})
    try:
        if "elsewhere" in leak:
            assert env.sandbox.exec(leak["elsewhere"]).ok
        assert "the agent's sandbox holds" in str(hidden_in(env, task))
    finally:
        env.close()


@pytest.mark.parametrize("part", ["prompt", "file", "data", "test"])
def test_a_task_that_shows_its_solution_or_a_whole_hidden_test_is_refused(backend: SandboxBackend, part: str) -> None:
    code = f"def f(x):\n    {SECRET}\n"
    shown: dict[str, Any] = {
        "prompt": {"prompt": f"Write f, such as\n{code}"},
        "file": {"prompt": "Write f.", "files": {"solution.py": code}},
        "data": {"prompt": "Write f.", "data": {"support": {"old.py": f"# once\n{code}"}}},
        "test": {"prompt": "Write f.", "data": {"visible": {"a_test.py": "import unittest\nimport f"}}},
    }
    tests: dict[str, Any] = {"a_test.py": "import unittest\nimport f\n"}
    hidden = Hidden(data={"cases": [{"call": "f(1)", "expected": 1}], "tests": tests}, reference={"code": code})
    task = Task(id="leaking", split="train", public=Public(**shown[part]), hidden=hidden)
    env = CodeEnv(TaskSet("leaking", lambda: [task]), sandbox=backend)
    with pytest.raises(VerifierError, match=r"'leaking' shows (its solution|a_test.py) to the agent"):
        env.reset(options={"task": task})
