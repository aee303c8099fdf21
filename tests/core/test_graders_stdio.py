"""The stdio grader: programs of any language, run by run, compared by what they print."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from agentgym import registry
from agentgym.errors import SandboxError, UnknownNameError, VerifierError
from agentgym.graders import languages
from agentgym.graders.stdio import StdioGrader, judge
from agentgym.graders.stdio_cases import read_spec
from agentgym.graders.stdio_output import Output
from agentgym.graders.stdio_run import Ran
from agentgym.sandbox import ExecResult, SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.testing import CountingBackend
from agentgym.types import Submission, Trust, Verdict

TOKENS = {"mode": "tokens"}


@pytest.fixture(scope="module")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def task_of(cases: list[JsonValue], *, hidden: dict[str, JsonValue] | None = None, **public: Any) -> Task:
    shared = {"languages": ["python"], "output": TOKENS, "examples": cases[:1], **public}
    return Task(
        id="t",
        split="train",
        public=Public(prompt="write it", data=shared),
        hidden=Hidden(data={"cases": cases[1:], **(hidden or {})}),
    )


def sum_task(**public: Any) -> Task:
    return task_of([{"stdin": f"{a} {b}\n", "stdout": f"{a + b}\n"} for a, b in ((1, 2), (20, -5), (999, 4))], **public)


def judged(backend: SandboxBackend, task: Task, code: str, name: str = "main.py") -> Verdict:
    return StdioGrader().grade(task, Submission(files={name: code}), backend)


SUMS = {
    "python": "a, b = map(int, input().split())\nprint(a + b)",
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); }',
    "cpp": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a + b);",
    "bash": "read a b\necho $((a + b))",
    "perl": "my ($x, $y) = split ' ', <STDIN>; print $x + $y, qq(\\n);",
    "lua": "local a, b = io.read('n', 'n')\nprint(a + b)",
    "rust": "fn main() { let mut s = String::new(); std::io::stdin().read_line(&mut s).unwrap();"
    ' println!("{}", s.split_whitespace().map(|x| x.parse::<i64>().unwrap()).sum::<i64>()); }',
    "go": 'package main\nimport "fmt"\nfunc main() { var a, b int; fmt.Scan(&a, &b); fmt.Println(a + b) }',
}
PROGRAMS = {"python": "python3", "c": "gcc", "cpp": "g++", "javascript": "node", "lua": "lua5.4", "rust": "rustc"}


def needs(name: str) -> None:
    program = PROGRAMS.get(name, name)
    if shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip(f"{program} is not installed: apt-get install {languages.language(name).install}")


def test_a_program_is_known_for_every_language() -> None:
    assert set(SUMS) == set(languages.names())


@pytest.mark.parametrize("name", SUMS)
def test_in_every_language_the_right_program_passes_and_others_do_not(backend: SandboxBackend, name: str) -> None:
    needs(name)
    task, file = sum_task(languages=[name]), languages.language(name).file
    assert judged(backend, task, SUMS[name], file).passed
    wrong = judged(backend, task, SUMS[name].replace(" + ", " - ").replace(".sum::", ".product::"), file)
    assert (wrong.value, wrong.level) == (0.0, "failed")
    broken = judged(backend, task, "((( not a program {", file)
    assert (broken.value, broken.level) == (0.0, "broken")


@pytest.mark.parametrize("name", SUMS)
def test_the_harmless_program_of_every_language_proves_that_the_sandbox_works(
    backend: SandboxBackend, name: str
) -> None:
    needs(name)
    one = languages.language(name)
    copied = task_of([{"stdin": f"{x}\n", "stdout": f"{x}"} for x in "ab"], languages=[name])
    assert judged(backend, copied, one.control, one.file).passed


def test_a_verdict_tells_its_trust_and_its_parts(backend: SandboxBackend) -> None:
    verdict = judged(backend, sum_task(), "a, b = map(int, input().split())\nprint(a + b if b > 0 else 0)")
    assert (verdict.value, verdict.trust) == (0.0, Trust.RPC)
    assert verdict.components == {"passed": 2 / 3, "visible": 1.0}


def test_the_files_name_tells_the_language(backend: SandboxBackend) -> None:
    task = sum_task(languages=["python", "bash"])
    assert judged(backend, task, SUMS["python"], "sum.py").passed
    assert judged(backend, task, SUMS["bash"], "sum.sh").passed
    other = judged(backend, task, SUMS["python"], "sum.rb")
    assert (other.level, other.feedback) == ("empty", "wanted a file whose name ends in one of .py, .sh, found '.rb'")


def test_a_task_may_bring_its_own_language(backend: SandboxBackend) -> None:
    own = {"name": "awk", "install": "mawk", "file": "main.awk", "extension": ".awk", "run": "exec awk -f main.awk",
           "control": "{ print }"}  # fmt: skip
    assert judged(backend, sum_task(languages=[own]), "{ print $1 + $2 }", "main.awk").passed


@pytest.mark.parametrize(
    ("code", "level", "feedback"),
    [
        pytest.param(" \n", "empty", "wanted one source file, found 0", id="blank"),
        pytest.param("print(3)", "failed", "2 of 2 hidden cases fail", id="constant"),
        pytest.param(
            "print(4)", "failed", 'visible example 1: for "1 2\\n" it printed "4\\n", want "3\\n"', id="wrong"
        ),
        pytest.param("", "empty", "wanted one source file, found 0", id="nothing"),
        pytest.param("print(1 / 0)", "failed", "ZeroDivisionError: division by zero, want", id="raises"),
        pytest.param("while True: pass", "failed", "used more than 1 s of a processor", id="loops"),
        pytest.param("print('x' * (1 << 21))", "failed", "printed more than 1024 KB", id="floods"),
        pytest.param("x = 'a' * (1 << 33)", "failed", "MemoryError", id="eats memory"),
        pytest.param("print(input(), end='', flush=True); exit(3)", "failed", "ended with exit code 3", id="exit code"),
        pytest.param("x = '\ud800'", "broken", "the program does not build", id="lone surrogate"),
        pytest.param("a, b = map(int, input().split())\nif b == 4: while_", "failed", "", id="bad name"),
    ],
)
def test_every_way_to_fail_has_its_level_and_says_what_is_wrong(
    backend: SandboxBackend, code: str, level: str, feedback: str
) -> None:
    verdict = judged(backend, sum_task(cpu_s=1), code)
    assert (verdict.value, verdict.level) == (0.0, level)
    assert feedback in verdict.feedback


def test_a_hidden_case_that_crashes_is_told_as_a_crash_and_no_more(backend: SandboxBackend) -> None:
    code = "a, b = map(int, input().split())\nassert b == 2, f'I was asked {a} and {b}'\nprint(a + b)"
    assert judged(backend, sum_task(), code).feedback == "2 of 2 hidden cases fail (a crash)"


def test_all_runs_together_take_no_longer_than_the_task_allows(backend: SandboxBackend) -> None:
    verdict = judged(backend, sum_task(case_s=1.5, total_s=2.0), "import time; time.sleep(60)")
    assert verdict.components["passed"] == 0.0
    assert "took longer than 1.5 s" in verdict.feedback


def test_a_program_is_built_once_and_runs_every_case_in_a_sandbox_of_its_own(backend: SandboxBackend) -> None:
    counting = CountingBackend(backend)
    needs("c")
    assert judged(counting, sum_task(languages=["c"]), SUMS["c"], "main.c").passed
    assert (counting.started, counting.open_count) == (1 + 3, 0)


def test_a_case_may_have_arguments(backend: SandboxBackend) -> None:
    cases: list[JsonValue] = [{"args": [text], "stdout": text} for text in ("a", "it's $HOME; `id`")]
    task = task_of(cases, output={"mode": "exact"})
    assert judged(backend, task, "import sys\nprint(sys.argv[1], end='')").passed


@pytest.mark.parametrize(
    ("mode", "wanted", "found", "same"),
    [
        ({"mode": "exact"}, "a\n", "a\n", True),
        ({"mode": "exact"}, "a\n", "a", False),
        ({"mode": "trailing"}, "a\nb\n", "a  \nb\r\n\n\n", True),
        ({"mode": "trailing"}, "a\nb\n", "a\n\nb\n", False),
        ({"mode": "trailing"}, " a", "a", False),
        ({"mode": "tokens"}, "a b\nc", "a\nb c", True),
        ({"mode": "tokens"}, "1", "1.0", False),
        ({"mode": "tokens"}, "1 2", "12", False),
        ({"mode": "tokens"}, "1", "1 2", False),
        ({"mode": "tokens"}, "1 2", "2 1", False),
        ({"mode": "numbers", "abs_tol": 0.01}, "1.00 x", "1.005 x", True),
        ({"mode": "numbers", "abs_tol": 0.01}, "1.00 x", "1.02 x", False),
        ({"mode": "numbers", "abs_tol": 0.01}, "1.00 x", "1.00 y", False),
        ({"mode": "numbers", "rel_tol": 0.01}, "1000", "1.009e3", True),
        ({"mode": "numbers", "rel_tol": 0.01}, "1000", "nan", False),
        ({"mode": "numbers", "rel_tol": 0.01}, "1000", "inf", False),
        ({"mode": "numbers", "rel_tol": 0.01}, "inf", "1e999", False),
        ({"mode": "numbers", "rel_tol": 0.0}, "0.3", "0.30", True),
        ({"mode": "numbers", "rel_tol": 0.0}, "0.3", "0.30000000000000000001", False),
        ({"mode": "numbers", "abs_tol": 1}, "1 2", "1", False),
    ],
)
def test_outputs_are_compared_as_the_task_declares(mode: dict[str, Any], wanted: str, found: str, same: bool) -> None:
    assert Output.model_validate(mode).same(wanted.encode(), found.encode()) is same


@given(st.binary(max_size=60), st.sampled_from(["exact", "trailing", "tokens", "numbers"]))
def test_an_output_is_the_same_as_itself_in_every_mode(text: bytes, mode: str) -> None:
    assert Output.model_validate({"mode": mode, **({"abs_tol": 0.0} if mode == "numbers" else {})}).same(text, text)


@pytest.mark.parametrize("given", [{"mode": "numbers"}, {"mode": "tokens", "abs_tol": 0.1}, {"mode": "Tokens"}, {}])
def test_a_comparison_that_would_ignore_a_setting_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Output.model_validate(given)


CASE: JsonValue = {"stdin": "1", "stdout": "1"}


@pytest.mark.parametrize(
    ("public", "hidden", "sentence"),
    [
        pytest.param({"output": None}, {}, "found neither", id="no comparison"),
        pytest.param({}, {"checker": "def check(*x): return True"}, "found both", id="two comparisons"),
        pytest.param({}, {"cases": []}, "no hidden cases", id="no hidden cases"),
        pytest.param({}, {"case": []}, "found 'case'", id="a typo"),
        pytest.param({"languages": ["pythom"]}, {}, "did you mean 'python'", id="unknown language"),
        pytest.param({"languages": []}, {}, "languages", id="no language"),
        pytest.param({"languages": ["c", "c"]}, {}, "two languages claim the extension '.c'", id="twice"),
        pytest.param({"languages": [{"name": "x"}]}, {}, "described wrongly: install", id="half a language"),
        pytest.param({"examples": []}, {"cases": [{"stdout": " \n"}]}, "does nothing would pass", id="nothing wanted"),
        pytest.param({"cpu_s": 0.5}, {}, "cpu_s", id="half a second"),
        pytest.param({}, {"cases": [{"stdin": "1"}]}, "stdout", id="no output"),
    ],
)
def test_a_malformed_task_is_refused_in_one_sentence(
    public: dict[str, Any], hidden: dict[str, JsonValue], sentence: str
) -> None:
    task = task_of([CASE, CASE], hidden=hidden, **public)
    with pytest.raises(VerifierError, match="the program task 't' is malformed") as refusal:
        StdioGrader().check(task)
    assert sentence in str(refusal.value)


def test_an_unknown_language_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'javascript'"):
        languages.language("javascrpt")


# ---------------------------------------------------------------------------------------------------------- checkers

DIVISOR = """
def check(stdin, wanted, found):
    number, divisor = int(stdin), int(found)
    return 1 < divisor < number and number % divisor == 0
"""


def divisor_task(checker: str = DIVISOR) -> Task:
    cases: list[JsonValue] = [{"stdin": f"{x}", "stdout": f"{y}"} for x, y in ((12, 4), (35, 7), (1001, 13))]
    return task_of(cases, hidden={"checker": checker}, output=None)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("n = int(input())\nprint(next(d for d in range(2, n) if n % d == 0))", 1.0),
        ("print(2)", 0.0),
        ("print('no number')", 0.0),
        ("print()", 0.0),
        ("print('9' * 100_000)", 0.0),
    ],
)
def test_a_checker_decides_where_many_outputs_are_right(backend: SandboxBackend, code: str, value: float) -> None:
    assert judged(backend, divisor_task(), code).value == value


@pytest.mark.parametrize(
    ("checker", "sentence"),
    [
        pytest.param("def check(a, b, c): return tru", "NameError", id="undefined name"),
        pytest.param("def check(a, b, c): return 1", "returned int, wanted True or False", id="not a bool"),
        pytest.param("def check(a, b, c) return True", "SyntaxError", id="syntax"),
        pytest.param("def chek(a, b, c): return True", "no function check", id="other name"),
        pytest.param("def check(a, b, c): return True", "accepts an empty output", id="always agrees"),
        pytest.param("def check(a, b, c): return False", "refuses a case's own output", id="never agrees"),
    ],
)
def test_a_checker_that_does_not_know_its_own_cases_is_the_tasks_fault(
    backend: SandboxBackend, checker: str, sentence: str
) -> None:
    with pytest.raises(VerifierError, match=sentence):
        judged(backend, divisor_task(checker), "print(2)")


def test_the_checker_runs_where_the_submission_never_was(backend: SandboxBackend) -> None:
    spoiled = "open('/tmp/left', 'w').write('x')\nopen('left', 'w').write('x')\nprint(2)"
    checker = "import os\nclean = not os.path.exists('/tmp/left') and not os.path.exists('left')\n" + DIVISOR
    task = task_of([{"stdin": f"{x}", "stdout": "2"} for x in (12, 14)], output=None,
                   hidden={"checker": checker.replace("return", "return clean and")})  # fmt: skip
    assert judged(backend, task, spoiled).passed


# -------------------------------------------------------------------------------------- whose fault, and what is told


class Silent:
    """A sandbox in which nothing answers, as on a machine that lacks the compiler."""

    name = "silent"
    capabilities: frozenset[Any] = frozenset()
    id, workdir = "silent", "/"

    def start(self, spec: SandboxSpec) -> Any:
        return self

    def exec(self, command: Any, **options: Any) -> ExecResult:
        return ExecResult(exit_code=127, stdout=b"", stderr=b"gcc: not found")

    def write(self, path: str, data: bytes) -> None:
        return None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def test_a_sandbox_without_the_compiler_voids_the_verdict_and_says_what_to_install() -> None:
    with pytest.raises(SandboxError, match=r"harmless c program .* needs gcc libc6-dev: gcc: not found"):
        judged(Silent(), sum_task(languages=["c"]), SUMS["c"], "main.c")  # type: ignore[arg-type]


class Forgetful(Silent):
    """Compiles, and then cannot run anything."""

    def exec(self, command: Any, **options: Any) -> ExecResult:
        code = 127 if "ulimit" in command else 0
        return ExecResult(exit_code=code, stdout=b"", stderr=b"python3: not found")

    def download(self, path: str, **limits: int) -> dict[str, bytes]:
        return {}

    def upload(self, files: Any) -> None:
        return None


def test_a_sandbox_in_which_nothing_runs_voids_the_verdict() -> None:
    with pytest.raises(SandboxError, match=r"harmless python program .* ended with exit code 127: python3: not found"):
        judged(Forgetful(), sum_task(), SUMS["python"])  # type: ignore[arg-type]


def test_the_preview_runs_the_visible_examples_in_the_agents_sandbox(backend: SandboxBackend) -> None:
    public = sum_task().public
    with backend.start(SandboxSpec()) as box:
        right = StdioGrader().preview(public, SUMS["python"], box)
        assert (right.passed, right.total, right.compiles, right.text) == (1, 1, True, "ok")
        wrong = StdioGrader().preview(public, "print(7)", box)
        assert wrong.text == 'visible example 1: for "1 2\\n" it printed "7\\n", want "3\\n"'
        assert not StdioGrader().preview(public, "print(", box).compiles


SECRET = st.text("ΑΒΓΔΕΖΗΘ", min_size=3, max_size=6)
ENDS = st.sampled_from(["ok", "exit", "cpu", "clock", "memory", "flood", "unrun"])


@given(st.lists(st.tuples(SECRET, SECRET, ENDS, st.booleans()), min_size=1, max_size=5), st.booleans())
def test_no_hidden_input_or_output_appears_in_the_feedback(
    hidden: list[tuple[str, str, Any, bool]], visible_passes: bool
) -> None:
    cases: list[JsonValue] = [{"stdin": "shown", "stdout": "seen"}]
    cases += [{"stdin": given, "stdout": wanted} for given, wanted, _, _ in hidden]
    spec = read_spec(task_of(cases))
    # The worst submission: it prints and says on its error stream all that it was given.
    runs = [Ran("ok", b"seen" if visible_passes else b"other")]
    runs += [Ran(end, given.encode(), f"ended with exit code 1: {given}") for given, _, end, _ in hidden]
    verdict = judge(spec, runs, [visible_passes, *(good for *_, good in hidden)])
    told = verdict.feedback + repr(verdict.components)
    assert not any(text in told for given, wanted, *_ in hidden for text in (given, wanted))
    assert verdict.passed or verdict.feedback
