"""Where graders err unequally the uncorrected gradient points the wrong way, and the corrected one is the clean one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.noise import Appeals, Case, FlipNoise, Rates, Review
from agentgym.rewards import BackwardCorrection, ForwardCorrection, OutcomeOnly, RewardScheme
from agentgym.task import Public, Task
from agentgym.types import Group, Submission, Trajectory, Trust, Verdict
from agentgym_trainers.advantages import Credit, gather_rewards, grpo, reinforce, rloo
from agentgym_trainers.corrections import refuse_cancellation
from agentgym_trainers.losses import clipped
from agentgym_trainers.settings import TrainerSettings
from agentgym_trainers.update import Update

# One policy, two kinds of task: action 0 is right where graders are noisy, which is more often; action 1 where they
# are not. Uncorrected, the rarer kind counts more, because its rewards tell more.
SHARE = {"noisy": 0.6, "clean": 0.4}
RIGHT = {"noisy": 0, "clean": 1}
RATES = {"noisy": Rates(rho0=0.35, rho1=0.35), "clean": Rates(rho0=0.0, rho1=0.0)}
BACKWARD = BackwardCorrection(by="task", rates=RATES, learn_after=None)
FORWARD = ForwardCorrection(by="task", rates=RATES, learn_after=None, rescale=True)
Estimator = Callable[[Credit], Tensor]


def attempt(kind: str, accepted: bool) -> Trajectory:
    level = "passed" if accepted else "failed"
    verdict = Verdict(value=float(accepted), level=level, trust=Trust.RPC, grader="judge")
    return Trajectory(kind, "train", (), [], verdict)


def advantages(groups: Sequence[Group], scheme: RewardScheme, estimate: Estimator) -> Tensor:
    """[B]: attempts of one sampled token each."""
    rewards = [scheme(group) for group in groups]
    count = sum(len(group.trajectories) for group in groups)
    one_B1 = torch.ones(count, 1)
    return estimate(Credit(*gather_rewards(rewards), (one_B1 * 0).long(), one_B1.bool()))[:, 0]


def expected_gradient(
    scheme: RewardScheme, estimate: Estimator, rates: dict[str, Rates], theta: float, size: int = 2
) -> float:
    """The exact mean of the policy gradient over actions and graders' errors, by enumeration."""
    first = 1 / (1 + torch.tensor(-theta, dtype=torch.float64).exp().item())
    chance, score = (first, 1 - first), (1 - first, -first)
    total = 0.0
    for kind, share in SHARE.items():
        for actions in product((0, 1), repeat=size):
            for accepted in product((True, False), repeat=size):
                probability = share
                for action, seen in zip(actions, accepted, strict=True):
                    right = action == RIGHT[kind]
                    accepts = 1 - rates[kind].rho1 if right else rates[kind].rho0
                    probability *= chance[action] * (accepts if seen else 1 - accepts)
                group = Group(kind, [attempt(kind, seen) for seen in accepted])
                advantage_B = advantages([group], scheme, estimate).tolist()
                gradient = sum(one * score[action] for one, action in zip(advantage_B, actions, strict=True)) / size
                total += probability * gradient
    return total


def clean_gradient(theta: float) -> float:
    """The derivative of the clean expected reward."""
    first = 1 / (1 + torch.tensor(-theta, dtype=torch.float64).exp().item())
    return (SHARE["noisy"] - SHARE["clean"]) * first * (1 - first)


@pytest.mark.parametrize("theta", [-2.0, 0.0, 1.5])
def test_the_uncorrected_gradient_has_the_wrong_sign_and_the_corrected_ones_are_exact(theta: float) -> None:
    clean = clean_gradient(theta)
    faultless = {kind: Rates(rho0=0.0, rho1=0.0) for kind in RATES}
    assert clean > 0
    assert expected_gradient(OutcomeOnly(), rloo, faultless, theta) == pytest.approx(clean, rel=1e-5)
    # The shares times what the noise leaves: 0.6 * 0.3 against 0.4 * 1.
    assert expected_gradient(OutcomeOnly(), rloo, RATES, theta) == pytest.approx(clean * (0.18 - 0.4) / 0.2, rel=1e-5)
    assert expected_gradient(BACKWARD, rloo, RATES, theta) == pytest.approx(clean, rel=1e-5)
    assert expected_gradient(FORWARD, reinforce, RATES, theta) == pytest.approx(clean, rel=1e-5)


def test_a_group_mean_leaves_the_corrected_direction_and_scales_it_alone() -> None:
    found = expected_gradient(BACKWARD, partial(grpo, std="none"), RATES, 0.0)
    assert found == pytest.approx(clean_gradient(0.0) / 2, rel=1e-5)  # (G - 1) / G with two siblings


def test_a_group_deviation_undoes_backward_correction_and_a_group_mean_forward_correction() -> None:
    naive = expected_gradient(OutcomeOnly(), grpo, RATES, 0.0, size=3)
    assert naive < 0
    assert expected_gradient(BACKWARD, grpo, RATES, 0.0, size=3) == pytest.approx(naive, rel=1e-4)
    same = ForwardCorrection(by="task", rates={"*": Rates(rho0=0.1, rho1=0.3)}, learn_after=None, rescale=False)
    naive = expected_gradient(OutcomeOnly(), rloo, RATES, 0.0)
    assert expected_gradient(same, rloo, RATES, 0.0) == pytest.approx(naive, rel=1e-4)


CASES: list[Any] = [
    pytest.param(BACKWARD, "grpo", {}, "scale", id="backward-grpo"),
    pytest.param(BACKWARD, "grpo", {"per_turn": "to_go"}, "scale", id="backward-grpo-to-go"),
    pytest.param(BACKWARD, "grpo", {"std": "none"}, None, id="backward-grpo-no-std"),
    pytest.param(BACKWARD, "grpo", {"std": "batch"}, None, id="backward-grpo-batch-std"),
    pytest.param(BACKWARD, "rloo", {}, None, id="backward-rloo"),
    pytest.param(FORWARD, "grpo", {"std": "none"}, "shift", id="forward-grpo-no-std"),
    pytest.param(FORWARD, "rloo", {}, "shift", id="forward-rloo"),
    pytest.param(FORWARD, "reinforce", {}, None, id="forward-reinforce"),
    pytest.param(FORWARD, "gae", {"value_BL": torch.zeros(6, 1)}, "shift", id="forward-gae"),
    pytest.param(FORWARD, "gae", {"value_BL": torch.zeros(6, 1), "whiten": False}, "shift", id="forward-gae-as-it-is"),
    pytest.param(BACKWARD, "gae", {"value_BL": torch.zeros(6, 1)}, None, id="backward-gae"),
    pytest.param(OutcomeOnly(), "grpo", {}, None, id="outcome-grpo"),
]


@pytest.mark.parametrize(("scheme", "name", "options", "change"), CASES)
def test_an_advantage_that_undoes_a_correction_is_refused(
    scheme: RewardScheme, name: str, options: dict[str, Any], change: str | None
) -> None:
    estimate = partial(registry.lookup("advantages", name), **options)
    if change is None:
        refuse_cancellation(scheme, name, estimate)
        return
    with pytest.raises(RecipeError, match=f"'{name}' cancels the .* it is blind to a group's {change}; choose"):
        refuse_cancellation(scheme, name, estimate)


def test_a_critic_that_would_learn_forward_correction_away_is_refused_before_a_run() -> None:
    settings = TrainerSettings.model_validate({"policy": {"advantage": "gae"}, "critic": {}})
    Update(settings, BACKWARD)
    with pytest.raises(RecipeError, match=r"'gae' cancels the ForwardCorrection .*; choose reinforce"):
        Update(settings, FORWARD)


def test_reinforce_takes_returns_as_they_are_and_leaves_out_the_unscored() -> None:
    unscored = Trajectory("t", "train", (), [], Verdict(value=None, level="unscored", trust=Trust.RPC))
    group = Group("t", [attempt("t", True), unscored, attempt("t", False)])
    assert advantages([group], OutcomeOnly(), reinforce).tolist() == [1.0, 0.0, 0.0]


# ---------------------------------------------------------------- learning


def learn(scheme: Any, estimate: Estimator, seed: int, steps: int = 400, size: int = 8) -> float:
    """Train the bandit on injected noise and appeals; return the chance of the action that is right more often."""
    noise = FlipNoise(by="task", rates=RATES, passed="passed", failed="failed")
    review = Review(noise, Appeals(grader=None, accepted=0.2, rejected=0.2))
    draws = torch.Generator().manual_seed(seed)
    logits = torch.zeros(2, requires_grad=True)
    number = 0
    for _ in range(steps):
        groups, actions = [], []
        for _ in range(4):
            kind = "noisy" if torch.rand((), generator=draws) < SHARE["noisy"] else "clean"
            picked = torch.multinomial(logits.detach().softmax(0), size, replacement=True, generator=draws)
            task = Task(id=kind, split="train", public=Public(prompt="?"))
            group = []
            for action in picked.tolist():
                number += 1
                one = attempt(kind, action == RIGHT[kind])
                assert one.verdict is not None
                one.verdict = review(one.verdict, Case(task, Submission(), lambda: None, seed * 10**6 + number))  # type: ignore[arg-type, return-value]
                group.append(one)
            groups.append(Group(kind, group))
            actions.append(picked)
        advantage_B1 = advantages(groups, scheme, estimate)[:, None]
        logp_B1 = logits.log_softmax(0)[torch.cat(actions)][:, None]
        ones = torch.ones_like(advantage_B1)
        loss, _ = clipped(logp_B1, logp_B1.detach(), None, advantage_B1, ones.bool(), ones / len(ones))
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.5 * gradient
        if hasattr(scheme, "update"):
            scheme.update(groups)
    return float(logits.detach().softmax(0)[0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_policy_learns_the_right_action_only_with_correction(seed: int) -> None:
    assert learn(OutcomeOnly(), rloo, seed) < 0.05
    assert learn(BACKWARD, rloo, seed) > 0.95
    assert learn(FORWARD, reinforce, seed) > 0.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rates_learned_from_appeals_correct_as_well_as_given_ones(seed: int) -> None:
    unknown = {kind: Rates(rho0=0.0, rho1=0.0) for kind in RATES}
    scheme = BackwardCorrection(by="task", rates=unknown, learn_after=20)
    assert learn(scheme, rloo, seed, steps=600) > 0.8
    found = scheme.estimate("noisy")
    assert found.rho0.low <= 0.35 <= found.rho0.high
    assert found.rho1.low <= 0.35 <= found.rho1.high
