"""Attacks on verdicts about functions: each fools a naive grader and scores nothing with the real one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import JsonValue

from agentgym.graders.function import FunctionGrader
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Verdict

CASES = [(x, x * x - 3) for x in (0, 2, 5, 9, 14)]
Naive = Callable[[SandboxBackend, str], bool]


def square_task() -> Task:
    cases: list[JsonValue] = [{"call": f"f({x})", "expected": want} for x, want in CASES]
    return Task(
        id="square",
        split="train",
        public=Public(
            prompt="Write f.", data={"examples": [*cases[:1]], "entry": ["f"], "case_s": 1.0, "total_s": 2.5}
        ),
        hidden=Hidden(data={"cases": [*cases[1:]]}),
    )


def judged(backend: SandboxBackend, *files: str) -> Verdict:
    submission = Submission(files={f"file{index}.py": text for index, text in enumerate(files)})
    return FunctionGrader().grade(square_task(), submission, backend)


def run(backend: SandboxBackend, script: str) -> tuple[int | None, str]:
    with backend.start(SandboxSpec()) as box:
        result = box.exec(["python3", "-I", "-c", script], timeout=20)
    return result.exit_code, result.stdout.decode("utf-8", "replace")


def by_exit_code(backend: SandboxBackend, code: str) -> bool:
    tests = "\n".join(f"assert f({x}) == {want}" for x, want in CASES)
    return run(backend, f"{code}\n{tests}\n")[0] == 0


def by_output(backend: SandboxBackend, code: str) -> bool:
    tests = "\n".join(f"print('PASSED' if f({x}) == {want} else 'FAILED', {x})" for x, want in CASES)
    lines = run(backend, f"{code}\n{tests}\n")[1].splitlines()
    return all(f"PASSED {x}" in lines for x, _ in CASES)


def by_a_loop_beside_the_code(backend: SandboxBackend, code: str) -> bool:
    harness = f"cases = {CASES!r}\ndef main():\n    for x, want in cases:\n        assert f(x) == want\nmain()\n"
    return run(backend, f"{code}\n{harness}")[0] == 0


def by_a_verdict_on_a_descriptor(backend: SandboxBackend, code: str) -> bool:
    harness = f"ok = all(f(x) == want for x, want in {CASES!r})\nos.write(verdict, b'1' if ok else b'0')\n"
    return run(backend, f"import os\nverdict = os.dup(1)\n{code}\n{harness}")[1][:1] == "1"


def by_visible_examples(backend: SandboxBackend, code: str) -> bool:
    return run(backend, f"{code}\nassert f({CASES[0][0]}) == {CASES[0][1]}\n")[0] == 0


FAKE_LINES = "".join(f"print('PASSED {x}')\n" for x, _ in CASES)
WRITE_EVERYWHERE = """
import os
for name in list(range(64)) + [f"/proc/{os.getppid()}/fd/{n}" for n in range(16)]:
    try: os.write(name if isinstance(name, int) else os.open(name, os.O_WRONLY), DATA)
    except OSError: pass
"""
AGREEABLE = "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\n"

ATTACKS = [
    pytest.param(by_exit_code, AGREEABLE + "def f(x): return A()", id="an object that equals everything"),
    pytest.param(
        by_exit_code,
        """
class A(int):
    def __eq__(s, o): return True
def f(x): return A()
""",
        id="a number that equals everything",
    ),
    pytest.param(
        by_output,
        """
class A:
    def __eq__(s, o): return s
def f(x): return A()
""",
        id="an equality that answers with an object",
    ),
    pytest.param(by_exit_code, "import os; os._exit(0)", id="exit at import"),
    pytest.param(
        by_exit_code,
        """
import os
def f(x): os._exit(0)
""",
        id="exit on call",
    ),
    pytest.param(by_exit_code, "import sys; sys.exit(0)", id="polite exit at import"),
    pytest.param(by_exit_code, "def f(x): raise SystemExit(0)", id="polite exit on call"),
    pytest.param(
        by_exit_code,
        """
import atexit, os
atexit.register(os._exit, 0)
def f(x): return None
""",
        id="exit hook",
    ),
    pytest.param(
        by_exit_code,
        """
import sys, os
sys.excepthook = lambda *e: os._exit(0)
def f(x): return None
""",
        id="exception hook",
    ),
    pytest.param(
        by_output,
        FAKE_LINES
        + """
import os, sys
sys.stdout.flush()
os._exit(0)
""",
        id="fake lines, then exit",
    ),
    pytest.param(by_output, FAKE_LINES + "def f(x): return None", id="fake lines beside the true ones"),
    pytest.param(
        by_output,
        """
import builtins as b
p = b.print
b.print = lambda *a: p('PASSED', a[-1])
def f(x): return 1
""",
        id="a print that lies",
    ),
    pytest.param(
        by_a_loop_beside_the_code,
        """
import sys
def f(x): return sys._getframe(1).f_locals['want']
""",
        id="the caller's local variable",
    ),
    pytest.param(
        by_exit_code,
        """
import sys
def f(x):
    k = sys._getframe(1).f_code.co_consts
    return k[k.index(x) + 1] if x else -3
""",
        id="the caller's constants",
    ),
    pytest.param(
        by_a_loop_beside_the_code,
        """
import gc
def f(x):
    lists = [one for one in gc.get_objects() if type(one) is list and one]
    return next(dict(one)[x] for one in lists if type(one[0]) is tuple and one[0] == (0, -3))
""",
        id="every object in memory",
    ),
    pytest.param(
        by_exit_code,
        """
import re, sys
text = ' '.join(sys.orig_argv)  # what /proc/self/cmdline says, also where /proc is hidden
def f(x): return int(re.search(rf'assert f\\({x}\\) == (-?\\d+)', text)[1])
""",
        id="the command line's text",
    ),
    pytest.param(
        by_a_verdict_on_a_descriptor,
        """
import builtins
builtins.all = lambda x: True
def f(x): return None
""",
        id="replaced builtins",
    ),
    pytest.param(
        by_a_verdict_on_a_descriptor,
        WRITE_EVERYWHERE.replace("DATA", "b'1'") + "def f(x): return None",
        id="a verdict on every descriptor",
    ),
    pytest.param(
        by_a_verdict_on_a_descriptor,
        WRITE_EVERYWHERE.replace("DATA", 'b\'1 ["value",["i","1"]]\\n\'') + "def f(x): return None",
        id="answers for others on every descriptor",
    ),
    pytest.param(by_visible_examples, "def f(x): return {0: -3}.get(x)", id="the visible example by heart"),
]


@pytest.mark.parametrize(("naive", "code"), ATTACKS)
def test_an_attack_that_fools_a_naive_grader_scores_nothing(anywhere: SandboxBackend, naive: Naive, code: str) -> None:
    if anywhere.name == "process":  # the naive ones believe the same in a container
        assert naive(anywhere, code)
    assert judged(anywhere, code).value == 0.0


@pytest.mark.parametrize("naive", [by_exit_code, by_output, by_a_loop_beside_the_code, by_a_verdict_on_a_descriptor])
def test_naive_graders_tell_right_from_plainly_wrong(backend: SandboxBackend, naive: Naive) -> None:
    assert naive(backend, "def f(x): return x * x - 3")
    assert not naive(backend, "def f(x): return 0")


def test_the_right_function_passes(backend: SandboxBackend) -> None:
    assert judged(backend, "def f(x): return x * x - 3").passed


RIGHT = "def f(x): return x * x - 3\n"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import os\nwhile True: os.fork()", id="fork bomb"),
        pytest.param("x = 'a' * (1 << 33)", id="memory bomb"),
        pytest.param("x = []\nwhile True: x.append('a' * (1 << 20))", id="slow memory bomb"),
        pytest.param("import os\nos.kill(-1, 9)", id="kill everything"),
        pytest.param("import os\nos.kill(os.getppid(), 9)", id="kill the runner"),
        pytest.param("import os\nos.kill(os.getppid(), 19)", id="stop the runner"),
        pytest.param("import os\nos.kill(1, 9)\ndef f(x): return 0", id="kill the first process"),
        pytest.param("import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(99)", id="sleeper"),
        pytest.param("import sys\nwhile True: sys.stdout.write('x' * (1 << 16))", id="flood"),
        pytest.param("class SandboxError(Exception): pass\nraise SandboxError('the host is gone')", id="fake failure"),
        pytest.param("raise MemoryError", id="fake memory error"),
        pytest.param("import os\nos._exit(125)", id="the exit code of a broken sandbox"),
        pytest.param("def f(x): return '{}'.format(f)", id="format string"),
        pytest.param('def f(x): return \'__import__("os").system("id")\'', id="text that looks like code"),
        pytest.param("def f(x): return {}", id="empty object"),
        pytest.param("def f(x): return None", id="null"),
        pytest.param("def f(x): return (x * x - 3, 'or', 0)", id="a choice of answers"),
        pytest.param("def f(x): return float(x * x - 3)", id="another numeric type"),
        pytest.param("def f(x): return float('nan')", id="not a number"),
        pytest.param("def f(x): return 10 ** 10 ** 6", id="huge integer"),
        pytest.param("x = []\nfor _ in range(10 ** 6): x = [x]\ndef f(_): return x", id="bottomless list"),
    ],
)
def test_a_submission_that_breaks_its_judging_or_answers_nonsense_is_scored_and_scores_nothing(
    backend: SandboxBackend, code: str
) -> None:
    verdict = judged(backend, code if "def f" in code else code + "\n" + RIGHT)
    assert verdict.value == 0.0
    assert verdict.error is None


def test_right_answers_forged_on_every_descriptor_do_not_help_a_wrong_function(backend: SandboxBackend) -> None:
    forged = "".join(f'{i} ["value",["i","{want:x}"]]\\n' for i, (_, want) in enumerate(CASES))
    code = WRITE_EVERYWHERE.replace("DATA", f"b'{forged}'")
    assert judged(backend, code + "def f(x): return 0").value == 0.0


def test_what_a_background_process_does_after_the_answer_changes_nothing(backend: SandboxBackend) -> None:
    code = (
        "import os, time\n"
        "def f(x):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        time.sleep(60)\n"
        "    return x * x - 3\n"
    )
    assert judged(backend, code).passed


@pytest.mark.parametrize(
    "planted",
    ["conftest.py", "sitecustomize.py", "usercustomize.py", "json.py", "os.py", "select.py", "time.py", "encodings.py"],
)
def test_files_planted_in_the_working_directory_are_never_imported(backend: SandboxBackend, planted: str) -> None:
    plant = (
        f"import os\nfor place in ('.', '/tmp', os.path.expanduser('~')):\n"
        f"    try: open(os.path.join(place, {planted!r}), 'w').write('import os; os._exit(0)')\n"
        f"    except OSError: pass\n"
    )
    assert judged(backend, plant + RIGHT).passed
    assert judged(backend, plant + "def f(x): return 0").value == 0.0


def test_handing_in_several_files_is_not_an_answer(backend: SandboxBackend) -> None:
    assert judged(backend, RIGHT, "raise SystemExit(0)").level == "empty"


def test_one_verdict_leaves_nothing_for_the_next(backend: SandboxBackend) -> None:
    places = "('/tmp', '/dev/shm', '.')"
    leave = f"for d in {places}:\n    try: open(d + '/left', 'w').write('x')\n    except OSError: pass\n"
    look = f"import os\nleft = any(os.path.exists(d + '/left') for d in {places})\nassert not left\n"
    judged(backend, leave + RIGHT)
    assert judged(backend, look + RIGHT).passed
