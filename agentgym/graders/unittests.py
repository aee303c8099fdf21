"""Judge a module by a hidden unittest file, test by test, beside twins of each test that must fail."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import Field, ValidationError

from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.calls import NoAnswers, ask_python
from agentgym.graders.function import Preview, clean, code_of
from agentgym.graders.twins import Trial, tests_of, trials, true_trials
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.task import Public, Task
from agentgym.types import Record, Submission, Trust, Verdict

_GRACE_S = 5.0
_PATIENCE = 4.0
_LINE_BYTES = 5000
_MAX_MESSAGE = 300


class Tested(Record):
    """What a unittest task shows; kept in `public.data`."""

    file: str
    """The file that the submission is, such as `two_fer.py`."""
    visible: dict[str, str] = {}
    """Test files that the agent may see and run."""
    support: dict[str, str] = {}
    """Modules that come with the task."""
    case_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """Seconds that one test may take."""
    total_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds that all tests may take, twins included."""


class UnittestGrader:
    """Runs each test of a hidden file in a process of its own, and each again with a wrong expected value.

    The value is 1 only if every test passes and every wrong one fails; skipped, missing and repeated outcomes count as
    failures. Trust is `twins` where every test has a twin that differs in a value, else `separate`.
    """

    levels = ("no_submission", "empty", "broken", "failed", "passed")

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on a submission of one file.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed.
        """
        told, planned = _plan(task)
        trust = _trust(planned)
        code, problem = code_of(submission)
        if code is None:
            return _verdict("empty", trust, problem)
        fresh = clean(task.sandbox)
        try:
            with sandboxes.start(fresh) as box:
                outcomes = _run(box, told, code, planned)
        except NoAnswers as error:
            _show_that_judging_works(sandboxes, fresh, error)
            return _verdict("failed", trust, "the submission ended the process that judged it")
        return _judge(told, planned, outcomes, trust)

    def preview(self, public: Public, code: str, box: Sandbox) -> Preview:
        """Run the visible tests in the agent's own sandbox."""
        told = Tested.model_validate(public.data)
        shown = [one for source in told.visible.values() for one in true_trials(source)]
        if not shown:
            return Preview(0, 0, True, "there are no visible tests")
        try:
            outcomes = _run(box, told, code, shown)
        except NoAnswers as error:
            return Preview(0, len(shown), True, f"error: {error}")
        passed = [letter == "P" for letter, _ in outcomes]
        compiles = not all(letter == "B" for letter, _ in outcomes)
        text = "ok" if all(passed) else _first_failure(shown, outcomes)
        ran = sum(letter == "P" or (letter == "F" and _is_assertion(reason)) for letter, reason in outcomes)
        return Preview(sum(passed), len(shown), compiles, text, ran, _suites(shown, passed))


def _plan(task: Task) -> tuple[Tested, list[Trial]]:
    tests = task.hidden.data.get("tests")
    try:
        told = Tested.model_validate(task.public.data)
    except ValidationError as error:
        first = error.errors()[0]
        raise VerifierError(f"the unittest task {task.id!r} is malformed: {first['loc']}: {first['msg']}") from error
    if not isinstance(tests, Mapping) or not tests:
        raise VerifierError(f"the unittest task {task.id!r} has no hidden tests; put them in hidden.data['tests']")
    rng = random.SystemRandom()
    planned = [one for source in tests.values() for one in trials(str(source), rng)]
    if not planned:
        raise VerifierError(f"no test methods can be read from the files of {task.id!r}")
    names = [one.id for one in planned if one.must_pass]
    if len(set(names)) < len(names):
        raise VerifierError(f"two tests of {task.id!r} have the same class and method; rename one of them")
    return told, planned


def _trust(planned: Sequence[Trial]) -> Trust:
    tests = {one.id for one in planned}
    return Trust.TWINS if tests == {one.id for one in planned if one.by_value} else Trust.SEPARATE


def _run(box: Sandbox, told: Tested, code: str, planned: Sequence[Trial]) -> list[tuple[str, str]]:
    """Return each trial's outcome, a letter and a reason; trials that did not run are left out at the end."""
    target = told.file.removesuffix(".py")
    modules = {name.removesuffix(".py"): source for name, source in told.support.items()} | {target: code}
    request = {
        "modules": modules,
        "target": target,
        "trials": [{"source": one.source, "class": one.suite, "method": one.method} for one in planned],
        "case_s": told.case_s,
        "total_s": told.total_s,
    }
    timeout = told.total_s + _PATIENCE * told.case_s + _GRACE_S
    limit = _LINE_BYTES * (len(planned) + 1)
    result = ask_python(box, "_unittest_runner.py", request, timeout=timeout, output_limit=2 * limit)
    if result.timed_out or result.truncated or result.exit_code != 0:
        raise NoAnswers("the submission ended its own judging", result)
    outcomes = []
    for index, line in enumerate(result.stdout.decode("ascii", "replace").splitlines()):
        words = line.split(" ")
        if len(words) != 3 or words[0] != str(index) or words[1] not in "PFBTD":
            raise NoAnswers("the outcomes are out of order", result)
        outcomes.append((words[1], bytes.fromhex(words[2]).decode("utf-8", "replace")))
    ended = bool(outcomes) and outcomes[-1][0] == "T"
    if len(outcomes) > len(planned) or (len(outcomes) < len(planned) and not ended):
        raise NoAnswers(f"wanted {len(planned)} outcomes, found {len(outcomes)}", result)
    return outcomes + [("T", "not run")] * (len(planned) - len(outcomes))


def _judge(told: Tested, planned: Sequence[Trial], outcomes: Sequence[tuple[str, str]], trust: Trust) -> Verdict:
    passing = [one for one, (letter, _) in zip(planned, outcomes, strict=True) if letter == "P"]
    passed = {one.id for one in passing if one.must_pass}
    must_pass = [one for one in planned if one.must_pass]
    true = [one.id in passed for one in must_pass]
    suites = _suites(must_pass, true)
    components: dict[str, float | None] = {"passed": sum(true) / len(true), "suites": _share(suites.values())}
    shown = {f"{suite}.{method}" for source in told.visible.values() for suite, method in tests_of(source)}
    visible = shown & {one.id for one in must_pass}
    if visible:
        components["visible"] = _share(one in passed for one in visible)
    # A wrong answer may be what a twin expects; a test and its twin contradict each other.
    if any(one.id in passed for one in passing if not one.must_pass):
        return _verdict("failed", trust, "tests with wrong expectations pass, too", dict.fromkeys(components, 0.0))
    if all(true):
        return _verdict("passed", trust, "", components)
    if all(letter == "B" for letter, _ in outcomes):
        return _verdict("broken", trust, "the submission fails when it is imported", components)
    return _verdict("failed", trust, f"{true.count(False)} of {len(true)} hidden tests fail", components)


def _suites(tests: Sequence[Trial], passed: Sequence[bool]) -> dict[str, bool]:
    """Return of each test class whether all its tests pass."""
    found: dict[str, bool] = {}
    for one, good in zip(tests, passed, strict=True):
        found[one.suite] = found.get(one.suite, True) and good
    return found


def _share(held: Iterable[bool]) -> float:
    values = list(held)
    return sum(values) / len(values)


def _is_assertion(reason: str) -> bool:
    return any(line.startswith("AssertionError") for line in reason.splitlines())


def _first_failure(shown: Sequence[Trial], outcomes: Sequence[tuple[str, str]]) -> str:
    for one, (letter, reason) in zip(shown, outcomes, strict=True):
        if letter == "B":
            return f"error: {reason[:_MAX_MESSAGE]}"
        if letter != "P":
            lines = [line for line in reason.strip().splitlines() if line.strip()]
            words = {"T": "too slow", "D": "the process ended without an answer"}
            shown_reason = words.get(letter) or (lines[-1] if len(lines) < 2 else _error_part(lines))
            return f"{one.method}: {shown_reason[:_MAX_MESSAGE]}"
    return "ok"


def _error_part(lines: Sequence[str]) -> str:
    """Return a traceback's last lines, from the exception's name on."""
    start = max((index for index, line in enumerate(lines) if line.startswith(("  ", "Traceback"))), default=-1)
    return "\n".join(lines[start + 1 :])


def _show_that_judging_works(sandboxes: SandboxBackend, spec: SandboxSpec, cause: NoAnswers) -> None:
    source = "import unittest\nimport control\nclass T(unittest.TestCase):\n    def test_f(self):\n        pass\n"
    try:
        with sandboxes.start(spec) as box:
            _run(box, Tested(file="control.py"), "f = 1", true_trials(source))
    except NoAnswers as error:
        raise SandboxError(f"a harmless module cannot be judged in this sandbox: {error}") from cause


def _verdict(level: str, trust: Trust, feedback: str, components: Mapping[str, float | None] | None = None) -> Verdict:
    value = 1.0 if level == "passed" else 0.0
    return Verdict(value=value, level=level, trust=trust, components=dict(components or {}), feedback=feedback)
