"""Step rewards count only through the gate, unscored attempts are kept out, and impossible schemes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentgym.errors import RecipeError, VerifierError
from agentgym.rewards import GatedRewards, OutcomeOnly, UngatedSum, check_levels, settlement
from agentgym.types import Group, Message, Signal, Trajectory, Trust, Turn, Verdict, pass_rate

LADDER = {"no_submission": -1.0, "failed": 0.0, "passed": 1.0}
GATED = GatedRewards(ladder=LADDER, threshold=1.0, step_weights={"valid_calls": 0.25, "malformed": -0.5})

signals = st.lists(st.dictionaries(st.sampled_from(["valid_calls", "malformed", "other"]), st.floats(0, 5)), max_size=5)
levels = st.sampled_from([*LADDER, None])


def attempt(level: str | None, turns: list[dict[str, float]]) -> Trajectory:
    value = None if level is None else float(level == "passed")
    return Trajectory(
        "t",
        "train",
        (),
        [
            Turn(Message(role="assistant"), (), tuple(Signal(name=name, value=value) for name, value in one.items()))
            for one in turns
        ],
        Verdict(value=value, level=level or "unscored", trust=Trust.RPC),
    )


@given(st.lists(st.tuples(levels, signals), min_size=1, max_size=4))
def test_step_rewards_count_only_through_the_gate(drawn: list[tuple[str | None, list[dict[str, float]]]]) -> None:
    found = GATED(Group("t", [attempt(*one) for one in drawn]))
    for (level, turns), outcome, step, keep in zip(drawn, found.outcome, found.step, found.keep, strict=True):
        assert keep == (level is not None)
        assert outcome == LADDER.get(level or "", 0.0)
        assert len(step) == len(turns)
        if level != "passed":
            assert step == [0.0] * len(turns)
        else:
            wanted = [0.25 * one.get("valid_calls", 0.0) - 0.5 * one.get("malformed", 0.0) for one in turns]
            assert step == pytest.approx(wanted)


@given(st.lists(st.tuples(levels, signals), min_size=1, max_size=4))
def test_an_attempts_price_does_not_depend_on_its_siblings(
    drawn: list[tuple[str | None, list[dict[str, float]]]],
) -> None:
    attempts = [attempt(*one) for one in drawn]
    for scheme in (GATED, OutcomeOnly(), UngatedSum(ladder=LADDER, step_weights={"valid_calls": 1.0})):
        together = scheme(Group("t", attempts)).returns
        assert together == [settlement(scheme, one) for one in attempts]


def test_without_the_gate_a_failed_attempt_is_paid_for_its_calls() -> None:
    ungated = UngatedSum(ladder=LADDER, step_weights={"valid_calls": 0.25})
    farming = attempt("failed", [{"valid_calls": 1.0}] * 8)
    assert settlement(ungated, farming) == 2.0
    assert settlement(GATED, farming) == 0.0


def test_a_gate_at_exactly_the_threshold_is_open() -> None:
    assert GatedRewards(ladder={"a": 0.5}, threshold=0.5, step_weights={"s": 1.0}).settle("a", [{"s": 1.0}]) == (
        0.5,
        [1.0],
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        pytest.param({"ladder": {"a": 0.0}, "threshold": 1.0, "step_weights": {}}, "never open", id="closed-for-ever"),
        pytest.param({"ladder": {}, "threshold": 1.0, "step_weights": {}}, "at least 1", id="no-ladder"),
        pytest.param({"ladder": {"a": 0.0}, "threshold": 0.0}, "step_weights", id="no-hidden-defaults"),
        pytest.param({"ladder": {"a": 0.0}, "threshold": 0, "step_weights": {}, "x": 1}, "Extra", id="typo"),
        pytest.param({"ladder": {"a": float("nan")}, "threshold": 0, "step_weights": {}}, "finite", id="nan"),
        pytest.param({"ladder": {"a": 0.0}, "threshold": 0, "step_weights": {"s": float("inf")}}, "finite", id="inf"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        GatedRewards.model_validate(options)


def test_an_ungated_sum_refuses_a_threshold() -> None:
    with pytest.raises(ValidationError, match="has no threshold"):
        UngatedSum(ladder=LADDER, threshold=1.0, step_weights={})


def test_a_ladder_without_a_rung_that_the_environment_reaches_is_refused() -> None:
    with pytest.raises(RecipeError, match="no rung for compile_error"):
        check_levels(GATED, ("failed", "compile_error"))
    with pytest.raises(RecipeError, match="no rung for level 'unheard'"):
        GATED.settle("unheard", [])
    check_levels(OutcomeOnly(), ("anything",))


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_verdict_out_of_range_is_the_verifiers_error(value: float) -> None:
    with pytest.raises(VerifierError, match="wanted a verdict between 0 and 1"):
        Verdict(value=value, level="passed", trust=Trust.RPC)


def test_unscored_attempts_are_no_zeros_in_a_pass_rate() -> None:
    assert pass_rate([attempt("passed", []), attempt(None, [])]) == 1.0
    assert Group("t", [attempt("passed", []), attempt(None, [])]).scored == [attempt("passed", [])]
