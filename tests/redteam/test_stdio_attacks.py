"""Attacks on verdicts about programs: each fools a naive grader and scores nothing with the real one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import JsonValue

from agentgym.graders.stdio import StdioGrader
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Verdict

CASES = [(x, x * x - 3) for x in (0, 2, 5, 9, 14)]
RIGHT = "x = int(input())\nprint(x * x - 3)\n"
Naive = Callable[[SandboxBackend, str], bool]


def square_task(language: str = "python", **hidden: JsonValue) -> Task:
    cases: list[JsonValue] = [{"stdin": f"{x}\n", "stdout": f"{want}\n"} for x, want in CASES]
    data: dict[str, JsonValue] = {"languages": [language], "examples": [*cases[:1]], "cpu_s": 1, "total_s": 4.0}
    if "checker" not in hidden:
        data["output"] = {"mode": "tokens"}
    return Task(
        id="square",
        split="train",
        public=Public(prompt="Print x * x - 3.", data=data),
        hidden=Hidden(data={"cases": [*cases[1:]], **hidden}),
    )


def judged(backend: SandboxBackend, code: str, language: str = "python", **hidden: JsonValue) -> Verdict:
    return StdioGrader().grade(square_task(language, **hidden), Submission(files={"main": code}), backend)


# ------------------------------------------------------------------------------------------------------ naive graders


def by_tests_beside_the_code(backend: SandboxBackend, code: str) -> bool:
    """Lays inputs, expected outputs and a script that compares them beside the submission, and believes the script."""
    script = (
        "import subprocess, sys\n"
        "i = sys.argv[1]\n"
        "found = subprocess.run([sys.executable, 'main.py'], stdin=open(i + '.in'), stdout=-1).stdout\n"
        "print('PASSED' if found.split() == open(i + '.out', 'rb').read().split() else 'FAILED')\n"
    )
    with backend.start(SandboxSpec()) as box:
        for index, (x, want) in enumerate(CASES):
            box.write(f"{index}.in", f"{x}\n".encode())
            box.write(f"{index}.out", f"{want}\n".encode())
        box.write("main.py", code.encode())
        box.write("compare.py", script.encode())
        outputs = [box.exec(["python3", "compare.py", str(index)]).output for index in range(len(CASES))]
        return all("PASSED" in one for one in outputs)


def by_one_sandbox_for_all(backend: SandboxBackend, code: str) -> bool:
    """Compares on the host, but runs every case, and every program, in the same sandbox."""
    with backend.start(SandboxSpec()) as box:
        box.write("main.py", code.encode())
        box.write("reference.py", RIGHT.encode())
        for x, _ in CASES:
            wanted = box.exec("python3 reference.py", stdin=f"{x}\n".encode()).stdout
            if box.exec("python3 main.py", stdin=f"{x}\n".encode()).stdout.split() != wanted.split():
                return False
    return True


def by_substring(backend: SandboxBackend, code: str) -> bool:
    """Looks for the expected output anywhere in what was printed."""
    with backend.start(SandboxSpec()) as box:
        box.write("main.py", code.encode())
        return all(str(want) in box.exec("python3 main.py", stdin=f"{x}\n".encode()).output for x, want in CASES)


def by_visible_examples(backend: SandboxBackend, code: str) -> bool:
    with backend.start(SandboxSpec()) as box:
        box.write("main.py", code.encode())
        x, want = CASES[0]
        return box.exec("python3 main.py", stdin=f"{x}\n".encode()).stdout.split() == [str(want).encode()]


def by_a_checker_beside_the_code(backend: SandboxBackend, code: str) -> bool:
    """Runs the special checker in the submission's sandbox, after the submission."""
    with backend.start(SandboxSpec()) as box:
        box.write("main.py", code.encode())
        for x, want in CASES:
            printed = box.exec("python3 main.py", stdin=f"{x}\n".encode()).stdout.decode("utf-8", "replace")
            program = f"import fractions\nprint(fractions.Fraction({printed.strip()!r}) == {want})"
            if box.exec(["python3", "-c", program]).stdout.strip() != b"True":
                return False
    return True


def by_evaluation(backend: SandboxBackend, code: str) -> bool:
    """Evaluates what was printed as a Python expression, to be generous about its form."""
    del backend
    printed = code.partition("'''")[2].partition("'''")[0]
    return all(eval(printed, scope) == want for x, want in CASES for scope in [{"x": x, "want": want}])


# ------------------------------------------------------------------------------------------------------------ attacks

READ_THE_EXPECTED = """
import glob
x = input()
for name in glob.glob('*.in') or glob.glob('/*/*.in'):
    if open(name).read().strip() == x:
        print(open(name[:-2] + 'out').read())
"""
REPLACE_THE_COMPARISON = "open('compare.py', 'w').write('print(\"PASSED\")')\nprint(-3)  # the visible example\n"
PATCH_EXPECTATIONS = """
import glob
for name in glob.glob('*.out'):
    open(name, 'w').write('7')
print(7)
"""
USE_THE_REFERENCE = "exec(open('reference.py').read())"
REPLACE_THE_REFERENCE = "open('reference.py', 'w').write('print(7)')\nprint(-3 if input() == '0' else 7)\n"
ALL_NUMBERS = "print(*range(-3, 200))"
SHADOW_MODULE = """
open('fractions.py', 'w').write('class Fraction:\\n def __init__(s, x): pass\\n def __eq__(s, o): return True')
print(7)
"""
KEEP_STATE = """
import os
seen = int(open('/tmp/count').read()) if os.path.exists('/tmp/count') else 0
open('/tmp/count', 'w').write(str(seen + 1))
print([-3, 1, 22, 78, 193][seen])
"""

ATTACKS = [
    pytest.param(by_tests_beside_the_code, READ_THE_EXPECTED, id="reads the expected outputs"),
    pytest.param(by_tests_beside_the_code, REPLACE_THE_COMPARISON, id="replaces the comparing script"),
    pytest.param(by_tests_beside_the_code, PATCH_EXPECTATIONS, id="rewrites the expected outputs"),
    pytest.param(by_one_sandbox_for_all, USE_THE_REFERENCE, id="calls the reference"),
    pytest.param(by_one_sandbox_for_all, REPLACE_THE_REFERENCE, id="replaces the reference"),
    pytest.param(by_one_sandbox_for_all, KEEP_STATE, id="counts the cases it has seen"),
    pytest.param(by_substring, ALL_NUMBERS, id="prints every number"),
    pytest.param(by_visible_examples, "print(-3)", id="the visible example by heart"),
    pytest.param(by_a_checker_beside_the_code, SHADOW_MODULE, id="a module that shadows the checker's"),
    pytest.param(by_evaluation, "print('''want''')", id="output that is evaluated beside the answer"),
    pytest.param(by_evaluation, "print('''x * x - 3''')", id="output that is an expression"),
    pytest.param(by_evaluation, "print('''type('A', (), {'__eq__': lambda *a: True})()''')", id="output that agrees"),
]


@pytest.mark.parametrize(("naive", "code"), ATTACKS)
def test_an_attack_that_fools_a_naive_grader_scores_nothing(backend: SandboxBackend, naive: Naive, code: str) -> None:
    assert naive(backend, code)
    verdict = judged(backend, code)
    assert (verdict.value, verdict.error) == (0.0, None)


@pytest.mark.parametrize(
    "naive",
    [by_tests_beside_the_code, by_one_sandbox_for_all, by_substring, by_a_checker_beside_the_code],
)
def test_naive_graders_tell_right_from_plainly_wrong(backend: SandboxBackend, naive: Naive) -> None:
    assert naive(backend, RIGHT)
    assert not naive(backend, "print(7)")


def test_the_right_program_passes(backend: SandboxBackend) -> None:
    assert judged(backend, RIGHT).passed


# ----------------------------------------------------------------------------------------- what breaks its own judging


@pytest.mark.parametrize(
    ("language", "code"),
    [
        pytest.param("python", "import os\nwhile True: os.fork()", id="fork bomb"),
        pytest.param("bash", ":() { : | : & }; :", id="shell fork bomb"),
        pytest.param("python", "x = []\nwhile True: x.append('a' * (1 << 20))", id="memory bomb"),
        pytest.param("python", "import os\nos.kill(-1, 9)", id="kills everything"),
        pytest.param("python", "import os\nos.kill(os.getppid(), 9)", id="kills its parent"),
        pytest.param("python", "import os\nos.kill(1, 9)", id="kills the first process"),
        pytest.param("python", "import os, time\nos.kill(os.getppid(), 19)\ntime.sleep(60)", id="stops its parent"),
        pytest.param("bash", "trap '' TERM INT; sleep 60", id="ignores signals"),
        pytest.param("bash", "setsid nohup sleep 60 & exit 0", id="leaves a child"),
        pytest.param("bash", "yes", id="flood"),
        pytest.param("python", "print('1' * (1 << 30))", id="one long line"),
        pytest.param("python", r"import sys; sys.stdout.buffer.write(b'\x00\xff\x1b[2K\r-3\n')", id="forged terminal"),
        pytest.param("python", "raise SystemError('SandboxError: the host is gone')", id="fake failure"),
        pytest.param("python", "import os\nos._exit(125)", id="the exit code of a broken sandbox"),
        pytest.param("python", "import os\nos._exit(127)", id="the exit code of a missing program"),
        pytest.param("python", "import os\nos._exit(0)", id="exits at once"),
        pytest.param("python", "print('nan')", id="not a number"),
        pytest.param("python", "print('{}'.format(RIGHT))", id="format string"),
        pytest.param("python", "pass", id="does nothing"),
        pytest.param("bash", "rm -rf /workspace/* /tmp/* 2>/dev/null; chmod 000 .; exit 0", id="removes everything"),
        pytest.param("c", '#include "/dev/zero"\nint main() {}', id="endless include"),
        pytest.param("c", '#include "/proc/self/environ"\nint main() {}', id="includes the environment"),
        pytest.param("c", "char x[1 << 30] = {1}; int main() { return 0; }", id="huge program"),
        pytest.param("cpp", "template<int N> struct A { A<N+1> a; }; A<0> a; int main() {}", id="endless template"),
        pytest.param("perl", "BEGIN { kill 9, -1; }", id="kills the build"),
        pytest.param("perl", "BEGIN { for (1..9000) { open F, '>', \"f$_\"; } }", id="leaves many files"),
        pytest.param("perl", "BEGIN { open F, '>', 'big'; seek F, 900000000, 0; print F 'x'; }", id="leaves much"),
        pytest.param("perl", "BEGIN { open F, '>', \"a\\n\\xff\"; print F 'x'; }", id="leaves a file of an odd name"),
        pytest.param("perl", "BEGIN { unlink 'main.pl'; system('mkfifo', 'main.pl'); }", id="becomes a pipe"),
        pytest.param("perl", "BEGIN { chmod 0, '.'; }", id="locks its folder"),
        pytest.param("perl", "BEGIN { unlink 'main.pl'; symlink '/etc/passwd', 'main.pl' }", id="becomes a link"),
    ],
)
def test_a_program_that_breaks_its_judging_is_scored_and_scores_nothing(
    backend: SandboxBackend, language: str, code: str
) -> None:
    verdict = judged(backend, code, language)
    assert (verdict.value, verdict.error) == (0.0, None)


def test_a_run_holds_its_own_input_and_nothing_else_of_the_task(backend: SandboxBackend) -> None:
    """The program prints everything that it can read; the visible example's feedback shows what that was."""
    look = (
        "import os, sys\n"
        "found = sys.stdin.read() + repr(sys.argv) + repr(dict(os.environ))\n"
        "for top in ('.', '/tmp', '/dev/shm', os.path.expanduser('~')):\n"
        "    for folder, _, names in os.walk(top):\n"
        "        for name in names:\n"
        "            if name != 'main.py': found += name + open(os.path.join(folder, name), errors='replace').read()\n"
        "for pid in filter(str.isdigit, os.listdir('/proc') if os.path.isdir('/proc') else []):\n"
        "    for part in ('cmdline', 'environ'):\n"
        "        try: found += open(f'/proc/{pid}/{part}', errors='replace').read()\n"
        "        except OSError: pass\n"
        "wanted = ['MARK-IN-1', 'MARK-OUT-0', 'MARK-OUT-1', 'checker']\n"
        "assert not any(w in found for w in wanted), found\n"
        "assert 'MARK-IN-0' in found\n"
        "print('clean')\n"
    )
    cases: list[JsonValue] = [{"stdin": f"MARK-IN-{i}", "stdout": f"MARK-OUT-{i}"} for i in range(2)]
    task = Task(
        id="t",
        split="train",
        public=Public(prompt="p", data={"languages": ["python"], "examples": cases[:1], "output": {"mode": "exact"}}),
        hidden=Hidden(data={"cases": cases[1:]}),
    )
    verdict = StdioGrader().grade(task, Submission(files={"main.py": look}), backend)
    assert json.dumps("clean\n") in verdict.feedback


def test_what_an_output_says_is_data_for_the_checker_too(backend: SandboxBackend) -> None:
    checker = "def check(stdin, wanted, found):\n    return found.split() == wanted.split()\n"
    for text in (
        "'), True) #",
        "\\x00",
        "{wanted}",
        "__import__('os').system('id')",
        "1\n" * 20,
    ):
        assert judged(backend, f"print({text!r})", checker=checker).value == 0.0
    assert judged(backend, RIGHT, checker=checker).passed


def test_one_verdict_leaves_nothing_for_the_next(backend: SandboxBackend) -> None:
    leave = (
        "for d in ('/tmp', '/dev/shm', '.'):\n    try: open(d + '/left', 'w').write('x')\n    except OSError: pass\n"
    )
    look = "import os\nassert not any(os.path.exists(d + '/left') for d in ('/tmp', '/dev/shm', '.'))\n"
    assert judged(backend, leave + RIGHT).passed
    assert judged(backend, look + leave + RIGHT).passed


def test_handing_in_several_programs_is_not_an_answer(backend: SandboxBackend) -> None:
    submission = Submission(files={"a.py": RIGHT, "b.py": "print(7)"})
    assert StdioGrader().grade(square_task(), submission, backend).level == "empty"
