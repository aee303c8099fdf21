"""The answer grader: one answer of the declared kind, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import UnknownNameError, VerifierError
from agentgym.graders.answer import AnswerGrader
from agentgym.graders.answer_number import number
from agentgym.graders.answer_text import normalised, plain, token_f1
from agentgym.recipe import Recipe
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.types import Submission, Trust, Verdict

NO_SANDBOX: Any = None
"""Nothing is run, so there is nowhere to run it: a grader that starts a sandbox fails."""


def task_of(**data: Any) -> Task:
    return Task(id="t", split="train", public=Public(prompt="?"), hidden=Hidden(data=data))


def judged(text: str | None, **data: Any) -> Verdict:
    return AnswerGrader().grade(task_of(**data), Submission(answer=text), NO_SANDBOX)


EXACT = {"kind": "exact", "golds": ["New York", "NYC"]}
NORMALISED = {"kind": "normalised", "golds": ["The Eiffel Tower"]}
F1 = {"kind": "f1", "golds": ["the quick brown fox"], "threshold": 0.8}
NUMERIC = {"kind": "numeric", "gold": "1250", "rel_tol": 0.01}
LENGTH = {"kind": "numeric", "gold": 2.5, "abs_tol": 0.001, "units": {"m": 1, "km": 1000, "cm": "1/100"}, "bare": False}
PRICE = {"kind": "numeric", "gold": "19.99", "abs_tol": 0, "units": {"$": 1, "¢": "0.01"}, "bare": True}
SET = {"kind": "set", "gold": ["red", "Green"], "separator": ",", "items": "normalised"}
LIST = {"kind": "list", "gold": ["a", "b", "a"], "separator": ";", "items": "plain"}
JSON = {"kind": "set", "gold": ["1", "x, y"], "separator": "json", "items": "plain"}
CHOICE = {"kind": "choice", "choices": {"A": "Paris", "B": "Rome", "C": "Both A and B"}, "gold": "B"}

RIGHT: Sequence[tuple[dict[str, Any], str]] = [
    (EXACT, " New  York\n"), (EXACT, "NYC"), (EXACT, "\uff2e\uff39\uff23"),
    (NORMALISED, "eiffel tower!"), (NORMALISED, "The Eiffel, Tower"),
    (F1, "quick brown fox"), (F1, "a quick brown fox"),
    (NUMERIC, "1250"), (NUMERIC, "1,250"), (NUMERIC, "1.25e3"), (NUMERIC, "1.26 x 10^3"), (NUMERIC, "2500/2"),
    (NUMERIC, "+1238.0"), (NUMERIC, r"1.25 \times 10^{3}"), (NUMERIC, "1250."),
    (LENGTH, "2.5 m"), (LENGTH, "250cm."), (LENGTH, ".0025 km"),
    (PRICE, "$19.99"), (PRICE, "1999 ¢"), (PRICE, "19.99"),
    (SET, "green, RED"), (SET, "red,green,red"), (LIST, "a; b ;a"), (JSON, '["x, y", 1]'),
    (CHOICE, "B"), (CHOICE, "(b)"), (CHOICE, "b)"), (CHOICE, "B."), (CHOICE, "B. Rome"), (CHOICE, "rome"),
    (CHOICE, "(B) Rome."),
]  # fmt: skip

FAILED: Sequence[tuple[dict[str, Any], str]] = [
    (EXACT, "new york"), (EXACT, "New York City"), (NORMALISED, "eiffel towers"), (NORMALISED, "the"),
    (F1, "slow brown fox"), (F1, "fox"),
    (NUMERIC, "1263"), (NUMERIC, "-1250"), (NUMERIC, "0"),
    (LENGTH, "2.5 km"), (LENGTH, "2.502 m"), (PRICE, "19.990001"), (PRICE, "19.99 ¢"),
    (SET, "red"), (SET, "red, green, blue"), (SET, ",red,green"), (LIST, "a;b"), (LIST, "a;a;b"), (LIST, "a;b;a;"),
    (JSON, "[1]"), (JSON, "[]"), (CHOICE, "A"), (CHOICE, "Both A and B"),
]  # fmt: skip

MALFORMED: Sequence[tuple[dict[str, Any], str]] = [
    (NUMERIC, "about 1250"), (NUMERIC, "1250 or 3"), (NUMERIC, "12.50.0"), (NUMERIC, "1250 1250"), (NUMERIC, "12,50"),
    (NUMERIC, "1250 m"), (NUMERIC, "x = 1250"), (NUMERIC, "twelve"), (NUMERIC, "1_250"), (NUMERIC, "0x4e2"),
    (NUMERIC, "1250/0"), (NUMERIC, "True"), (NUMERIC, "--1250"),
    (LENGTH, "2.5"), (LENGTH, "2.5 M"), (LENGTH, "2.5 miles"), (LENGTH, "2.5 m or 3 m"), (PRICE, "$19.99 $"),
    (JSON, "1"), (JSON, '{"a": 1}'), (JSON, "[NaN]"), (JSON, "[true]"), (JSON, "[[1]]"), (JSON, "[" * 9999),
    (CHOICE, "A or B"), (CHOICE, "A, B"), (CHOICE, "AB"), (CHOICE, "B. Paris"), (CHOICE, "The answer is B"),
    (CHOICE, "not A"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "text"), RIGHT, ids=str)
def test_right_answers_pass_however_they_may_be_written(spec: dict[str, Any], text: str) -> None:
    verdict = judged(text, **spec)
    assert (verdict.level, verdict.trust) == (("partial" if verdict.value != 1.0 else "passed"), Trust.RPC)
    assert verdict.value is not None
    assert verdict.value > 0.8 if spec is F1 else verdict.value == 1.0


@pytest.mark.parametrize(("spec", "text"), FAILED, ids=str)
def test_wrong_answers_score_nothing(spec: dict[str, Any], text: str) -> None:
    verdict = judged(text, **spec)
    assert (verdict.value, verdict.level) == (0.0, "failed")


@pytest.mark.parametrize(("spec", "text"), MALFORMED, ids=lambda one: str(one)[:60])
def test_what_is_not_one_answer_of_the_kind_scores_nothing_and_is_told_so(spec: dict[str, Any], text: str) -> None:
    verdict = judged(text, **spec)
    assert (verdict.value, verdict.level) == (0.0, "malformed")
    assert "wanted" in verdict.feedback or "it " in verdict.feedback


@pytest.mark.parametrize("spec", [EXACT, NORMALISED, F1, NUMERIC, LENGTH, SET, LIST, JSON, CHOICE], ids=str)
@pytest.mark.parametrize("text", [None, "", " \n\t", "\u00a0\u2003"])
def test_nothing_is_never_an_answer(spec: dict[str, Any], text: str | None) -> None:
    assert (judged(text, **spec).value, judged(text, **spec).level) == (0.0, "empty")


def test_partial_credit_is_the_f1_above_its_threshold() -> None:
    assert token_f1("the quick brown fox", "quick brown foxes") == pytest.approx(2 / 3)
    assert judged("quick brown fox jumps", **F1).value == pytest.approx(6 / 7)
    assert judged("quick brown fox jumps high", **F1).value == 0.0


# ---------------------------------------------------------------------------------------------- where the answer stands


@pytest.mark.parametrize(
    ("where", "text", "level"),
    [
        ("tag", "I think <answer>NYC</answer>, yes", "passed"),
        ("tag", "<answer>NYC</answer> so <answer> NYC </answer>", "passed"),
        ("tag", "<answer>NYC</answer><answer>Rome</answer>", "malformed"),
        ("tag", "NYC", "malformed"),
        ("tag", "<answer></answer>", "empty"),
        ("tag", "<answer>NYC", "malformed"),
        ("boxed", r"so \boxed{NYC}.", "passed"),
        ("boxed", r"\boxed{NYC} \boxed{Rome}", "malformed"),
        ("boxed", r"\boxed{NYC", "malformed"),
        ("boxed", r"\boxed{}", "empty"),
        ("whole", "<answer>NYC</answer>", "failed"),
    ],
)
def test_the_answer_stands_where_the_task_says_and_is_one(where: str, text: str, level: str) -> None:
    assert judged(text, **EXACT, where=where).level == level


# ---------------------------------------------------------------------------------------------------------- mathematics


@pytest.fixture(scope="module")
def math_verify() -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")


@pytest.mark.usefixtures("math_verify")
@pytest.mark.parametrize(
    ("gold", "text", "value"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\frac{1}{2}", "$1/2$", 1.0),
        (r"\frac{1}{2}", "0.51", 0.0),
        (r"\sqrt{2}", "2^{1/2}", 1.0),
        ("x^2-1", "(x-1)(x+1)", 1.0),
        ("x^2-1", "(x-1)(x+2)", 0.0),
        (r"2\sin x\cos x", r"\sin 2x", 1.0),
        ("3", "x = 3", 1.0),
        ("1000", "1,000", 1.0),
        (r"\{1, 2\}", "2, 1", 1.0),
        (r"\{1, 2\}", "1, 2, 3", 0.0),
        ("(1, 2)", "(2, 1)", 0.0),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1.0),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\4&3\end{pmatrix}", 0.0),
    ],
)
def test_expressions_that_mean_the_same_are_the_same(gold: str, text: str, value: float) -> None:
    assert judged(text, kind="math", gold=gold).value == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 or 3", "it names several answers"),
        (r"3 \lor 4", "it names several answers"),
        ("1, 3", "found several"),
        ("x = 1 = 3", "found several"),
        ("the sum is 3", "it holds words"),
        ("{3", "its braces do not match"),
        (r"so $3$", "more than the expression itself"),
        ("3" * 401, "longer than 400"),
    ],
)
def test_what_is_not_one_expression_is_not_even_read(text: str, problem: str) -> None:
    verdict = judged(text, kind="math", gold="3")
    assert (verdict.value, verdict.level) == (0.0, "malformed")
    assert problem in verdict.feedback


@pytest.mark.usefixtures("math_verify")
def test_expressions_are_compared_from_many_threads_at_once() -> None:
    found: list[float | None] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(judged(f"{n}/2", kind="math", gold="2").value))
        for n in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(one for one in found if one is not None) == [0.0] * 7 + [1.0]


@pytest.mark.usefixtures("math_verify")
@pytest.mark.parametrize("gold", [r"\frac{1", "the sum", "", "1 or 2", r"\foo{}"])
def test_a_gold_that_is_not_one_expression_is_the_tasks_fault(gold: str) -> None:
    with pytest.raises(VerifierError, match="gold"):
        judged("1", kind="math", gold=gold)


# ----------------------------------------------------------------------------------------------- what tasks may not say


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "kind"),
        ({"kind": "exat", "golds": ["a"]}, "exat"),
        ({"kind": "exact", "golds": []}, "golds"),
        ({"kind": "exact", "golds": [" "]}, "an empty answer would match it"),
        ({"kind": "exact", "gold": "a", "golds": ["a"]}, "gold: Extra inputs"),
        ({"kind": "normalised", "golds": ["The"]}, "'The' is empty once it is normalised"),
        ({"kind": "normalised", "golds": ["ok", "?!"]}, "'?!' is empty"),
        ({"kind": "f1", "golds": ["an"], "threshold": 0.9}, "empty"),
        ({"kind": "f1", "golds": ["x y"], "threshold": 0.5}, "threshold"),
        ({"kind": "f1", "golds": ["x y"]}, "threshold"),
        ({"kind": "numeric", "gold": 1}, "rel_tol or abs_tol"),
        ({"kind": "numeric", "gold": "nan", "abs_tol": 0}, "finite number"),
        ({"kind": "numeric", "gold": float("inf"), "abs_tol": 0}, "finite number"),
        ({"kind": "numeric", "gold": "5 m", "abs_tol": 0}, "without a unit"),
        ({"kind": "numeric", "gold": True, "abs_tol": 0}, "gold"),
        ({"kind": "numeric", "gold": 1, "abs_tol": float("nan")}, "abs_tol"),
        ({"kind": "numeric", "gold": 1, "abs_tol": -1}, "abs_tol"),
        ({"kind": "numeric", "gold": 1, "abs_tol": 0, "units": {"m": 1}}, "bare: true or false"),
        ({"kind": "numeric", "gold": 1, "abs_tol": 0, "bare": True}, "only beside units"),
        ({"kind": "numeric", "gold": 1, "abs_tol": 0, "bare": True, "units": {"m": 0}}, "positive factor"),
        ({"kind": "numeric", "gold": 1, "abs_tol": 0, "bare": True, "units": {"m2": 1}}, "without digits"),
        ({"kind": "set", "gold": ["red", "Red"], "separator": ",", "items": "normalised"}, "are the same"),
        ({"kind": "set", "gold": ["a,b"], "separator": ",", "items": "plain"}, "contains the separator"),
        ({"kind": "set", "gold": ["a"], "separator": ","}, "items"),
        ({"kind": "list", "gold": ["the"], "separator": ",", "items": "normalised"}, "empty"),
        ({"kind": "choice", "choices": {"A": "x", "B": "y"}, "gold": "C"}, "none of the choices"),
        ({"kind": "choice", "choices": {"A": "x", "B": "X"}, "gold": "A"}, "told apart"),
        ({"kind": "choice", "choices": {"A": "b", "B": "y"}, "gold": "A"}, "told apart"),
        ({"kind": "choice", "choices": {"A": "x"}, "gold": "A"}, "choices"),
    ],
    ids=str,
)
def test_a_task_that_could_be_passed_by_accident_is_refused(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VerifierError, match="the answer task 't' is malformed") as refusal:
        AnswerGrader().check(task_of(**spec))
    assert sentence in str(refusal.value)


# ----------------------------------------------------------------------------------------------------------- properties


@given(st.fractions(max_denominator=10**6), st.sampled_from(["", " m", " $", "kg."]))
def test_every_fraction_is_read_back_exactly(value: Fraction, unit: str) -> None:
    assert number(f"{value.numerator}/{value.denominator}{unit}") == (value, unit.strip().removesuffix("."))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back_exactly(value: float) -> None:
    assert number(repr(value)) == (Fraction(repr(value)), "")


@given(st.text(max_size=60))
def test_any_text_is_judged_and_never_raises(text: str) -> None:
    for spec in (EXACT, NORMALISED, F1, NUMERIC, LENGTH, SET, LIST, JSON, CHOICE):
        for where in ("whole", "tag", "boxed"):
            verdict = judged(text, **spec, where=where)
            assert verdict.value is not None
            assert verdict.feedback or verdict.passed


GOLD = st.text("ΑΒΓΔΕΖΗΘ", min_size=4, max_size=8)


@given(GOLD, st.text(max_size=30), st.sampled_from(["exact", "normalised", "f1", "set", "list", "choice"]))
def test_no_gold_appears_in_the_feedback(gold: str, text: str, kind: str) -> None:
    specs: dict[str, dict[str, JsonValue]] = {
        "exact": {"golds": [gold]},
        "normalised": {"golds": [gold]},
        "f1": {"golds": [gold], "threshold": 0.7},
        "set": {"gold": [gold], "separator": ",", "items": "plain"},
        "list": {"gold": [gold], "separator": "json", "items": "normalised"},
        "choice": {"choices": {gold: f"{gold}Ω", "B": "other"}, "gold": gold},
    }
    for said in (text, f"{gold} or {text}", f"<answer>{gold}</answer>", f'["{gold}", 1]', f"{gold}, {text}"):
        for where in ("whole", "tag", "boxed"):
            assert gold not in judged(said, kind=kind, where=where, **specs[kind]).feedback


@given(st.text(), st.text())
def test_normalising_twice_changes_nothing_and_f1_is_symmetric(one: str, other: str) -> None:
    assert plain(plain(one)) == plain(one)
    assert token_f1(one, other) == token_f1(other, one)
    assert token_f1(one, one) in (0.0, 1.0)
    assert not normalised(one) or token_f1(one, one) == 1.0


# --------------------------------------------------------------------------------------------- before an episode begins


class Quiz(AgentEnv):
    """Answers, judged by the registered grader."""

    grader = "answer"
    levels = AnswerGrader.levels

    @tool
    def answer(self, text: str) -> Submit:
        """Hand in an answer."""
        return Submit(text)


def test_a_malformed_task_is_refused_when_its_episode_is_to_begin() -> None:
    env = Quiz(TaskSet("quiz", lambda: [task_of(kind="normalised", golds=["The"])]))
    with pytest.raises(VerifierError, match="an empty answer would match it"):
        env.reset(seed=0)


def test_an_episode_ends_with_the_registered_graders_verdict() -> None:
    env = Quiz(TaskSet("quiz", lambda: [task_of(**EXACT)]))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("```answer\nNYC\n```")
    assert (reward, terminated, info["verdict"].level) == (1.0, True, "passed")


def test_a_misspelt_grader_is_refused_when_the_episode_is_to_begin() -> None:
    env = Quiz(TaskSet("quiz", lambda: [task_of(**EXACT).model_copy(update={"grader": "anwser"})]))
    with pytest.raises(UnknownNameError, match="did you mean 'answer'"):
        env.reset(seed=0)


def test_a_malformed_task_is_refused_before_a_run_begins() -> None:
    registry.register("tests/Quiz-v0", Quiz, tasks=TaskSet("quiz", lambda: [task_of(kind="normalised", golds=["The"])]))
    sandbox = {"name": "process", "options": {"trusted": True}}
    recipe = Recipe.parse({"name": "quiz", "environment": {"id": "tests/Quiz-v0"}, "sandbox": sandbox})
    with pytest.raises(VerifierError, match="an empty answer would match it"):
        recipe.prepare()
