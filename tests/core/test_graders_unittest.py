"""The unittest grader: every test of the file is accounted for, and its twins must fail."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from pydantic import JsonValue

from agentgym import registry
from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.twins import tests_of as ids_of
from agentgym.graders.twins import trials
from agentgym.graders.unittests import UnittestGrader
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Verdict

HEAD = "import unittest\nfrom answer import f\n\nclass FTest(unittest.TestCase):\n"
DOUBLE = HEAD + "    def test_two(self):\n        self.assertEqual(f(2), 4)\n"


@pytest.fixture(scope="module")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def judged(backend: SandboxBackend, tests: str, code: str = "def f(x): return 2 * x") -> Verdict:
    task = Task(
        id="double",
        split="train",
        public=Public(prompt="Write f.", data={"file": "answer.py", "case_s": 1.0, "total_s": 8.0}),
        hidden=Hidden(data={"tests": {"answer_test.py": tests}}),
    )
    return UnittestGrader().grade(task, Submission(files={"answer.py": code}), backend)


def test_the_expected_tests_are_read_from_the_file_without_running_it() -> None:
    source = (
        "import unittest\nraise RuntimeError\n"
        "class Base(unittest.TestCase):\n    def test_a(self): pass\n    def helper(self): pass\n"
        "class Child(Base):\n    def test_b(self): pass\n"
        "class Other:\n    def test_c(self): pass\n"
    )
    assert ids_of(source) == [("Base", "test_a"), ("Child", "test_a"), ("Child", "test_b")]


@pytest.mark.parametrize(
    ("code", "level"),
    [
        ("def f(x): return 2 * x", "passed"),
        ("def f(x): return x", "failed"),
        ("def f(x): return", "failed"),
        ("def f(x)", "broken"),
        ("import nothing_of_that_name", "broken"),
        ("", "empty"),
    ],
)
def test_every_way_to_end_has_its_level(backend: SandboxBackend, code: str, level: str) -> None:
    verdict = judged(backend, DOUBLE, code)
    assert (verdict.level, verdict.value) == (level, float(level == "passed"))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("    @unittest.skip('no')\n    def test_x(self): pass\n", id="skipped"),
        pytest.param("    @unittest.expectedFailure\n    def test_x(self): self.fail()\n", id="expected failure"),
        pytest.param("    @unittest.expectedFailure\n    def test_x(self): pass\n", id="unexpected success"),
        pytest.param("    def test_x(self): self.skipTest('no')\n", id="skips itself"),
        pytest.param("    def setUp(self): raise ValueError\n    def test_x(self): pass\n", id="broken set-up"),
        pytest.param("    def tearDown(self): raise ValueError\n    def test_x(self): pass\n", id="broken tear-down"),
        pytest.param("    def test_x(self):\n        with self.subTest(1): self.fail()\n", id="failed sub-test"),
        pytest.param("    def test_x(self):\n        while True: pass\n", id="endless"),
    ],
)
def test_a_test_that_does_not_plainly_pass_is_a_failure(backend: SandboxBackend, body: str) -> None:
    assert judged(backend, HEAD + body).value == 0.0


def test_fixtures_of_the_class_and_the_module_run(backend: SandboxBackend) -> None:
    tests = (
        "import unittest\nfrom answer import f\nready = []\ndef setUpModule(): ready.append(1)\n"
        "class FTest(unittest.TestCase):\n    @classmethod\n    def setUpClass(cls): ready.append(2)\n"
        "    def setUp(self): self.x = 3\n    def test_f(self): self.assertEqual(f(self.x), 6)\n"
        "    def test_ready(self): self.assertEqual(ready, [1, 2])\n"
    )
    assert judged(backend, tests).passed


def test_a_file_without_tests_is_the_tasks_fault(backend: SandboxBackend) -> None:
    with pytest.raises(VerifierError, match="no test methods"):
        judged(backend, "x = 1")


def test_feedback_counts_hidden_failures_and_quotes_nothing(backend: SandboxBackend) -> None:
    assert judged(backend, DOUBLE, "def f(x): return x").feedback == "1 of 1 hidden tests fail"


def test_the_preview_quotes_the_first_visible_failure(backend: SandboxBackend) -> None:
    public = Public(prompt="Write f.", data={"file": "answer.py", "visible": {"answer_test.py": DOUBLE}})
    with backend.start(SandboxSpec()) as box:
        wrong = UnittestGrader().preview(public, "def f(x): return x", box)
        broken = UnittestGrader().preview(public, "def f(x)", box)
    assert (wrong.text, wrong.compiles) == ("test_two: AssertionError: 2 != 4", True)
    assert (broken.text[:19], broken.compiles) == ("error: SyntaxError:", False)


VALUES = ["1", "2.5", "'word'", "''", "b'x'", "[]", "[1, [2]]", "(3,)", "{4}", "set()", "{'a': [1]}", "{}", "None"]


@pytest.mark.parametrize("value", [*VALUES, "date(2020, 1, 31)"])
@pytest.mark.parametrize(
    "form", ["self.assertEqual(f(), {})", "self.assertEqual({}, f())", "x = {}\n        same(f(), x)"]
)
def test_every_twin_contradicts_its_test(value: str, form: str) -> None:
    head = "import unittest\nfrom datetime import date\nclass T(unittest.TestCase):\n    def test_f(self):\n        "
    source = head + form.format(value).replace("same", "self.assertEqual") + "\n"
    for seed in range(8):
        planned = trials(source, random.Random(seed))
        (true,) = (one for one in planned if one.must_pass)
        twins = [one for one in planned if not one.must_pass]
        assert len(twins) >= 3
        assert all(one.by_value and one.source != true.source for one in twins)


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        ("self.assertTrue(f())", "value"),
        ("self.assertIsNone(f())", "value"),
        ("self.assertIs(f(), True)", "value"),
        ("self.assertAlmostEqual(f(), 1.5)", "value"),
        ("self.assertAlmostEqual(f(), 1.5, delta=9)", "canary"),
        ("self.assertGreater(f(), 3)", "canary"),
        ("data = [1]\n        self.assertEqual(f(data), data)", "canary"),
        ("for x in range(3):\n            self.assertEqual(f(x), 1)", "canary"),
    ],
)
def test_only_conditions_that_a_passing_test_has_reached_are_contradicted(test: str, kind: str) -> None:
    source = f"import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        {test}\n"
    twins = [one for one in trials(source, random.Random(1)) if not one.must_pass]
    assert {one.by_value for one in twins} == {kind == "value"}


def test_two_tests_of_one_name_are_the_tasks_fault(backend: SandboxBackend) -> None:
    data: dict[str, JsonValue] = {"tests": {"one_test.py": DOUBLE, "two_test.py": DOUBLE}}
    task = Task(id="t", split="train", public=Public(prompt="p", data={"file": "answer.py"}), hidden=Hidden(data=data))
    with pytest.raises(VerifierError, match="same class and method"):
        UnittestGrader().grade(task, Submission(answer="def f(x): return 2 * x"), backend)


def test_a_wrong_answer_that_a_twin_expects_is_wrong_and_not_an_attack(backend: SandboxBackend) -> None:
    tests = HEAD + "    def test_zero(self):\n        self.assertTrue(f(0))\n"
    verdict = judged(backend, tests, "def f(x): return 0")
    assert (verdict.value, verdict.feedback) == (0.0, "1 of 1 hidden tests fail")
