"""What each scheme promises, on groups drawn at random: right above wrong, nothing farmed, nothing unknown priced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentgym.errors import RecipeError, VerifierError
from agentgym.rewards import (
    ClipDelta,
    FlawPenalty,
    LengthPenalty,
    MinForm,
    ProcessFilter,
    ReNorm,
    RewardScheme,
    RubricGated,
    SubGoals,
    ToolContrast,
    WeightedPartial,
    check_levels,
    check_signals,
    settlement,
)
from agentgym.tokens import TokenBuffer
from agentgym.types import Group, Message, Signal, Trajectory, Trust, Turn, Verdict

LADDER = {"no_submission": -1.0, "failed": 0.0, "passed": 1.0}
UNIT = {"no_submission": 0.0, "failed": 0.0, "passed": 1.0}
MIN = MinForm(ladder=LADDER, score="process", temperature=0.1, weight=1.0)
DELTA = ClipDelta(ladder=LADDER, score="process", clip=None, delta=True, weight=1.0)
CLIP = ClipDelta(ladder=LADDER, score="process", clip=0.5, delta=False, weight=1.0)
BOTH = ClipDelta(ladder=LADDER, score="process", clip=0.5, delta=True, weight=1.0)
RENORM = ReNorm(ladder=UNIT, score="process")
PROF = ProcessFilter(ladder=LADDER, score="process", size=4, drop="both")
RUBRIC = RubricGated(rubric="rubric", share=0.3, normalise="group")
FAPO = FlawPenalty(ladder=LADDER, flaw="flaw", penalty=0.9)
LENGTH = LengthPenalty(ladder=LADDER, penalty=0.9, pass_rate=0.5, unit="turns")
CONTRAST = ToolContrast(ladder=LADDER, signal="process", bonus=0.9, margin=0.1)
WEIGHTED = WeightedPartial(
    correct=1.0, weights={"rubric": 0.5, "flaw": 0.4}, without_components={"no_submission": -0.5}
)
FTRL = SubGoals(solved="process", unsolved="process", empty=-0.5, malformed=-0.3)
EVERY: dict[str, RewardScheme] = {
    "pure": MIN,
    "clip": CLIP,
    "delta": DELTA,
    "renorm": RENORM,
    "prof": PROF,
    "c_grpo": RUBRIC,
    "fapo": FAPO,
    "grpo_lambda": LENGTH,
    "gcpo": CONTRAST,
    "weighted": WEIGHTED,
    "ftrl": FTRL,
}
every_scheme = pytest.mark.parametrize("scheme", EVERY.values(), ids=EVERY.keys())

unit = st.floats(0, 1)
scores = st.lists(unit, max_size=6)
levels = st.sampled_from(["failed", "passed"])
drawn_attempt = st.tuples(st.sampled_from(["failed", "passed", None]), scores, unit, unit)


def attempt(
    level: str | None, process: Sequence[float | None] = (), rubric: float | None = 0.5, flaw: float | None = 0.0
) -> Trajectory:
    """An attempt with a process score per turn (None: unscored turn) and two components; level None is unscored."""
    turns = [
        Turn(Message(role="assistant"), (), () if score is None else (Signal(name="process", value=score),))
        for score in process
    ]
    verdict = Verdict(
        value=None if level is None else float(level == "passed"),
        level=level or "unscored",
        trust=Trust.RPC,
        components={} if level in (None, "no_submission") else {"rubric": rubric, "flaw": flaw},
    )
    return Trajectory("t", "train", (), turns, verdict)


def group(*attempts: Trajectory) -> Group:
    return Group("t", list(attempts))


@every_scheme
@given(drawn=st.lists(drawn_attempt, min_size=1, max_size=6), places=st.lists(st.integers(0, 6), max_size=3))
def test_unscored_attempts_are_kept_out_and_change_no_siblings_price(
    scheme: RewardScheme, drawn: list[Any], places: list[int]
) -> None:
    scored = [attempt(*one) for one in drawn if one[0] is not None]
    mixed = list(scored)
    for place in places:
        mixed.insert(place, attempt(None, [0.9, 0.9]))
    found, alone = scheme(group(*mixed)), scheme(group(*scored))
    for one, price, keep in zip(mixed, found.returns, found.keep, strict=True):
        if not one.scored:
            assert (price, keep) == (0.0, False)
    rest = [index for index, one in enumerate(mixed) if one.scored]
    assert [found.returns[index] for index in rest] == alone.returns
    assert [found.keep[index] for index in rest] == alone.keep


@every_scheme
@given(drawn=st.lists(drawn_attempt, min_size=1, max_size=6))
def test_rewards_fit_the_group_and_repeat(scheme: RewardScheme, drawn: list[Any]) -> None:
    attempts = [attempt(*one) for one in drawn]
    found = scheme(group(*attempts))
    assert found == scheme(group(*attempts))
    assert len(found.outcome) == len(found.keep) == len(attempts)
    assert [len(step) for step in found.step] == [len(one.turns) for one in attempts]


@every_scheme
@given(drawn=st.lists(drawn_attempt, min_size=2, max_size=6, unique_by=lambda one: fmean(one[1] or [0.0])))
def test_the_order_of_attempts_does_not_matter_where_no_two_are_tied(scheme: RewardScheme, drawn: list[Any]) -> None:
    attempts = [attempt(*one) for one in drawn]
    forward, backward = scheme(group(*attempts)), scheme(group(*reversed(attempts)))
    assert forward.keep == backward.keep[::-1]
    assert forward.returns == pytest.approx(backward.returns[::-1])


@pytest.mark.parametrize("scheme", [RUBRIC, FAPO, LENGTH, CONTRAST, WEIGHTED], ids=lambda one: type(one).__name__)
@given(drawn=st.lists(drawn_attempt, min_size=2, max_size=8))
def test_every_right_answer_outranks_every_wrong_one(scheme: RewardScheme, drawn: list[Any]) -> None:
    attempts = [attempt(*one) for one in drawn] + [attempt("no_submission", [0.5])]
    found = scheme(group(*attempts))
    kept = [(one.passed, price) for one, price, keep in zip(attempts, found.returns, found.keep, strict=True) if keep]
    right = [price for passed, price in kept if passed]
    wrong = [price for passed, price in kept if not passed]
    if right and wrong:
        assert min(right) > max(wrong)


@pytest.mark.parametrize("scheme", [MIN, BOTH, RENORM, FAPO, WEIGHTED, FTRL], ids=lambda one: type(one).__name__)
@given(drawn=st.lists(drawn_attempt, min_size=1, max_size=5))
def test_schemes_of_single_attempts_price_each_as_if_it_were_alone(scheme: RewardScheme, drawn: list[Any]) -> None:
    attempts = [attempt(*one) for one in drawn]
    assert scheme(group(*attempts)).returns == [settlement(scheme, one) for one in attempts]


# ---------------------------------------------------------------- process scores


@given(st.lists(unit, min_size=1, max_size=12), levels)
def test_the_min_form_lies_between_the_worst_and_the_mean_turn(found: list[float], level: str) -> None:
    total = sum(MIN(group(attempt(level, found))).step[0])
    assert min(found) - 1e-9 <= total <= sum(found) / len(found) + 1e-9
    cold = MIN.model_copy(update={"temperature": 1e-4})
    if len(set(found)) == 1 or sorted(found)[0] < sorted(set(found))[1] - 0.01:
        assert sum(cold(group(attempt(level, found))).step[0]) == pytest.approx(min(found), abs=1e-6)


@given(st.lists(unit, min_size=1, max_size=6), st.integers(1, 30))
def test_repeating_a_good_turn_earns_nothing_in_min_form_and_clip(found: list[float], more: int) -> None:
    longer = [*found, *[max(found)] * more]
    assert sum(MIN(group(attempt("failed", longer))).step[0]) <= max(found) + 1e-9
    assert sum(CLIP(group(attempt("failed", longer))).step[0]) <= 0.0


@given(st.lists(unit, min_size=1, max_size=12))
def test_what_remains_from_a_turn_on_is_that_turns_score_under_delta(found: list[float]) -> None:
    step = DELTA(group(attempt("failed", found))).step[0]
    assert [sum(step[at:]) for at in range(len(step))] == pytest.approx(found)
    clipped = BOTH(group(attempt("failed", found))).step[0]
    assert [sum(clipped[at:]) for at in range(len(step))] == pytest.approx([min(one - 0.5, 0.0) for one in found])


@given(st.lists(unit, min_size=1, max_size=8))
def test_renormalised_turns_are_never_worth_having_in_a_failure_nor_punished_in_a_success(found: list[float]) -> None:
    assert all(value <= 0.0 for value in RENORM(group(attempt("failed", found))).step[0])
    assert RENORM(group(attempt("passed", found))).step[0] == pytest.approx(found)


@pytest.mark.parametrize("scheme", [MIN, CLIP, DELTA, RENORM], ids=lambda one: type(one).__name__)
def test_a_turn_without_a_score_is_no_zero(scheme: RewardScheme) -> None:
    whole = scheme(group(attempt("failed", [0.4, 0.8])))
    gappy = scheme(group(attempt("failed", [0.4, None, 0.8, None])))
    assert gappy.step[0] == [whole.step[0][0], 0.0, whole.step[0][1], 0.0]
    assert scheme(group(attempt("passed", [None, None]), attempt("passed", []))).keep == [False, True]


def test_a_process_score_out_of_range_is_the_verifiers_error() -> None:
    with pytest.raises(VerifierError, match="wanted process scores 'process' between 0 and 1"):
        RENORM(group(attempt("failed", [1.5])))


def test_the_plain_sum_is_no_way_to_clip() -> None:
    with pytest.raises(ValidationError, match="neither clip nor delta"):
        ClipDelta(ladder=LADDER, score="process", clip=None, delta=False, weight=1.0)


@given(st.lists(st.tuples(levels, unit), min_size=1, max_size=10), st.integers(2, 6))
def test_the_filter_keeps_the_consistent_and_balances(drawn: list[tuple[str, float]], size: int) -> None:
    scheme = PROF.model_copy(update={"size": size})
    found = scheme(group(*(attempt(level, [score]) for level, score in drawn)))
    assert sum(found.keep) == min(size, len(drawn))
    sides: dict[tuple[str, bool], list[float]] = {}
    for (level, score), keep in zip(drawn, found.keep, strict=True):
        sides.setdefault((level, keep), []).append(score)
    kept, gone = ({level: sides.get((level, keep), []) for level in LADDER} for keep in (True, False))
    assert min(kept["passed"], default=1.0) >= max(gone["passed"], default=0.0)
    assert max(kept["failed"], default=0.0) <= min(gone["failed"], default=1.0)
    # What unbalances the kept set is only a side that has no more to give.
    if gone["passed"] and gone["failed"]:
        assert abs(len(kept["passed"]) - len(kept["failed"])) <= 1
    elif gone["passed"]:
        assert len(kept["passed"]) <= max(len(kept["failed"]) + 1, size - len(kept["failed"]))
    assert found.outcome == [LADDER[level] if keep else 0.0 for (level, _), keep in zip(drawn, found.keep, strict=True)]


def test_a_planted_lucky_answer_is_filtered_and_a_wrong_one_is_not_where_the_judge_is_weak() -> None:
    attempts = [attempt("passed", [0.9]), attempt("passed", [0.1]), attempt("passed", [0.8]), attempt("failed", [0.7])]
    attempts += [attempt("failed", [0.2])]
    assert PROF(group(*attempts)).keep == [True, False, True, True, True]
    wrong = [attempt("failed", [0.1 * number]) for number in range(5)]
    right_only = PROF.model_copy(update={"drop": "right"})
    assert right_only(group(attempt("passed", [0.9]), *wrong)).keep == [True] * 6
    assert PROF(group(attempt("passed", [0.9]), *wrong)).keep == [True, True, True, True, False, False]


# ---------------------------------------------------------------- components


@given(st.lists(st.tuples(levels, unit), min_size=1, max_size=8))
def test_a_rubric_counts_only_in_right_answers_and_against_the_groups_best(drawn: list[tuple[str, float]]) -> None:
    found = RUBRIC(group(*(attempt(level, rubric=rubric) for level, rubric in drawn))).outcome
    best = max(rubric for _, rubric in drawn)
    wanted = [(0.7 + 0.3 * (rubric / best if best else 0.0)) * (level == "passed") for level, rubric in drawn]
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("scheme", [RUBRIC, FAPO, WEIGHTED], ids=lambda one: type(one).__name__)
def test_an_unknown_component_of_a_right_answer_keeps_it_out_and_never_becomes_zero(scheme: RewardScheme) -> None:
    unknown = attempt("passed", rubric=None, flaw=None)
    found = scheme(group(unknown, attempt("passed"), attempt("failed")))
    assert found.keep == [False, True, True]
    assert found.outcome == [0.0, *scheme(group(attempt("passed"), attempt("failed"))).outcome]


@pytest.mark.parametrize("scheme", [RUBRIC, FAPO], ids=lambda one: type(one).__name__)
def test_a_component_that_no_grader_gives_is_refused_in_one_sentence(scheme: RewardScheme) -> None:
    verdict = Verdict(value=1.0, level="passed", trust=Trust.RPC, components={"other": 1.0})
    with pytest.raises(RecipeError, match=r"has no component '(rubric|flaw)'; it has other; name one"):
        scheme(group(Trajectory("t", "train", (), [], verdict)))


def test_a_component_out_of_range_is_the_verifiers_error() -> None:
    with pytest.raises(VerifierError, match="wanted the component 'flaw' between 0 and 1, found 2"):
        FAPO(group(attempt("passed", flaw=2.0)))


def test_a_flawed_success_falls_below_the_mean_where_successes_balance_failures() -> None:
    scheme = FlawPenalty(ladder={"failed": -1.0, "passed": 1.0}, flaw="flaw", penalty=1.0)
    found = scheme(group(attempt("passed"), attempt("passed"), attempt("passed", flaw=1.0), attempt("failed"))).outcome
    assert found == [1.0, 1.0, 0.0, -1.0]
    assert found[2] - sum(found) / 4 < 0.0


weights = st.dictionaries(st.sampled_from("abcde"), st.floats(0, 3), min_size=1)


@given(weights, st.floats(0.01, 5), st.lists(unit, min_size=10, max_size=10))
def test_partial_credit_ranks_right_above_wrong_under_all_weights_that_load(
    drawn: dict[str, float], correct: float, values: list[float]
) -> None:
    def load() -> WeightedPartial:
        return WeightedPartial(correct=correct, weights=drawn, without_components={})

    if correct <= sum(drawn.values()):
        with pytest.raises(ValidationError, match="a wrong answer can be worth"):
            load()
        return
    scheme = load()
    right = scheme.worth(dict(zip("abcde", values[:5], strict=True)), right=True)
    assert right > scheme.worth(dict(zip("abcde", values[5:], strict=True)), right=False)
    assert right > scheme.worth(dict.fromkeys("abcde", 1.0), right=False)


def test_partial_credit_prices_the_level_of_no_submission_and_no_level_that_does_not_exist() -> None:
    check_levels(WEIGHTED, ("no_submission", "failed", "passed"))
    with pytest.raises(RecipeError, match="`without_components` prices no_submission, which the environment never rea"):
        check_levels(WEIGHTED, ("failed", "passed"))
    unpriced = WEIGHTED.model_copy(update={"without_components": {}})
    with pytest.raises(RecipeError, match="nothing is judged at the level no_submission; price it"):
        check_levels(unpriced, ("no_submission", "failed", "passed"))


def test_partial_credit_says_which_level_lacks_components() -> None:
    with pytest.raises(RecipeError, match="of level 'failed' have no component rubric, flaw; correct the n"):
        WEIGHTED(group(Trajectory("t", "train", (), [], Verdict(value=0.0, level="failed", trust=Trust.RPC))))


def test_a_price_for_handing_in_nothing_must_not_reach_a_right_answer() -> None:
    with pytest.raises(ValidationError, match="raise `correct` above"):
        WeightedPartial(correct=1.0, weights={"a": 0.1}, without_components={"no_submission": 1.0})
    with pytest.raises(RecipeError, match="take it out of `without_components`"):
        WEIGHTED.model_copy(update={"without_components": {"passed": 0.0}})(group(attempt("passed")))


# ---------------------------------------------------------------- siblings


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 6))
def test_length_costs_only_in_groups_that_are_mostly_right(turns: list[int], failures: int) -> None:
    right = [attempt("passed", [0.5] * count) for count in turns]
    wrong = [attempt("failed", [0.5] * 20) for _ in range(failures)]
    found = LENGTH(group(*right, *wrong)).outcome
    assert found[len(right) :] == [0.0] * failures
    prices = found[: len(right)]
    if len(turns) / (len(turns) + failures) < 0.5:
        assert prices == [1.0] * len(turns)
    else:
        ordered = [price for _, price in sorted(zip(turns, prices, strict=True), key=lambda pair: pair[0])]
        assert all(before >= after for before, after in pairwise(ordered))
        assert all(0.1 < price < 1.0 for price in prices)
        if len(set(turns)) > 1:
            assert ordered[0] > ordered[-1]


def test_length_in_tokens_counts_what_was_sampled() -> None:
    scheme = LENGTH.model_copy(update={"unit": "tokens"})
    short, long = attempt("passed"), attempt("passed")
    for one, count in ((short, 2), (long, 20)):
        one.tokens = TokenBuffer()
        one.tokens.append_sampled(list(range(count)), [-1.0] * count, turn=0)
    found = scheme(group(short, long)).outcome
    assert found[0] > found[1]
    with pytest.raises(RecipeError, match="has no token ids to measure; use unit: turns"):
        scheme(group(attempt("passed"), attempt("passed")))


@given(st.lists(st.tuples(levels, st.booleans()), min_size=1, max_size=8))
def test_a_tool_is_paid_where_it_helped_and_punished_where_it_hurt(drawn: list[tuple[str, bool]]) -> None:
    found = CONTRAST(group(*(attempt(level, [0.0, float(used), float(used)]) for level, used in drawn)))
    used = [level == "passed" for level, one in drawn if one]
    unused = [level == "passed" for level, one in drawn if not one]
    gap = sum(used) / len(used) - sum(unused) / len(unused) if used and unused else 0.0
    bonus = 0.9 * ((gap > 0.1) - (gap < -0.1))
    assert found.step == [[0.0, bonus * one, 0.0] for _, one in drawn]


# ---------------------------------------------------------------- what is refused at load

RANKED: list[Any] = [
    pytest.param(lambda amount: FlawPenalty(ladder=LADDER, flaw="flaw", penalty=amount), "penalty", id="fapo"),
    pytest.param(
        lambda amount: LengthPenalty(ladder=LADDER, penalty=amount, pass_rate=0.5, unit="turns"), "penalty", id="length"
    ),
    pytest.param(lambda amount: ToolContrast(ladder=LADDER, signal="s", bonus=amount, margin=0.0), "bonus", id="gcpo"),
]


@pytest.mark.parametrize(("build", "field"), RANKED)
def test_an_amount_that_lets_a_wrong_answer_catch_up_is_refused(build: Callable[[float], object], field: str) -> None:
    build(0.99)
    with pytest.raises(ValidationError, match=f"a wrong answer could outrank a right one; lower {field}"):
        build(1.0)


def test_a_wrong_answer_on_the_top_rung_is_refused() -> None:
    for ladder in ({"failed": 1.0, "passed": 0.0}, {"failed": 0.0, "passed": 0.5, "other": 2.0}):
        scheme = FlawPenalty(ladder=ladder, flaw="flaw", penalty=0.4)
        with pytest.raises(RecipeError, match="give the highest price to right answers, and to nothing else"):
            scheme(group(attempt("failed"), attempt("passed")))


@every_scheme
def test_no_scheme_has_hidden_defaults_or_takes_unknown_fields(scheme: Any) -> None:
    fields = scheme.model_dump()
    for name in fields:
        with pytest.raises(ValidationError, match="Field required"):
            type(scheme).model_validate({key: value for key, value in fields.items() if key != name})
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(scheme).model_validate({**fields, "typo": 1})


@pytest.mark.parametrize("scheme", [MIN, CLIP, RENORM, PROF, CONTRAST], ids=lambda one: type(one).__name__)
def test_a_signal_that_the_environment_does_not_declare_is_refused(scheme: RewardScheme) -> None:
    check_signals(scheme, ["process", "other"])
    with pytest.raises(RecipeError, match=r"reads the signal 'process', and the environment declares only other; cor"):
        check_signals(scheme, ["other"])
