"""Graders on real task data: what is known to be right passes, and what is not right does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from agentgym.graders.answer import AnswerGrader
from agentgym.graders.stdio import StdioGrader
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.types import Submission
from agentgym.validate import validate
from agentgym_envs.code.env import CodeEnv

NO_SANDBOX: Any = None


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def value(text: str, **spec: Any) -> float | None:
    task = Task(id="t", split="train", public=Public(prompt="?"), hidden=Hidden(data=spec))
    return AnswerGrader().grade(task, Submission(answer=text), NO_SANDBOX).value


def test_every_gold_of_gsm8k_is_one_number_and_its_neighbours_are_wrong(data: Path) -> None:
    golds = [one["answer"].rpartition("####")[2].strip() for one in rows(data / "gsm8k/gsm8k.jsonl")]
    assert len(golds) == 1500
    for gold in golds:
        assert value(gold, kind="numeric", gold=gold, abs_tol=0) == 1.0
        for wrong in (f"{gold}1", f"{gold} or 7", f"-{gold}", f"The answer is {gold}"):
            assert value(wrong, kind="numeric", gold=gold, abs_tol=0) == (1.0 if wrong == "-0" else 0.0)


def test_every_gold_of_multihop_questions_is_an_answer_and_the_question_is_none(data: Path) -> None:
    questions = rows(data / "multihop_qa/questions.jsonl")
    assert len(questions) == 700
    for one in questions:
        kinds: list[dict[str, Any]] = [{"kind": "exact"}, {"kind": "normalised"}, {"kind": "f1", "threshold": 0.8}]
        for kind in kinds:
            assert {value(gold, golds=one["answers"], **kind) for gold in one["answers"]} == {1.0}
            assert value(one["question"], golds=one["answers"], **kind) == 0.0


RAINDROPS = {
    "python": (
        "n = int(input())\nprint(''.join(s for d, s in ((3, 'Pling'), (5, 'Plang'), (7, 'Plong')) if n % d == 0) or n)"
    ),
    "c": (
        '#include <stdio.h>\nint main(void) { int n; scanf("%d", &n);\n'
        'if (n % 3 == 0) printf("Pling");\nif (n % 5 == 0) printf("Plang");\nif (n % 7 == 0) printf("Plong");\n'
        'if (n % 3 && n % 5 && n % 7) printf("%d", n); }'
    ),
    "bash": ('read n; s=\n(( n % 3 )) || s+=Pling\n(( n % 5 )) || s+=Plang\n(( n % 7 )) || s+=Plong\necho "${s:-$n}"'),
    "perl": (
        "my $n = <STDIN>; my $s = ($n % 3 ? '' : 'Pling') . ($n % 5 ? '' : 'Plang') . ($n % 7 ? '' : 'Plong');\n"
        "print $s || $n + 0;"
    ),
}


@pytest.mark.parametrize("language", RAINDROPS)
def test_a_language_neutral_exercise_is_judged_in_every_language(
    data: Path, backend: SandboxBackend, language: str
) -> None:
    program = {"python": "python3", "c": "gcc"}.get(language, language)
    if shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip(f"{program} is not installed")
    (exercise,) = [one for one in rows(data / "exercism_canonical/canonical.jsonl") if one["exercise"] == "raindrops"]
    cases: list[JsonValue] = [
        {"stdin": f"{one['input']['number']}\n", "stdout": one["expected"]} for one in exercise["cases"]
    ]
    public: dict[str, JsonValue] = {"languages": [language], "output": {"mode": "tokens"}, "examples": cases[:2]}
    task = Task(
        id="raindrops", split="train", public=Public(prompt="?", data=public), hidden=Hidden(data={"cases": cases[2:]})
    )
    right = StdioGrader().grade(task, Submission(answer=RAINDROPS[language]), backend)
    assert right.passed, right.feedback
    assert len(cases) == 18
    wrong = StdioGrader().grade(task, Submission(answer=RAINDROPS[language].replace("Plong", "Plung")), backend)
    assert (wrong.value, wrong.components["visible"]) == (0.0, 1.0)


def test_program_tasks_in_the_code_environment_hold_every_check_of_validate(backend: SandboxBackend) -> None:
    cases: list[JsonValue] = [{"stdin": f"{a} {b}\n", "stdout": f"{a + b}\n"} for a, b in ((1, 2), (20, -5), (999, 4))]
    public: dict[str, JsonValue] = {"languages": ["bash"], "output": {"mode": "tokens"}, "examples": cases[:1]}
    task = Task(
        id="sum",
        split="train",
        public=Public(prompt="Add two numbers.", data=public),
        hidden=Hidden(data={"cases": cases[1:]}, reference={"code": "read a b\necho $((a + b))"}),
        grader="stdio",
    )
    found = validate(lambda: CodeEnv(TaskSet("sums", lambda: [task]), sandbox=backend), [task])
    assert found.passed, found.findings
