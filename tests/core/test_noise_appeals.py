"""An appeal is judged by a real grader in a fresh sandbox, on the submission that the noisy verdict was about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import agentgym
from agentgym.env import AgentEnv
from agentgym.guidance import RolloutRequest
from agentgym.noise import Appeals, FlipNoise, RateEstimator, Rates, Review, TrustedGrader
from agentgym.policy import ScriptedPolicy
from agentgym.rollout import Rollouts
from agentgym.task import Task
from agentgym.types import Group

NOISE = FlipNoise(by="grader", rates={"function": Rates(rho0=0.4, rho1=0.4)}, passed="passed", failed="failed")
REVIEW = Review(NOISE, Appeals(grader=TrustedGrader(name="function"), accepted=1.0, rejected=1.0))


def play(make_env: Callable[[], AgentEnv], task: Task, script: list[str]) -> Group:
    policy = ScriptedPolicy(lambda _: script)
    (group,) = asyncio.run(Rollouts(make_env, policy).run([RolloutRequest(task, 8, seed=1)]))
    return group


@pytest.mark.usefixtures("needs_sandbox")
def test_a_trusted_grader_sees_through_injected_noise() -> None:
    def make_env() -> AgentEnv:
        env: AgentEnv = agentgym.make("agentgym/Code-v0", family="repair")
        env.review = REVIEW
        return env

    env = make_env()
    task = next(iter(env.tasks.split("train")))
    right, wrong = [str(one) for one in env.oracle(task)], ["```submit\npass\n```"]
    groups = [play(make_env, task, script) for script in (right, wrong)]
    for group, clean in zip(groups, (1.0, 0.0), strict=True):
        verdicts = [one.verdict for one in group.trajectories if one.verdict is not None]
        assert [one.grader for one in verdicts] == ["function"] * 8
        assert [one.appeal for one in verdicts] == [clean] * 8
        assert 0 < sum(one.noise.flipped for one in verdicts if one.noise) < 8
    estimator = RateEstimator(NOISE)
    estimator.update(groups)
    counts = estimator.counts["function"]
    assert counts.accepted_right + counts.rejected_right == counts.accepted_wrong + counts.rejected_wrong == 8
