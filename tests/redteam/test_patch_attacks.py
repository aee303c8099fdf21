"""Attacks by the shape of a submission: each gets past a naive way to apply it, and is refused."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from agentgym.graders.pytest_ids import PytestGrader
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission

BASE = {"calc.py": "def add(a, b):\n    return a - b\n", "big.txt": "x" * 200_000 + "\n"}
TEST = "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
TASK = Task(
    id="calc",
    split="train",
    public=Public(prompt="Mend add.", files=BASE),
    hidden=Hidden(data={"fail_to_pass": ["tests/test_add.py::test_add"], "tests": {"tests/test_add.py": TEST}}),
)
WRITER = """
import pathlib, re, sys
name, lines = None, []
def flush():
    if name:
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_text("\\n".join(lines) + "\\n")
for line in sys.stdin.read().split("\\n"):
    if line.startswith("+++ "):
        flush()
        name, lines = re.sub("^b/", "", line[4:]), []
    elif line[:1] == "+":
        lines.append(line[1:])
flush()
"""


@pytest.fixture
def backend(anywhere: SandboxBackend) -> SandboxBackend:
    return anywhere


def by_git(box: Sandbox, diff: str) -> None:
    box.exec("git init -q; git apply --unidiff-zero /tmp/the.diff", cwd=f"{box.workdir}/r", timeout=20)


def by_writer(box: Sandbox, diff: str) -> None:
    box.exec(["python3", "-c", WRITER], cwd=f"{box.workdir}/r", stdin=diff.encode(), timeout=20)


def created(name: str, text: str = "pwned", mode: str = "100644") -> str:
    head = f"diff --git a/{name} b/{name}\nnew file mode {mode}\n"
    return f"{head}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+{text}\n"


LINK = created("tests", "/tmp", "120000").removesuffix("\n") + "\n\\ No newline at end of file\n"
COPIES = "".join(
    f"diff --git a/big.txt b/c{i}\nsimilarity index 100%\ncopy from big.txt\ncopy to c{i}\n" for i in range(700)
)
GITLINK = "diff --git a/sub b/sub\nnew file mode 160000\n--- /dev/null\n+++ b/sub\n@@ -0,0 +1 @@\n+Subproject commit "
HOOK = created("x/../.git/hooks/post-commit")
Way = Callable[[Sandbox, str], None]

DIFFS = [
    pytest.param(by_writer, created("../out"), "test -e ../out", id="40 a climbing name"),
    pytest.param(by_writer, created("/tmp/out").replace("b//", "/"), "test -e /tmp/out", id="40 an absolute name"),
    pytest.param(by_writer, created("a/../../out"), "test -e ../out", id="40 a name that climbs on its way"),
    pytest.param(by_writer, created(".git/config"), "grep pwned .git/config", id="32 git's own settings"),
    pytest.param(by_writer, HOOK, "test -e .git/hooks/post-commit", id="32 git's own hooks, on a detour"),
    pytest.param(by_git, LINK, "test -L tests", id="40 a link where the tests belong"),
    pytest.param(by_git, GITLINK + "1" * 40 + "\n", "test -d sub", id="40 a submodule"),
    pytest.param(by_git, COPIES, "test -e c699", id="40 copies without end"),
]


@pytest.mark.parametrize(("way", "diff", "sign"), DIFFS)
def test_a_diff_that_gets_past_a_naive_way_is_refused(backend: SandboxBackend, way: Way, diff: str, sign: str) -> None:
    with backend.start(SandboxSpec()) as box:
        box.upload({f"r/{name}": text.encode() for name, text in BASE.items()} | {"/tmp/the.diff": diff.encode()})
        way(box, diff)
        assert box.exec(sign, cwd=f"{box.workdir}/r").ok
    verdict = PytestGrader().grade(TASK, Submission(data={"diff": diff}), backend)
    assert (verdict.value, verdict.level) == (0.0, "malformed")


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/../../out", ".git/config", "a/.GIT/config", "a//b", "./a", ""]
)
def test_files_of_such_names_are_refused_as_well(backend: SandboxBackend, name: str) -> None:
    for submission in (Submission(files={name: "x"}), Submission(files={"y": ""}, data={"deleted": [name]})):
        verdict = PytestGrader().grade(TASK, submission, backend)
        assert (verdict.value, verdict.level) == (0.0, "malformed")


def test_a_file_at_the_place_of_the_tests_folder_gives_way(backend: SandboxBackend) -> None:
    right = {"calc.py": BASE["calc.py"].replace("-", "+")}
    for planted in ({"tests": "x"}, {"tests/test_add.py/x": "x"}):
        assert PytestGrader().grade(TASK, Submission(files={**right, **planted}), backend).passed


def test_what_is_laid_down_for_judging_has_plain_modes(backend: SandboxBackend) -> None:
    with backend.start(SandboxSpec()) as box:
        box.upload({"f": b"x"})
        mode = int(box.exec(["python3", "-c", "import os; print(os.stat('f').st_mode)"]).stdout)
    assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH)
