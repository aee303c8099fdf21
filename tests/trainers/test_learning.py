"""Training a transformer of 0.3M parameters on the calculator does what each method promises, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from agentgym import registry
from agentgym_envs.calculator import calculator_tasks
from agentgym_trainers.advantages import Credit, grpo

pytestmark = [pytest.mark.learning, pytest.mark.timeout(900)]

LADDER = {"no_submission": 0.0, "failed": 0.0, "passed": 1.0}
HARD_SHARE = {"mixed": 0.3, "plain": 0.0, "hard": 1.0}


def flipped(credit: Credit) -> Tensor:
    """GRPO with the wrong sign."""
    return -grpo(credit)


def environment(name: str) -> dict[str, Any]:
    return {"id": f"tests/Calculator-{name}-v0"}


@pytest.fixture(scope="module")
def warm(lab: Any) -> Path:
    """A model warmed up on demonstrations of which half answer too early; `@` is only ever solved under a hint."""
    registry.add("advantages", "flipped", flipped)
    for name, share in HARD_SHARE.items():
        tasks = calculator_tasks(train=1200, validation=0, test=100, difficulty=0, hard_share=share)
        registry.register(environment(name)["id"], "agentgym_envs.calculator:CalculatorEnv", tasks=tasks, max_turns=6)
    optim = {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 20}
    sft = {"steps": 250, "demonstrations": 1200, "hinted_share": 0.4, "optim": optim}
    model: Path = lab.newest_model(
        lab.train(environment=environment("mixed"), trainer={"sft": sft, "policy": {"steps": 0}})
    )
    return model


def improve(warm: Path, steps: int, **policy: Any) -> dict[str, Any]:
    return {"model": {"path": str(warm), "context_length": 256}, "policy": {"steps": steps, **policy}}


def test_held_out_pass_rate_rises_and_does_not_with_the_advantage_flipped(lab: Any, warm: Path) -> None:
    right = lab.held_out(lab.train(environment=environment("plain"), trainer=improve(warm, 12)))
    wrong = lab.held_out(lab.train(environment=environment("plain"), trainer=improve(warm, 12, advantage="flipped")))
    assert right[-1] >= right[0] + 0.12
    assert wrong[0] == right[0]
    assert wrong[-1] <= wrong[0]


def test_a_run_that_samples_while_it_learns_learns_too(lab: Any, warm: Path) -> None:
    # At twice this rate, steps that are each two versions late overshoot: the pass rate falls for a while as it rises.
    policy = improve(warm, 20, loss="truncated", optim={"lr": 1e-4})
    run = lab.train(
        environment=environment("plain"),
        evaluation={"attempts": 4},
        trainer={**policy, "schedule": {"max_staleness": 2}},
    )
    assert max(lab.column(run, "schedule/staleness_max")) == 2
    assert lab.held_out(run)[-1] >= lab.held_out(run)[0] + 0.1


def test_ppo_raises_the_held_out_pass_rate_and_its_critic_foresees_which_attempts_fail(lab: Any, warm: Path) -> None:
    # One attempt per task: nothing but the critic says what to expect of a task; three in ten are never solved.
    policy = {"advantage": "gae", "attempts": 1, "tasks_per_step": 128, "advantage_options": {"lam": 1.0}}
    trainer = {**improve(warm, 13, **policy), "critic": {"warmup_steps": 2}}
    run = lab.train(environment=environment("mixed"), trainer=trainer)
    assert lab.held_out(run)[-1] >= lab.held_out(run)[0] + 0.1
    foreseen = lab.column(run, "train/explained_variance")
    assert foreseen[0] == 0
    assert foreseen[-1] > 0.3


def test_an_ungated_step_bonus_is_farmed_and_a_gated_one_is_not(lab: Any, warm: Path) -> None:
    bonus = {"ladder": LADDER, "step_weights": {"valid_calls": 1.0}}
    ungated = lab.train(
        environment=environment("plain"), reward={"name": "ungated", "options": bonus}, trainer=improve(warm, 14)
    )
    gated = lab.train(
        environment=environment("plain"),
        reward={"name": "g_ra", "options": {**bonus, "threshold": 1.0}},
        trainer=improve(warm, 22),
    )
    assert lab.column(ungated, "rollout/reward")[-1] > lab.column(ungated, "rollout/reward")[0] + 1.0
    assert lab.held_out(ungated)[-1] < lab.held_out(ungated)[0] / 2
    assert lab.held_out(gated)[-1] >= lab.held_out(gated)[0] + 0.1


def test_guidance_solves_a_split_on_which_the_unguided_run_has_no_signal(lab: Any, warm: Path) -> None:
    # Cool sampling makes the cliff steep: at temperature 1 one attempt in a thousand finds the hidden tool by luck.
    cool = improve(warm, 14, temperature=0.6)
    unguided = lab.train(environment=environment("hard"), trainer=cool)
    assert set(lab.column(unguided, "rollout/pass_rate")) == {0.0}
    assert lab.held_out(unguided)[-1] == 0.0
    guidance = {"name": "guide", "options": {"attempts": 4, "ratio": "reset"}}
    guided = lab.train(environment=environment("hard"), guidance=guidance, trainer=cool)
    assert lab.held_out(guided)[0] == 0.0
    assert lab.held_out(guided)[-1] >= 0.4
