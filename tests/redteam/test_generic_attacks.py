"""The attacks that any environment can be put to: real graders hold, in processes and in containers; naive ones fall.

Everything here runs in sandboxes: some of these attacks would end whatever else is on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from agentgym import registry
from agentgym.errors import AgentFault, SandboxError
from agentgym.redteam import Attack, Target, attacks_on
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Public, Task
from agentgym.testing import ToyEnv
from agentgym.types import Submission

CASES = [(0, -3), (2, 1), (5, 22), (9, 78)]
RIGHT = "def f(x):\n    return x * x - 3\n"
TESTS = """
import unittest
from answer import f

class FTest(unittest.TestCase):
    def test_small(self):
        self.assertEqual(f(2), 1)

    def test_large(self):
        self.assertEqual(f(9), 78)
"""
REPOSITORY = {"pack/__init__.py": "", "pack/core.py": "def f(x):\n    return 0\n", "tests/__init__.py": ""}
PYTEST = "from pack.core import f\n\ndef test_f():\n    assert f(2) == 1\n\ndef test_g():\n    assert f(9) == 78\n"


def task(public: Public, **hidden: object) -> Task:
    return Task.model_validate({"id": "t", "split": "train", "public": public, "hidden": {"data": hidden}})


def function_target() -> Target:
    cases = [{"call": f"f({x})", "expected": want} for x, want in CASES]
    data = {"examples": cases[:1], "entry": ["f"], "case_s": 1.0, "total_s": 2.0}
    public = Public.model_validate({"prompt": "Write f.", "data": data})
    return Target(task(public, cases=cases[1:]), Submission(files={"f.py": RIGHT}), ("function",), {})


def unittest_target() -> Target:
    public = Public(prompt="Write f.", data={"file": "answer.py", "case_s": 1.0, "total_s": 6.0})
    gold = Submission(files={"answer.py": RIGHT})
    return Target(task(public, tests={"answer_test.py": TESTS}), gold, ("unittest",), {})


def stdio_target() -> Target:
    cases = [{"stdin": f"{x}\n", "stdout": f"{want}\n"} for x, want in CASES]
    limits = {"cpu_s": 1, "total_s": 3.0, "output": {"mode": "tokens"}}
    data = {"languages": ["python"], "examples": cases[:1], **limits}
    public = Public.model_validate({"prompt": "Print.", "data": data})
    gold = Submission(files={"main.py": "x = int(input())\nprint(x * x - 3)\n"})
    return Target(task(public, cases=cases[1:]), gold, ("stdio",), {})


def pytest_target() -> Target:
    ids = ["tests/test_f.py::test_f", "tests/test_f.py::test_g"]
    hidden = {"fail_to_pass": ids, "tests": {"tests/test_f.py": PYTEST}, "total_s": 6}
    gold = Submission(files={"pack/core.py": RIGHT})
    return Target(task(Public(prompt="Mend f.", files=REPOSITORY), **hidden), gold, ("pytest_ids",), {})


def answer_target() -> Target:
    public = Public(prompt="What is the capital of Peru?")
    return Target(task(public, kind="normalised", golds=["Lima"]), Submission(answer="Lima"), ("answer",), {})


def state_target() -> Target:
    gold = {"orders": [{"id": 1, "paid": True}], "total": 30}
    parts = {"world": {"kind": "json", "gold": gold, "start": {"orders": [], "total": 0}}}
    return Target(task(Public(prompt="Pay."), parts=parts), Submission.model_validate({"data": {"world": gold}}),
                  ("state",), {})  # fmt: skip


TARGETS: dict[str, Target] = {
    "function": function_target(),
    "unittest": unittest_target(),
    "stdio": stdio_target(),
    "pytest_ids": pytest_target(),
    "answer": answer_target(),
    "state": state_target(),
}


def made_for(grader: str) -> list[Attack]:
    return [one for one in attacks_on(TARGETS[grader], ToyEnv(), "machine") if one.submission is not None]


REAL = [pytest.param(grader, one, id=f"{grader}: {one.name}") for grader in TARGETS for one in made_for(grader)]


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def anywhere(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    options = {"warm": 2} if request.param == "docker" else {}
    made: SandboxBackend = registry.create("sandboxes", request.param, **options)
    try:
        made.check()
    except SandboxError as missing:
        if request.param == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    yield made
    made.close()


def value_of(backend: SandboxBackend, grader: str, submission: Submission) -> float | None:
    try:
        found: float | None = registry.create("graders", grader).grade(TARGETS[grader].task, submission, backend).value
    except AgentFault:
        return 0.0
    return found


@pytest.mark.parametrize(("grader", "attack"), REAL)
def test_an_attack_on_a_real_grader_scores_nothing(anywhere: SandboxBackend, grader: str, attack: Attack) -> None:
    assert attack.submission is not None
    assert value_of(anywhere, grader, attack.submission) == 0.0


@pytest.mark.parametrize("grader", TARGETS)
def test_the_right_submission_passes_the_real_grader(anywhere: SandboxBackend, grader: str) -> None:
    assert value_of(anywhere, grader, TARGETS[grader].gold) == 1.0


# ------------------------------------------------------------------------------------------------------ naive graders

Naive = Callable[[SandboxBackend, Submission], bool]


def source_of(submission: Submission) -> str:
    return next(iter(submission.files.values()), submission.answer or "")


def run(backend: SandboxBackend, code: str, timeout: float = 10.0) -> tuple[int | None, str]:
    with backend.start(SandboxSpec()) as box:
        box.write("run.py", code.encode())
        result = box.exec(["python3", "run.py"], timeout=timeout)
    return result.exit_code, result.stdout.decode("utf-8", "replace")


def by_exit_code(backend: SandboxBackend, submission: Submission) -> bool:
    checks = "".join(f"assert f({x}) == {want}\n" for x, want in CASES)
    return run(backend, f"{source_of(submission)}\n{checks}")[0] == 0


def by_output(backend: SandboxBackend, submission: Submission) -> bool:
    checks = f"print('PASSED' if all(f(x) == want for x, want in {CASES}) else 'FAILED')\n"
    return "PASSED" in run(backend, f"{source_of(submission)}\n{checks}")[1].split()


def by_loop(backend: SandboxBackend, submission: Submission) -> bool:
    loop = f"def main():\n    for x, expected in {CASES}:\n        assert f(x) == expected\nmain()\n"
    return run(backend, f"{source_of(submission)}\n{loop}")[0] == 0


def by_report_file(backend: SandboxBackend, submission: Submission) -> bool:
    checks = f"ok = all(f(x) == want for x, want in {CASES})\nopen('reward.txt', 'a').write(str(int(ok)))\n"
    with backend.start(SandboxSpec()) as box:
        box.write("run.py", f"{source_of(submission)}\n{checks}".encode())
        box.exec(["sh", "-c", "python3 run.py; sleep 0.3"], timeout=10)
        try:
            return box.read("reward.txt").strip().startswith(b"1")
        except FileNotFoundError:
            return False


def by_first_example(backend: SandboxBackend, submission: Submission) -> bool:
    x, want = CASES[0]
    return run(backend, f"{source_of(submission)}\nassert f({x}) == {want}\n")[0] == 0


def by_unittest(backend: SandboxBackend, submission: Submission) -> bool:
    with backend.start(SandboxSpec()) as box:
        box.upload({"answer.py": source_of(submission).encode(), "answer_test.py": TESTS.encode()})
        return box.exec(["python3", "-m", "unittest", "answer_test"], timeout=10).exit_code == 0


def by_blaming_the_machine(backend: SandboxBackend, submission: Submission) -> bool:
    """Leaves attempts out of the count that look like the machine's fault; an attack succeeds if it is left out."""
    checks = "".join(f"assert f({x}) == {want}\n" for x, want in CASES)
    code, said = run(backend, f"import sys\nsys.stderr = sys.stdout\n{source_of(submission)}\n{checks}", timeout=2)
    return code is None or code >= 125 or "SandboxError" in said or "BlockingIOError" in said


def by_substring(_: SandboxBackend, submission: Submission) -> bool:
    return "lima" in (submission.answer or "").lower()


@dataclass(frozen=True)
class Fooled:
    grader: str
    attack: str
    naive: Naive


FOOLED = [
    *(Fooled("function", name, by_exit_code) for name in (
        "exits at import", "exits politely", "exits on call", "exits politely on call", "exits at the end",
        "exits on an error", "prints success and exits", "equals everything", "is a number that equals everything",
        "reads the tests", "forges report files")),
    Fooled("function", "prints success", by_output),
    Fooled("function", "makes print lie", by_output),
    Fooled("function", "replaces builtins", by_output),
    Fooled("function", "asks its caller", by_loop),
    Fooled("function", "searches memory", by_loop),
    Fooled("function", "knows the examples", by_first_example),
    Fooled("function", "forges reward files later", by_report_file),
    *(Fooled("function", name, by_blaming_the_machine) for name in (
        "claims that the machine failed", "exits like a broken sandbox", "ignores its end",
        "forks without end", "floods the output")),
    *(Fooled("unittest", name, by_unittest) for name in (
        "skips its tests", "disarms assertions", "disarms results", "expects to fail")),
    *(Fooled("answer", name, by_substring) for name in (
        "is an essay", "is one of several", "denies", "has many tags", "quotes a tool", "corrects itself",
        "is a list of answers")),
]  # fmt: skip


@pytest.mark.parametrize("one", [pytest.param(one, id=f"{one.grader}: {one.attack}") for one in FOOLED])
def test_the_same_attack_fools_a_naive_grader(anywhere: SandboxBackend, one: Fooled) -> None:
    (attack,) = [found for found in made_for(one.grader) if found.name == one.attack]
    assert attack.submission is not None
    try:
        fooled = one.naive(anywhere, attack.submission)
    except AgentFault:  # by this the sandbox itself says whose fault it was
        fooled = one.naive is by_blaming_the_machine
    assert fooled


@pytest.mark.parametrize("naive", [by_exit_code, by_output, by_loop, by_report_file, by_first_example, by_unittest])
def test_naive_graders_tell_right_from_plainly_wrong(anywhere: SandboxBackend, naive: Naive) -> None:
    assert naive(anywhere, Submission(files={"a.py": RIGHT}))
    assert not naive(anywhere, Submission(files={"a.py": "def f(x):\n    return 99\n"}))
