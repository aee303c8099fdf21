"""Attacks on test files: each fools `python3 -m unittest` beside the code, and scores nothing with the real grader."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from agentgym.graders.twins import trials
from agentgym.graders.unittests import UnittestGrader
from agentgym.sandbox import ExecResult, SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Trust, Verdict

RIGHT = "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return [x, x * x]\n"
TESTS = """
import unittest
from answer import f

class FTest(unittest.TestCase):
    def test_small(self):
        self.assertEqual(f(3), [3, 9])

    def test_zero(self):
        expected = [0, 0]
        self.assertEqual(f(0), expected)

    def test_large(self):
        self.assertTrue(f(9)[1] > 80)
        self.assertEqual(f(9)[1], 81)

    def test_negative(self):
        with self.assertRaises(ValueError) as caught:
            f(-1)
        self.assertEqual(str(caught.exception), "negative")

if __name__ == "__main__":
    unittest.main()
"""
IDS = ("test_small", "test_zero", "test_large", "test_negative")
Naive = Callable[[SandboxBackend, str], bool]


def judged(backend: SandboxBackend, code: str, tests: str = TESTS) -> Verdict:
    task = Task(
        id="square",
        split="train",
        public=Public(prompt="Write f.", data={"file": "answer.py", "case_s": 2.0, "total_s": 20.0}),
        hidden=Hidden(data={"tests": {"answer_test.py": tests}}),
    )
    return UnittestGrader().grade(task, Submission(files={"answer.py": code}), backend)


def unittest_in(backend: SandboxBackend, code: str) -> ExecResult:
    with backend.start(SandboxSpec()) as box:
        box.upload({"answer.py": code.encode(), "answer_test.py": TESTS.encode()})
        return box.exec(["python3", "-m", "unittest", "-v", "answer_test"], timeout=20)


def by_exit_code(backend: SandboxBackend, code: str) -> bool:
    return unittest_in(backend, code).exit_code == 0


def by_log(backend: SandboxBackend, code: str) -> bool:
    lines = unittest_in(backend, code).output.splitlines()
    return all(any(line.startswith(one) and line.endswith("ok") for line in lines) for one in IDS)


FAKE_LOG = "".join(f"print('{one} (answer_test.FTest.{one}) ... ok')\n" for one in IDS)
PATCH_CASES = "import unittest\nC = unittest.TestCase\n"
NOTHING = "\ndef f(x): return None\n"
FORGE = """
import os
def f(x):
    for fd in range(64):
        for data in (b'P', (1).to_bytes(8, 'big') + b'P', b'ok'):
            try: os.write(fd, data)
            except OSError: pass
    os._exit(0)
"""

ATTACKS = [
    pytest.param(by_exit_code, "import os; os._exit(0)", id="exit at import"),
    pytest.param(by_exit_code, "raise SystemExit(0)", id="polite exit at import"),
    pytest.param(
        by_exit_code,
        """
import os
def f(x): os._exit(0)
""",
        id="exit on call",
    ),
    pytest.param(
        by_exit_code,
        """
import atexit, os
atexit.register(os._exit, 0)
"""
        + NOTHING,
        id="exit hook",
    ),
    pytest.param(
        by_exit_code,
        """
import unittest
def f(x): raise unittest.SkipTest('no')
""",
        id="skip from inside the code",
    ),
    pytest.param(
        by_log,
        FAKE_LOG
        + """
import os, sys
sys.stdout.flush()
os._exit(0)
""",
        id="fake log, then exit",
    ),
    pytest.param(by_log, FAKE_LOG + "" + NOTHING, id="fake log beside the true one"),
    pytest.param(
        by_exit_code,
        """
import unittest
C = unittest.TestCase
for n in dir(C):
    if n.startswith('assert') and n != 'assertRaises': setattr(C, n, lambda *a, **k: None)
C.assertRaises = lambda s, e: unittest.mock.MagicMock()
import unittest.mock
f = lambda x: [0, 0]
""",
        id="assertions that never fail",
    ),
    pytest.param(
        by_exit_code,
        """
import unittest
C = unittest.TestCase
C.failureException = C._testMethodName = None
import os
C.run = lambda self, result=None: result
"""
        + NOTHING,
        id="a failure that no one catches",
    ),
    pytest.param(
        by_exit_code,
        """
import unittest
R = unittest.TestResult
T = unittest.TextTestResult
for k in (R, T):
    k.addFailure = k.addError = lambda self, *a: None
"""
        + NOTHING,
        id="results that record nothing",
    ),
    pytest.param(
        by_log,
        """
import unittest
T = unittest.TextTestResult
T.addFailure = T.addError = lambda self, test, error: self.addSuccess(test)
"""
        + NOTHING,
        id="failures turned into successes",
    ),
    pytest.param(
        by_exit_code,
        """
import unittest
unittest.TestSuite.run = lambda self, result, debug=False: result
"""
        + NOTHING,
        id="a suite that is empty",
    ),
    pytest.param(
        by_exit_code,
        """
import unittest
unittest.TestLoader.getTestCaseNames = lambda self, c: []
"""
        + NOTHING,
        id="a loader that finds nothing",
    ),
    pytest.param(
        by_exit_code,
        """
import unittest, sys
def f(x):
    t = sys._getframe(1).f_locals['self']
    t.__class__.__unittest_expecting_failure__ = True
    type(t).__dict__[t._testMethodName].__unittest_expecting_failure__ = True
run = unittest.TestCase.run
def mark(self, result=None):
    getattr(type(self), self._testMethodName).__unittest_expecting_failure__ = True
    return run(self, result)
unittest.TestCase.run = mark
""",
        id="expected failures",
    ),
    pytest.param(
        by_exit_code,
        """
class A:
    def __eq__(s, o): return True
    def __getitem__(s, i): return s
    def __gt__(s, o): return True
    def __str__(s): return 'negative'
def f(x):
    if x < 0: raise ValueError('negative')
    return A()
""",
        id="an object that equals everything",
    ),
    pytest.param(
        by_exit_code,
        """
import sys, ast
def f(x):
    if x < 0: raise ValueError('negative')
    g = sys._getframe(1)
    if 'expected' in g.f_locals: return g.f_locals['expected']
    k = [c for c in g.f_code.co_consts if c is not None and c != x]
    t = [c for c in k if type(c) is tuple]
    return list(t[0]) if t else ([x, 81] if 81 in k else [x, *[c for c in k if type(c) is int][-1:]])
""",
        id="the expected value from the caller",
    ),
    pytest.param(by_exit_code, FORGE, id="a verdict on every descriptor"),
    pytest.param(
        by_exit_code,
        """
import sys, types
u = sys.modules['unittest']
u.TestCase.__call__ = lambda self, result=None: result
"""
        + NOTHING,
        id="a planted framework",
    ),
]


@pytest.mark.parametrize(("naive", "code"), ATTACKS)
def test_an_attack_that_fools_a_naive_grader_scores_nothing(anywhere: SandboxBackend, naive: Naive, code: str) -> None:
    if anywhere.name == "process":  # the naive ones believe the same in a container
        assert naive(anywhere, code)
    assert judged(anywhere, code).value == 0.0


@pytest.mark.parametrize("naive", [by_exit_code, by_log])
def test_naive_graders_tell_right_from_plainly_wrong(backend: SandboxBackend, naive: Naive) -> None:
    assert naive(backend, RIGHT)
    assert not naive(backend, "def f(x): return [x, 1]")


def test_the_right_module_passes_and_its_trust_is_that_of_twins(backend: SandboxBackend) -> None:
    verdict = judged(backend, RIGHT)
    assert (verdict.value, verdict.trust) == (1.0, Trust.TWINS)


def test_a_test_without_an_expected_value_lowers_the_trust_and_still_counts(backend: SandboxBackend) -> None:
    head = "import unittest\nfrom answer import f\nclass T(unittest.TestCase):\n"
    tests = head + "    def test_f(self):\n        g = f(2)\n        self.assertGreater(g[1], 3)\n"
    right = judged(backend, RIGHT, tests)
    assert (right.value, right.trust) == (1.0, Trust.SEPARATE)
    assert judged(backend, "import unittest\nunittest.TestCase.run = lambda s, r: None", tests).value == 0.0
    assert (
        judged(backend, "import unittest\nunittest.TestCase.fail = lambda *a: None\nf = lambda x: [0, 0]", tests).value
        == 0.0
    )


PEEK = """
import os
def opens():
    for pid in [p for p in os.listdir('/proc') if p.isdigit() and p not in ('1', str(os.getpid()))]:
        for way in ('mem', 'fd', 'environ', 'map_files'):
            try:
                path = f'/proc/{pid}/{way}'
                (os.listdir if way in ('fd', 'map_files') else open)(path)
                return True
            except OSError:
                pass
    return False
"""


def test_a_worker_cannot_open_the_judge_or_the_nursery(backend: SandboxBackend) -> None:
    guarded = PEEK + RIGHT.replace("    if x < 0", "    if opens(): return None\n    if x < 0")
    assert judged(backend, guarded).passed


@pytest.mark.parametrize(
    "planted", ["conftest.py", "pytest.ini", "sitecustomize.py", "unittest.py", "tests.py", "json.py"]
)
def test_files_planted_by_the_code_are_never_read(backend: SandboxBackend, planted: str) -> None:
    plant = f"for d in ('.', '/tmp'):\n    open(d + '/{planted}', 'w').write('import os; os._exit(0)')\n"
    assert judged(backend, plant + RIGHT).passed
    assert judged(backend, plant + NOTHING).value == 0.0


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import os\nwhile True: os.fork()", id="fork bomb"),
        pytest.param("x = 'a' * (1 << 33)", id="memory bomb"),
        pytest.param("import os\nos.kill(-1, 9)", id="kill everything"),
        pytest.param("import os\nos.kill(os.getppid(), 9)", id="kill the nursery"),
        pytest.param("while True: pass", id="loop"),
    ],
)
def test_code_that_breaks_its_judging_is_scored_and_scores_nothing(backend: SandboxBackend, code: str) -> None:
    assert judged(backend, f"{code}\n{RIGHT}").value == 0.0


def test_a_twin_differs_from_its_test_in_a_few_characters_only() -> None:
    planned = trials(TESTS, random.Random(5))
    sources = {one.id: one.source for one in planned if one.must_pass}
    assert len(sources) == len(IDS)
    for twin in (one for one in planned if not one.must_pass):
        changed = [a for a, b in zip(twin.source.splitlines(), sources[twin.id].splitlines(), strict=True) if a != b]
        assert len(changed) == 1
