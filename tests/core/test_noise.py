"""Injected noise is reproducible, recorded and kept out of evaluations; appeals measure it, with honest intervals."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentgym import registry
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError, HeldOutError, RecipeError, VerifierError
from agentgym.evaluate import summarise
from agentgym.guidance import RolloutRequest
from agentgym.learnable import Learnable
from agentgym.noise import (
    AppealCounts,
    Appeals,
    Case,
    FlipNoise,
    RateEstimator,
    Rates,
    RateTable,
    Review,
    TrustedGrader,
)
from agentgym.policy import ScriptedPolicy
from agentgym.rewards import BackwardCorrection, ForwardCorrection
from agentgym.rollout import Rollouts
from agentgym.task import Public, Task
from agentgym.testing import ToyEnv, toy_task
from agentgym.types import Group, Submission, Trajectory, Trust, Verdict

NOISE = FlipNoise(by="grader", rates={"judge": Rates(rho0=0.2, rho1=0.4)}, passed="passed", failed="failed")
HALF = {"rho0": 0.25, "rho1": 0.25}


def task(task_id: str = "t", split: Any = "train") -> Task:
    return Task(id=task_id, split=split, public=Public(prompt="?"))


def verdict(value: float | None, grader: str | None = "judge", **more: Any) -> Verdict:
    return Verdict(value=value, level="passed" if value == 1.0 else "failed", trust=Trust.RPC, grader=grader, **more)


def no_sandboxes() -> Any:
    """The graders of these tests need none."""


def case(seed: int = 0, of: Task | None = None) -> Case:
    return Case(of or task(), Submission(answer="x"), no_sandboxes, seed)


def trajectory(value: float | None, grader: str | None = "judge", task_id: str = "t", **more: Any) -> Trajectory:
    return Trajectory(task_id, "train", (), [], verdict(value, grader, **more))


# ---------------------------------------------------------------- rates


rates = st.tuples(st.floats(0, 0.95), st.floats(0, 0.95)).filter(lambda pair: sum(pair) < 0.95)


@given(rates)
def test_backward_correction_is_unbiased_and_forward_points_the_same_way(pair: tuple[float, float]) -> None:
    found = Rates(rho0=pair[0], rho1=pair[1])

    def mean(weigh: Any, right: bool) -> float:
        accepted = 1 - found.rho1 if right else found.rho0
        return float(accepted * weigh(accepted=True) + (1 - accepted) * weigh(accepted=False))

    assert mean(found.backward, True) == pytest.approx(1.0)
    assert mean(found.backward, False) == pytest.approx(0.0, abs=1e-9)
    assert mean(found.forward, True) == pytest.approx(0.0, abs=1e-9)
    assert mean(found.forward, False) == pytest.approx(-found.signal)


@pytest.mark.parametrize("pair", [(0.5, 0.5), (0.9, 0.2), (0.0, 1.0), (-0.1, 0.0)])
def test_rates_that_leave_nothing_to_learn_are_refused(pair: tuple[float, float]) -> None:
    with pytest.raises(ValidationError):
        Rates(rho0=pair[0], rho1=pair[1])


def test_an_exact_name_wins_over_patterns_and_a_missing_one_is_refused() -> None:
    table = RateTable.model_validate({"by": "task", "rates": {"a-*": HALF, "a-1": {"rho0": 0, "rho1": 0.1}}})
    assert table.find(task_id="a-1", grader="judge")[0] == "a-1"
    assert table.find(task_id="a-2", grader="judge")[0] == "a-*"
    with pytest.raises(RecipeError, match=r"for the task 'b'; the recipe names a-\*, a-1; add it"):
        table.find(task_id="b", grader="judge")


# ---------------------------------------------------------------- the injector


def test_flips_happen_at_the_given_rates_and_are_recorded() -> None:
    count = 4000
    for value, rate in ((1.0, 0.4), (0.0, 0.2), (0.5, 0.2)):
        found = [NOISE.flip(verdict(value), case(seed)) for seed in range(count)]
        flipped = [one for one in found if one.noise is not None and one.noise.flipped]
        assert len(flipped) / count == pytest.approx(rate, abs=4 * (rate * (1 - rate) / count) ** 0.5)
        assert all(one.noise is not None and one.noise.clean_value == value for one in found)
        assert {(one.value, one.level) for one in flipped} == {(0.0, "failed") if value == 1.0 else (1.0, "passed")}
        assert {one.value for one in found if one.noise is None or not one.noise.flipped} == {value}


def test_the_same_seed_flips_the_same_verdicts_and_another_one_others() -> None:
    def pattern(seeds: range) -> list[float | None]:
        return [NOISE.flip(verdict(1.0), case(seed)).value for seed in seeds]

    assert pattern(range(50)) == pattern(range(50))
    assert pattern(range(50)) != pattern(range(50, 100))


def test_noise_leaves_alone_what_no_grader_judged() -> None:
    for untouched in (verdict(None), verdict(0.0, grader=None)):
        assert all(NOISE.flip(untouched, case(seed)) == untouched for seed in range(50))


def test_noise_is_refused_on_held_out_tasks() -> None:
    with pytest.raises(HeldOutError, match="'test' split would be graded with injected noise"):
        NOISE.flip(verdict(1.0), case(of=task(split="test")))


def test_an_evaluation_refuses_noisy_verdicts_flipped_or_not() -> None:
    for seed in range(10):
        noisy = Trajectory("t", "train", (), [], NOISE.flip(verdict(1.0), case(seed)))
        with pytest.raises(AgentgymError, match="given under injected noise, which belongs to training only"):
            summarise([task()], [Group("t", [trajectory(1.0), noisy])], attempts=2)


def test_a_level_that_the_environment_does_not_reach_is_refused() -> None:
    with pytest.raises(RecipeError, match="the noise would give the level 'passed'; the environment reaches solved"):
        NOISE.check_levels(("solved",))


def play(review: Review | None, seeds: int = 200) -> list[Verdict]:
    """The verdicts on right answers to the toy task, as training sees them."""

    def make_env() -> AgentEnv:
        env = ToyEnv()
        env.review = review
        return env

    toy = toy_task(0)
    oracle = list(ToyEnv().oracle(toy))
    requests = [RolloutRequest(toy, seeds, seed=3)]
    groups = asyncio.run(Rollouts(make_env, ScriptedPolicy(lambda _: oracle)).run(requests))
    return [one.verdict for one in groups[0].trajectories if one.verdict is not None]


def test_an_environment_under_review_pays_and_records_the_noisy_verdict_and_repeats_it() -> None:
    noise = FlipNoise(by="grader", rates={"grade": Rates(rho0=0.0, rho1=0.5)}, passed="passed", failed="failed")
    found = play(Review(noise=noise))
    assert found == play(Review(noise=noise))
    assert 60 < sum(one.passed for one in found) < 140
    assert all(one.noise is not None and one.noise.clean_value == 1.0 and one.grader == "grade" for one in found)
    assert all(one.passed and one.noise is None for one in play(None, seeds=20))


# ---------------------------------------------------------------- appeals


class Strict:
    """A trusted grader that accepts the answer it was made with."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def grade(self, task: Task, submission: Submission, sandboxes: Any) -> Verdict:
        if submission.answer is None:
            raise VerifierError("nothing to judge")
        return Verdict(value=float(submission.answer == self.answer), level="passed", trust=Trust.RPC)


def test_appeals_go_to_a_trusted_grader_at_the_shares_asked_for_and_change_no_verdict() -> None:
    if "tests-strict" not in registry.names("graders"):
        registry.add("graders", "tests-strict", Strict)
    appeals = Appeals(grader=TrustedGrader(name="tests-strict", options={"answer": "x"}), accepted=0.25, rejected=0.75)
    for value, share in ((1.0, 0.25), (0.0, 0.75)):
        found = [appeals.hear(verdict(value), case(seed)) for seed in range(2000)]
        asked = [one for one in found if one.appeal is not None]
        assert len(asked) / 2000 == pytest.approx(share, abs=0.04)
        assert {one.appeal for one in asked} == {1.0}
        assert {one.value for one in found} == {value}
    undecided = appeals.model_copy(update={"accepted": 1.0})
    empty = Case(task(), Submission(), no_sandboxes, 0)
    assert undecided.hear(verdict(1.0), empty).appeal is None


def test_appeals_without_a_grader_need_noise_to_take_back() -> None:
    appeals = Appeals(grader=None, accepted=1.0, rejected=1.0)
    with pytest.raises(RecipeError, match=r"name one in appeals\.grader"):
        Review(appeals=appeals)
    found = [Review(NOISE, appeals)(verdict(0.0), case(seed)) for seed in range(50)]
    assert {one.appeal for one in found} == {0.0}
    assert {one.value for one in found} == {0.0, 1.0}


def simulate(rng: np.random.Generator, true: Rates, count: int, accepted: float, rejected: float) -> AppealCounts:
    counts = AppealCounts()
    for right, draw, appeal in zip(rng.random(count) < 0.3, rng.random(count), rng.random(count), strict=True):
        seen = bool(draw >= true.rho1) if right else bool(draw < true.rho0)
        counts.add(accepted=seen, right=bool(right) if appeal < (accepted if seen else rejected) else None)
    return counts


def test_the_intervals_cover_the_true_rates_though_the_two_sides_are_appealed_unequally() -> None:
    rng, true, runs = np.random.default_rng(5), Rates(rho0=0.1, rho1=0.3), 300
    covered = np.zeros(2)
    values = []
    for _ in range(runs):
        found = simulate(rng, true, 1500, accepted=0.5, rejected=0.1).estimate()
        covered += [found.rho0.low <= 0.1 <= found.rho0.high, found.rho1.low <= 0.3 <= found.rho1.high]
        values.append((found.rho0.value, found.rho1.value))
    assert (covered / runs > 0.91).all()
    assert np.mean(values, axis=0) == pytest.approx((0.1, 0.3), abs=0.02)


def test_more_appeals_narrow_the_interval_and_none_leave_it_open() -> None:
    rng, true = np.random.default_rng(0), Rates(rho0=0.1, rho1=0.3)
    widths = [
        one.rho1.high - one.rho1.low
        for one in (simulate(rng, true, count, 0.5, 0.5).estimate() for count in (0, 200, 2000, 20_000))
    ]
    assert widths[0] > 0.9
    assert widths == sorted(widths, reverse=True)
    assert widths[3] < 0.05


def test_an_estimator_is_learnable_and_goes_on_from_its_state() -> None:
    table = RateTable.model_validate({"by": "grader", "rates": {"judge": HALF, "other": HALF}})
    first, second = RateEstimator(table), RateEstimator(table)
    assert isinstance(first, Learnable)
    groups = [Group("t", [trajectory(1.0, appeal=1.0), trajectory(0.0, appeal=1.0), trajectory(0.0)])]
    groups += [Group("t", [trajectory(None), trajectory(0.0, grader=None), trajectory(0.0, grader="other")])]
    metrics = first.update(groups)
    assert set(metrics) == {"noise/rho0/judge", "noise/rho1/judge"}
    assert first.counts["judge"] == AppealCounts(accepted=1, rejected=2, accepted_right=1, rejected_right=1)
    second.load_state_dict(first.state_dict())
    assert second.counts == first.counts
    assert second.estimate("judge") == first.estimate("judge")
    with pytest.raises(AgentgymError, match="about 'judge', which the recipe no longer names"):
        RateEstimator(RateTable.model_validate({"by": "grader", "rates": {"x": HALF}})).load_state_dict(
            first.state_dict()
        )


# ---------------------------------------------------------------- the schemes


def backward(learn_after: int | None = None) -> BackwardCorrection:
    found: BackwardCorrection = registry.create(
        "schemes", "backward", by="grader", rates={"judge": HALF}, learn_after=learn_after
    )
    return found


def test_backward_correction_prices_a_group_and_leaves_the_ungraded_and_the_unscored_as_they_are() -> None:
    found = backward()(Group("t", [trajectory(1.0), trajectory(0.0), trajectory(0.0, None), trajectory(None)]))
    assert found.outcome == [1.5, -0.5, 0.0, 0.0]
    assert found.keep == [True, True, True, False]
    with pytest.raises(RecipeError, match="no noise rates are given for the grader 'other'"):
        backward()(Group("t", [trajectory(1.0, "other")]))


def test_learned_rates_replace_the_given_ones_only_after_enough_appeals_on_both_sides() -> None:
    scheme = backward(learn_after=20)
    assert isinstance(scheme, Learnable)
    group = Group("t", [trajectory(1.0), trajectory(0.0)])
    given = scheme(group).outcome
    scheme.update([Group("t", [trajectory(1.0, appeal=1.0)] * 500)])
    assert scheme(group).outcome == given
    scheme.update([Group("t", [trajectory(0.0, appeal=0.0)] * 400 + [trajectory(0.0, appeal=1.0)] * 100)])
    learned = scheme(group).outcome
    assert learned != given
    # All that was accepted was right, and 100 of 600 right answers were rejected.
    assert learned == pytest.approx([1.2, 0.0], abs=0.02)
    assert scheme(group).outcome == learned
    other = backward(learn_after=20)
    other.load_state_dict(scheme.state_dict())
    assert other(group).outcome == learned
    assert backward()(group).outcome == given


def test_a_grader_that_tells_nothing_by_its_appeals_keeps_the_given_rates(caplog: pytest.LogCaptureFixture) -> None:
    scheme = backward(learn_after=1)
    group = Group("t", [trajectory(1.0), trajectory(0.0)])
    scheme.update([Group("t", [trajectory(1.0, appeal=0.0)] * 50 + [trajectory(0.0, appeal=1.0)] * 50)])
    assert scheme(group).outcome == [1.5, -0.5]
    assert "judge tells nothing" in caplog.text


def forward(**options: Any) -> ForwardCorrection:
    return ForwardCorrection.model_validate({"by": "grader", "learn_after": None, **options})


def test_forward_weights_of_unequal_graders_must_be_rescaled() -> None:
    unequal = {"judge": HALF, "other": {"rho0": 0.0, "rho1": 0.1}}
    with pytest.raises(ValidationError, match="noisier ones would count less; set rescale: true"):
        forward(rates=unequal, rescale=False)
    scheme = forward(rates=unequal, rescale=True)
    attempts = [trajectory(1.0), trajectory(0.0), trajectory(1.0, "other"), trajectory(0.0, None)]
    assert scheme(Group("t", attempts)).outcome == pytest.approx([0.5, -1.5, 0.1 / 0.9, -1.0])


def test_forward_weights_without_false_negatives_train_on_failures_only() -> None:
    scheme = forward(rates={"judge": {"rho0": 0.2, "rho1": 0.0}}, rescale=False)
    assert scheme(Group("t", [trajectory(1.0), trajectory(0.0)])).outcome == [0.0, -1.0]
    assert scheme(Group("t", [trajectory(0.0, None)])).outcome == pytest.approx([-0.8])
