"""The function grader: exact values out of process, and whose fault a missing answer is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from agentgym import registry
from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.cases import Case
from agentgym.graders.function import FunctionGrader
from agentgym.graders.values import Comparison, MalformedError, encode, encode_literal, parse, show
from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Trust, Verdict


@pytest.fixture(scope="module")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def task_of(cases: list[JsonValue], **shared: Any) -> Task:
    return Task(
        id="t",
        split="train",
        public=Public(prompt="write f", data={"examples": cases[:1], **shared}),
        hidden=Hidden(data={"cases": cases[1:] or cases}),
    )


def judged(backend: SandboxBackend, task: Task, code: str) -> Verdict:
    return FunctionGrader().grade(task, Submission(files={"solution.py": code}), backend)


def doubling(**shared: Any) -> Task:
    return task_of([{"call": f"f({x})", "expected": 2 * x} for x in (1, 5, 70)], **shared)


def returning(literal: str, **shared: Any) -> Task:
    return task_of([{"call": "f()", "literal": literal}], **shared)


def test_a_right_function_passes_with_the_highest_trust(backend: SandboxBackend) -> None:
    verdict = judged(backend, doubling(entry=["f"]), "def f(x): return 2 * x")
    assert (verdict.value, verdict.level, verdict.trust) == (1.0, "passed", Trust.RPC)
    assert verdict.components == {"passed": 1.0, "visible": 1.0}


@pytest.mark.parametrize(
    ("code", "level"),
    [
        pytest.param(" \n", "empty", id="blank"),
        pytest.param("def f(x) return 2 * x", "broken", id="syntax error"),
        pytest.param("def g(x): return 2 * x", "broken", id="another name"),
        pytest.param("import nothing_of_that_name", "broken", id="import error"),
        pytest.param("def f(x): return x", "failed", id="wrong"),
        pytest.param("def f(x): return 2 if x == 1 else 0", "failed", id="right on the visible example only"),
        pytest.param("def f(x): raise ValueError(x)", "failed", id="raises"),
        pytest.param("def f(x): return lambda: 2 * x", "failed", id="not data"),
        pytest.param("x = '\ud800'\ndef f(x): return 1", "broken", id="lone surrogate"),
        pytest.param("def f(x): return 1\0", "broken", id="NUL"),
        pytest.param("(" * 5000, "broken", id="nested beyond the parser"),
    ],
)
def test_every_way_to_fail_has_its_level_and_scores_nothing(backend: SandboxBackend, code: str, level: str) -> None:
    verdict = judged(backend, doubling(entry=["f"]), code)
    assert (verdict.value, verdict.level) == (0.0, level)


@pytest.mark.parametrize(
    "literal",
    [
        *("None", "True", "-7", "2.5", "nan", "-inf", "1+2j", f"{10**300}", "'é\\ud800'", "b'\\x00'", "[1, [2]]"),
        *("(1,)", "{1, 2}", "set()", "frozenset({3})", "{'a': {1: (None,)}}"),
    ],
)
def test_every_kind_of_plain_data_survives_the_way_out(backend: SandboxBackend, literal: str) -> None:
    code = f"inf, nan = float('inf'), float('nan')\ndef f(): return {literal}"
    assert judged(backend, returning(literal), code).passed


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("1", "True"), ("1", "1.0"), ("True", "1"), ("[1]", "(1,)"), ("{1}", "[1]"), ("{1}", "frozenset({1})"),
        ("'a'", "b'a'"), ("None", "0"), ("0", "None"), ("{}", "None"), ("[]", "{}"), ("nan", "0.0"), ("1", "10**400"),
        ("{'a': 1}", "__import__('collections').Counter('a')"), ("''", "None"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_another_value(backend: SandboxBackend, wanted: str, found: str) -> None:
    assert judged(backend, returning(wanted), f"def f(): return {found}").value == 0.0


def test_the_modes_of_comparison_loosen_step_by_step() -> None:
    exact, number, python = Comparison(), Comparison(mode="number"), Comparison(mode="python")
    pairs = [(1, 1.0), (1, True), ({1}, frozenset({1}))]
    found = [[one.same(encode(a), encode(b)) for a, b in pairs] for one in (exact, number, python)]
    assert found == [[False, False, False], [True, False, False], [True, True, True]]


def test_tolerance_reaches_into_containers_and_leaves_other_data_exact() -> None:
    near = Comparison(abs_tol=0.01)
    assert near.same(encode({"a": [1.0, "x"]}), encode({"a": [1.005, "x"]}))
    assert not near.same(encode({"a": [1.0, "x"]}), encode({"a": [1.005, "y"]}))
    assert not near.same(encode(1.0), encode(1.02))
    assert not near.same(encode(1.0), encode(10**400))
    assert near.same(encode(math.nan), encode(math.nan))


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(DATA)
def test_every_value_is_the_same_as_itself_in_every_mode(value: object) -> None:
    tree = encode(value)
    assert all(Comparison(mode=mode).same(tree, tree) for mode in ("exact", "number", "python"))
    assert show(tree)


@given(st.text(max_size=40) | st.recursive(st.integers() | st.text(max_size=2), st.lists, max_leaves=6).map(str))
def test_whatever_comes_out_of_a_sandbox_is_a_reply_or_malformed(text: str) -> None:
    try:
        kind, _ = parse(text.encode("utf-8", "surrogatepass"))
    except MalformedError:
        return
    assert kind in {"value", "broken", "raised", "data", "syntax", "timeout", "died"}


def test_set_and_dictionary_order_do_not_matter() -> None:
    assert Comparison().same(encode_literal("{'a': 1, 'b': 2}"), encode_literal("{'b': 2, 'a': 1}"))
    assert Comparison().same(encode_literal("{1, 'a', (2,)}"), encode_literal("{(2,), 1, 'a'}"))


def test_conditions_are_evaluated_where_the_submission_never_was(backend: SandboxBackend) -> None:
    task = task_of([{"call": "f()", "check": "sorted(_) == [1, 2]"}])
    assert judged(backend, task, "def f(): return {2, 1}").passed
    assert not judged(backend, task, "import builtins\nbuiltins.sorted = lambda x: [1, 2]\ndef f(): return 0").passed


def test_a_malformed_condition_is_the_tasks_fault(backend: SandboxBackend) -> None:
    with pytest.raises(VerifierError, match="sortd"):
        judged(backend, task_of([{"call": "f()", "check": "sortd(_)"}]), "def f(): return 1")


def test_a_task_without_hidden_cases_is_refused(backend: SandboxBackend) -> None:
    task = Task(id="t", split="train", public=Public(prompt="p", data={"examples": [{"call": "f()", "expected": 1}]}))
    with pytest.raises(VerifierError, match="no hidden cases"):
        judged(backend, task, "def f(): return 1")


@pytest.mark.parametrize("extra", [{}, {"expected": 1, "check": "_"}, {"literal": "f(1)"}], ids=str)
def test_a_case_has_exactly_one_condition(extra: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Case.model_validate({"call": "f()", **extra})


def test_state_does_not_leak_from_one_case_to_the_next(backend: SandboxBackend) -> None:
    task = task_of([{"call": "f()", "expected": 1}] * 3)
    assert judged(backend, task, "seen = []\ndef f():\n    seen.append(1)\n    return len(seen)").passed


def test_a_looping_case_costs_only_its_own_time(backend: SandboxBackend) -> None:
    task = doubling(case_s=0.5)
    verdict = judged(backend, task, "def f(x):\n    while x == 5: pass\n    return 2 * x")
    assert (verdict.value, verdict.components["passed"]) == (0.0, 2 / 3)


def test_feedback_quotes_visible_examples_and_never_hidden_ones(backend: SandboxBackend) -> None:
    wrong = judged(backend, doubling(), "def f(x): return x")
    hidden = judged(backend, doubling(), "def f(x): return 2 if x == 1 else x")
    assert wrong.feedback == "the visible example f(1) fails: want 2"
    assert hidden.feedback == "2 of 2 hidden cases fail"


def test_feedback_carries_nothing_that_running_code_found_in_memory(backend: SandboxBackend) -> None:
    spy = "import sys\ncall = sys._getframe(2).f_locals['call']\nraise ValueError('I was asked ' + call)"
    verdict = judged(backend, doubling(entry=["f"]), spy)
    assert (verdict.level, "asked" in verdict.feedback) == ("broken", False)


class Silent:
    """A sandbox in which nothing answers, as on a machine that is broken."""

    name = "silent"
    capabilities: frozenset[Any] = frozenset()
    id, workdir = "silent", "/"

    def start(self, spec: SandboxSpec) -> Any:
        return self

    def exec(self, command: Any, **options: Any) -> ExecResult:
        return ExecResult(exit_code=127, stdout=b"", stderr=b"python3: not found")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def test_a_sandbox_in_which_nothing_answers_voids_the_verdict_instead_of_failing_the_agent() -> None:
    with pytest.raises(SandboxError, match="harmless"):
        FunctionGrader().grade(doubling(), Submission(answer="def f(x): return 2 * x"), Silent())  # type: ignore[arg-type]


def test_the_preview_tells_the_first_visible_failure(backend: SandboxBackend) -> None:
    box: Sandbox
    with backend.start(SandboxSpec()) as box:
        grader = FunctionGrader()
        public = doubling(entry=["f"]).public
        assert grader.preview(public, "def f(x): return 2 * x", box).text == "ok"
        assert grader.preview(public, "def f(x): return 'no'", box).text == "f(1): got 'no', want 2"
        assert grader.preview(public, "def f(x): return 1 / 0", box).text.startswith("f(1): line 1: ZeroDivisionError")
        broken = grader.preview(public, "def f(x)", box)
        assert (broken.compiles, broken.text) == (False, "error: line 1: SyntaxError: expected ':'")
