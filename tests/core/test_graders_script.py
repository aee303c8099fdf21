"""The script grader: believes a task's own script, says so, and is off unless the task accepts that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import JsonValue

from agentgym import registry
from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.script import ScriptGrader
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Trust, Verdict

BASE = {"add.sh": "echo $(($1 - $2))\n", "run.sh": "exit 0\n"}
RIGHT = {"add.sh": "echo $(($1 + $2))\n"}
RUN = {"run.sh": '[ "$(sh add.sh 2 3)" = 5 ]\n'}
SCORE = {"run.sh": 'a=0; [ "$(sh add.sh 2 0)" = 2 ] && a=0.5; [ "$(sh add.sh 2 3)" = 5 ] && a=1; echo $a >score\n'}


@pytest.fixture(scope="module")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def judged(
    backend: SandboxBackend, files: dict[str, str], data: dict[str, JsonValue] | None = None, **hidden: Any
) -> Verdict:
    whole: dict[str, Any] = {"trust": "separate", "command": ["sh", "run.sh"], "tests": RUN, **hidden}
    task = Task(id="add", split="train", public=Public(prompt="", files=BASE), hidden=Hidden(data=whole))
    return ScriptGrader().grade(task, Submission(files=files, data=data or {}), backend)


def scored(backend: SandboxBackend, files: dict[str, str], **hidden: Any) -> Verdict:
    return judged(backend, files, trust="shared", tests=SCORE, result_file="score", **hidden)


@pytest.mark.parametrize(
    ("files", "value", "level", "feedback"),
    [
        (RIGHT, 1.0, "passed", ""),
        ({}, 0.0, "empty", "nothing was submitted"),
        ({"add.sh": BASE["add.sh"]}, 0.0, "empty", "the submission changes nothing that counts"),
        ({"add.sh": "echo 7\n"}, 0.0, "failed", "the script ended with exit code 1"),
        ({"/add.sh": "echo 5\n"}, 0.0, "malformed", "wanted a path inside the repository, found '/add.sh'"),
        ({"run.sh": "exit 0\n", "add.sh": "echo\n"}, 0.0, "failed", "the script ended with exit code 1"),
    ],
)
def test_the_exit_code_decides(
    backend: SandboxBackend, files: dict[str, str], value: float, level: str, feedback: str
) -> None:
    verdict = judged(backend, files)
    assert (verdict.value, verdict.level, verdict.feedback) == (value, level, feedback)
    assert verdict.trust is Trust.SEPARATE


def test_a_result_file_decides_with_the_lowest_trust(backend: SandboxBackend) -> None:
    right, part, wrong = (scored(backend, files) for files in (RIGHT, {"add.sh": "echo $1"}, {"add.sh": "echo 9"}))
    assert (right.value, part.value, wrong.value) == (1.0, 0.5, 0.0)
    assert right.trust is Trust.SHARED


@pytest.mark.parametrize("planted", ["1", "nan", "2", "x", "1" * 300])
def test_a_result_that_was_there_before_does_not_count(backend: SandboxBackend, planted: str) -> None:
    broken = {"run.sh": "exit 0\n"}
    files = {"score": planted, "add.sh": "echo 9"}
    verdict = judged(backend, files, trust="shared", tests=broken, result_file="score")
    assert (verdict.value, verdict.feedback) == (0.0, "the script left no number as its result")


@pytest.mark.parametrize("text", ["nan", "inf", "1.5", "-1"])
def test_a_result_outside_of_0_to_1_is_worth_nothing(backend: SandboxBackend, text: str) -> None:
    verdict = judged(backend, {"add.sh": f"echo {text}"}, trust="shared", tests={"run.sh": "sh add.sh >score"},
                     result_file="score")  # fmt: skip
    assert (verdict.value, verdict.feedback) == (0.0, "the script's result is not a number from 0 to 1")


def test_a_diff_may_make_a_file_executable(backend: SandboxBackend) -> None:
    diff = "diff --git a/go b/go\nnew file mode 100755\n--- /dev/null\n+++ b/go\n@@ -0,0 +1,2 @@\n+#!/bin/sh\n+exit 0\n"
    assert judged(backend, {}, {"diff": diff}, tests={"run.sh": "./go"}).passed
    assert not judged(backend, {}, {"diff": diff.replace("755", "644")}, tests={"run.sh": "./go"}).passed


def test_a_script_that_does_not_end_scores_nothing(backend: SandboxBackend) -> None:
    verdict = judged(backend, {"add.sh": "sleep 60"}, total_s=0.5)
    assert (verdict.value, verdict.feedback) == (0.0, "the script took too long")


@pytest.mark.parametrize(
    ("hidden", "sentence"),
    [
        ({"trust": "rpc"}, "name the trust that this task accepts, separate or shared"),
        ({"result_file": "score"}, "wanted trust: shared"),
        ({"trust": "shared", "result_file": "../score"}, "inside the repository"),
        ({"command": []}, "command"),
        ({"tests": {"/run.sh": ""}}, "inside the repository"),
        ({"command": ["no-such-program"]}, "has no 'no-such-program'"),
        ({"exit": 0}, "Extra inputs"),
    ],
)
def test_a_malformed_task_is_refused_in_a_sentence(
    backend: SandboxBackend, hidden: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(VerifierError, match=sentence):
        judged(backend, RIGHT, **hidden)


def test_it_is_off_unless_the_task_says_which_trust_it_accepts(backend: SandboxBackend) -> None:
    task = Task(id="add", split="train", public=Public(prompt=""), hidden=Hidden(data={"command": ["true"]}))
    with pytest.raises(VerifierError, match="name the trust"):
        ScriptGrader().grade(task, Submission(files=RIGHT), backend)
    with pytest.raises(VerifierError, match="name the trust"):
        ScriptGrader().check(task)
    ScriptGrader().check(task.model_copy(update={"hidden": Hidden(data={"command": ["true"], "trust": "separate"})}))


def test_a_program_that_only_the_submission_misses_is_its_own_fault(backend: SandboxBackend) -> None:
    assert judged(backend, {"add.sh": "exit 127"}, tests={"run.sh": "sh add.sh"}).value == 0.0
