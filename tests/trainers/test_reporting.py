"""What a step says of itself, number by number."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from agentgym.difficulty import difficulties_of
from agentgym.rewards import OutcomeOnly, Rewards
from agentgym.task import Public, Task
from agentgym.tokens import TokenBuffer
from agentgym.types import EndReason, Group, Message, Noise, Trajectory, Trust, Turn, Verdict
from agentgym_trainers.reporting import Stopwatch, resources, rollout_metrics, unaided_rewards


def attempt(value: float | None, *stops: str, end: EndReason = "submitted", noise: Noise | None = None) -> Trajectory:
    """An attempt whose turns ended so; each samples three tokens and reads two. It is lost without a value."""
    turns = [Turn(Message(role="assistant"), (), stop_reason=one) for one in stops]
    tokens = TokenBuffer()
    for place in range(len(stops)):
        tokens.append_sampled([7, 8, 9], [-1.0] * 3, place)
        tokens.append_text([5, 6], place)
    verdict = None if value is None else Verdict(value=value, level="any", trust=Trust.RPC, noise=noise)
    return Trajectory("task", "train", (), turns, verdict, tokens if stops else None, end)


FLAT = Group("easy", [attempt(1.0, "stop"), attempt(1.0, "stop", "stop")])
MIXED = Group(
    "hard",
    [
        attempt(1.0, "stop", "stop"),
        attempt(0.0, "stop", "length", end="tokens"),
        attempt(0.5, "stop", end="turns"),
        attempt(None, end="infrastructure"),
    ],
    guided=True,
)
LOST = Group("easy", [attempt(0.0, "stop"), attempt(None, "stop", end="verifier")])
GROUPS = [FLAT, MIXED, LOST]
REWARDS = [
    Rewards([1.0, 1.0], [[0.2], [0.1, 0.1]], [True, True]),
    Rewards([1.0, 0.0, 0.25, 9.0], [[0.0, 0.5], [0.25, 0.0], [0.0], []], [True, True, True, False]),
    Rewards([-0.25, 9.0], [[0.4], [9.0]], [True, False]),
]
EXPECTED = {
    "reward": (1.2 + 1.2 + 1.5 + 0.25 + 0.25 + 0.15) / 6,
    "outcome": 3.0 / 6,
    "step_reward": 1.55 / 6,
    "pass_rate": 3 / 6,
    "difficulty_1": 2 / 3,
    "difficulty_2.5": 1 / 3,
    "turns": 10 / 8,
    "sampled_tokens": 30.0,
    "truncated": 1 / 10,
    "groups_without_signal": 2 / 3,
    "groups_guided": 1 / 3,
    "unscored": 2 / 8,
    "infrastructure": 1 / 8,
}
ENDS = {"submitted": 4 / 8, "tokens": 1 / 8, "turns": 1 / 8, "infrastructure": 1 / 8, "verifier": 1 / 8}


def test_every_figure_of_hand_made_groups_is_what_a_hand_counts() -> None:
    found = rollout_metrics(GROUPS, REWARDS, {"easy": "1", "hard": "2.5"})
    rollout = {f"rollout/{name}": value for name, value in EXPECTED.items()}
    assert found == pytest.approx(rollout | {f"end/{name}": ENDS.get(name, 0.0) for name in get_args(EndReason)})


def test_attempts_that_others_stand_in_for_are_among_those_that_were_lost() -> None:
    spared = Group("task", [attempt(1.0, "stop")] * 8, replaced=[attempt(None, end="infrastructure")] * 2)
    found = rollout_metrics([spared], [Rewards([1.0] * 8, [[0.0]] * 8, [True] * 8)])
    assert found["rollout/infrastructure"] == found["rollout/unscored"] == found["end/infrastructure"] == 2 / 10
    assert (found["end/submitted"], found["rollout/pass_rate"], found["rollout/turns"]) == (8 / 10, 1.0, 1.0)


def hinted(value: float) -> Trajectory:
    return replace(attempt(value, "stop"), hint="look there")


OUTCOMES = OutcomeOnly()


def test_what_the_policy_achieves_is_measured_without_hints_and_what_it_learns_from_with_them() -> None:
    failed, lost = attempt(0.0, "stop"), attempt(None, end="infrastructure")
    groups = [
        Group("easy", [attempt(1.0, "stop"), attempt(0.0, "stop")]),
        Group("hard", [failed, hinted(1.0), hinted(1.0)], guided=True, replaced=[failed, lost]),
    ]
    rewards = [OUTCOMES(group) for group in groups]
    unaided = unaided_rewards(groups, rewards, OUTCOMES)
    found = rollout_metrics(groups, rewards, {"easy": "1", "hard": "2"}, unaided)
    assert found["rollout/pass_rate"] == found["rollout/outcome"] == 1 / 4
    assert (found["rollout/difficulty_1"], found["rollout/difficulty_2"]) == (1 / 2, 0.0)
    assert found["rollout/reward"] == 3 / 5
    assert found["rollout/infrastructure"] == found["rollout/unscored"] == 1 / 7


def test_a_step_of_hinted_attempts_alone_is_measured_on_these() -> None:
    groups = [Group("easy", [hinted(1.0), hinted(0.0)], guided=True)]
    rewards = [OUTCOMES(group) for group in groups]
    found = rollout_metrics(groups, rewards, {"easy": "1"}, unaided_rewards(groups, rewards, OUTCOMES))
    assert found["rollout/pass_rate"] == found["rollout/outcome"] == found["rollout/difficulty_1"] == 1 / 2


def test_attempts_without_siblings_say_nothing_of_groups_without_signal() -> None:
    def found(*groups: Group) -> dict[str, float]:
        return rollout_metrics(groups, [OUTCOMES(group) for group in groups])

    alone = Group("easy", [attempt(1.0, "stop")])
    assert "rollout/groups_without_signal" not in found(alone, alone)
    assert found(alone, FLAT, LOST, MIXED)["rollout/groups_without_signal"] == 2 / 3


def test_verdicts_under_noise_are_told_as_given_and_as_meant() -> None:
    def judged(given: float, clean: float) -> Trajectory:
        noise = Noise(rho0=0.5, rho1=0.5, flipped=given != clean, clean_value=clean, clean_level="any")
        return attempt(given, "stop", noise=noise)

    group = Group("task", [judged(1.0, 0.0), judged(1.0, 1.0), judged(0.0, 0.0), judged(1.0, 1.0), attempt(None)])
    group.trajectories[0].verdict = group.trajectories[0].verdict.model_copy(update={"appeal": 0.0})  # type: ignore[union-attr]
    found = rollout_metrics([group], [Rewards([0.0] * 5, [[0.0]] * 4 + [[]], [True] * 4 + [False])])
    assert found["rollout/pass_rate"] == 3 / 4
    assert {name: found[name] for name in found if name.startswith("noise/")} == {
        "noise/flipped": 1 / 4,
        "noise/clean_pass_rate": 2 / 4,
        "noise/appealed": 1 / 4,
    }


def test_laps_and_speeds_are_those_of_the_clock() -> None:
    now = iter([100.0, 103.0, 105.0, 105.5, 110.0])
    clock = Stopwatch(lambda: next(now))
    for lap in ("rollout", "learn", "sync"):
        clock.lap(lap)
    step = {"rollout/sampled_tokens": 50.0, "train/tokens": 40.0}
    assert clock.metrics(step, flops=3e12, peak=10e12) == {
        "seconds/rollout": 3.0,
        "seconds/learn": 2.0,
        "seconds/sync": 0.5,
        "seconds/step": 10.0,
        "speed/sampled_tokens": 5.0,
        "speed/trained_tokens": 20.0,
        "speed/mfu": 0.15,
    }


@pytest.mark.parametrize(("flops", "peak"), [(3e12, None), (math.nan, 10e12)], ids=["no-peak", "no-count"])
def test_a_share_of_what_is_not_known_is_not_told(flops: float, peak: float | None) -> None:
    now = iter([0.0, 2.0, 4.0])
    clock = Stopwatch(lambda: next(now))
    clock.lap("learn")
    assert clock.metrics({"sft/tokens": 6.0}, flops, peak) == {
        "seconds/learn": 2.0,
        "seconds/step": 4.0,
        "speed/trained_tokens": 3.0,
    }


def test_memory_is_the_most_that_this_process_had() -> None:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    most = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    found = resources("cpu")
    assert found.keys() == {"memory/resident_mb"}
    assert 0.98 * most <= found["memory/resident_mb"] < 10 * most  # the process that started this one may have had more


def test_a_step_of_many_difficulties_has_a_pass_rate_of_each_band() -> None:
    chosen = [Task(id=str(one), split="train", public=Public(prompt="?"), difficulty=one) for one in range(24)]
    groups = [Group(one.id, [attempt(float(int(one.id) % 2), "stop"), attempt(1.0, "stop")]) for one in chosen]
    found = rollout_metrics(groups, [Rewards([0.0] * 2, [[0.0]] * 2, [True] * 2)] * 24, difficulties_of(chosen))
    bands = {name: value for name, value in found.items() if name.startswith("rollout/difficulty_")}
    assert bands == {f"rollout/difficulty_{low}_to_{low + 1}": 0.75 for low in range(0, 24, 2)}


COSTS = {"seconds/step", "seconds/learn", "speed/trained_tokens", "speed/mfu", "memory/resident_mb"}


def test_a_warm_start_tells_what_its_steps_cost_by_the_names_of_the_policy_phase(lab: Any) -> None:
    run = lab.train(
        trainer={
            "model": {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64},
            "sft": {"steps": 3, "batch_size": 4, "demonstrations": 8},
            "policy": {"steps": 1, "tasks_per_step": 2, "attempts": 2},
            "checkpoint": {"sft_every": 2},
            "compute": {"peak_tflops": 1.0},
        },
        tasks={"train": 8, "test": 2},
    )
    warm = [line for line in run.metrics() if "sft/loss" in line]
    (policy,) = [line for line in run.metrics() if "rollout/reward" in line]
    assert len(warm) == 3
    for line in warm:
        assert line.keys() & policy.keys() >= COSTS
        assert 0 < line["seconds/learn"] <= line["seconds/step"]
        assert line["speed/trained_tokens"] == pytest.approx(line["sft/tokens"] / line["seconds/learn"])
        assert 0 < line["speed/mfu"] < 1
        assert line["memory/resident_mb"] > 64
    assert ["seconds/save" in line for line in warm] == [False, False, True]  # of the checkpoint after the second
