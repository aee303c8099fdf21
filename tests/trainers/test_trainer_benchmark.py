"""The trainer's benchmark poses one task to both systems, and says what its figures say."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from agentgym_trainers.chat import ChatFormat
from benchmarks.trainer import MODELS, BenchmarkError, Figures, ratios, table, warm_start
from benchmarks.trainer_task import (
    HEAVY_MOST_S,
    HEAVY_SCALE_S,
    HEAVY_SHAPE,
    BenchmarkCalculator,
    operations,
    wait,
    write_tokenizer,
)


def figures(seconds: float, rewards: tuple[float, ...] = (0.2, 0.4, 0.6)) -> Figures:
    step = {
        "seconds": seconds, "cpu": seconds / 2, "rollout": seconds * 3 / 4, "learn": seconds / 4, "sampled": 1000.0,
        "trained": 500.0,
    }  # fmt: skip
    return Figures([{**step, "reward": one} for one in rewards], peak_mb=100 * seconds)


def test_demonstrations_are_played_as_they_would_be_by_a_model(tmp_path: Path) -> None:
    env = BenchmarkCalculator(latency="0")
    chat = ChatFormat(write_tokenizer(tmp_path))
    task = next(iter(env.tasks))
    env.reset(seed=0, options={"task": task})
    solved = []
    for seed in range(6):
        env.reset(seed=seed, options={"task": task})
        for line in env.demonstration(task, np.random.default_rng(seed)):
            _, reward, terminated, truncated, _ = env.step(chat.parse(chat.answer(line)))
        assert terminated or truncated
        solved.append(reward)
    assert set(solved) == {0.0, 1.0}


def test_heavy_tails_and_plain_latencies_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("benchmarks.trainer_task.time.sleep", waited.append)
    random.seed(0)
    for latency in ("0", "0.05", *["heavy"] * 400):
        wait(latency)
    assert waited[0] == 0.05
    heavy = np.array(waited[1:])
    assert len(heavy) == 400
    assert heavy.min() >= HEAVY_SCALE_S
    assert heavy.max() <= HEAVY_MOST_S
    assert (heavy > 10 * HEAVY_SCALE_S).mean() == pytest.approx(10**-HEAVY_SHAPE, abs=0.05)  # Pareto's tail


def test_a_latency_that_is_no_number_is_no_latency() -> None:
    env = BenchmarkCalculator(latency="nonsense")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="nonsense"):
        env.step('<tool_call>\n{"name": "calc", "arguments": {"expression": "1+2"}}\n</tool_call>')


def test_a_warm_start_is_used_again_for_its_own_model_and_episodes_alone(tmp_path: Path) -> None:
    small, large = MODELS["0.5M"], MODELS["25M"]
    kept = {"reward": 0.4, "parameters": 1, **asdict(small)}
    (tmp_path / "warm.json").write_text(json.dumps(kept))
    assert warm_start(Path(sys.executable), tmp_path, small, threads=1) == kept
    for model in (large, replace(small, steps=299), replace(small, operators=3)):
        with pytest.raises(BenchmarkError, match=rf"warm start by {model.steps} steps .* new folder with --warm"):
            warm_start(Path(sys.executable), tmp_path, model, threads=1)


def test_expressions_are_told_operation_by_operation() -> None:
    env = BenchmarkCalculator(operators=3)
    task = next(iter(env.tasks))
    prompt, _ = env.reset(options={"task": task})
    first, *later = operations(task.public.prompt)
    assert "".join([first, *later]) == task.public.prompt
    assert len(later) == 2
    assert prompt[-1].content == first
    said = first
    for term in [*later, ""]:
        observation, *_ = env.step(
            f'<tool_call>\n{{"name": "calc", "arguments": {{"expression": "{said}"}}}}\n</tool_call>'
        )
        said = observation[-1].content
        assert said.endswith(term)
    assert env.step(said)[1] == 1.0


def test_ratios_compare_the_better_of_our_schedules_with_the_better_of_their_modes() -> None:
    found = {
        "0.05": {
            "ours, in turns": figures(2.0),
            "ours, overlapping": figures(1.0),
            "TRL": figures(6.0),
            "TRL, vLLM": figures(7.0),
        },
        "heavy": {"ours, in turns": figures(3.0), "ours, overlapping": figures(2.0)},
    }
    made = ratios(found)
    rows = list(zip(*(column.cells for column in made.columns), strict=True))
    assert rows == [
        ("TRL's step against ours, tools 0.05 s", ">= 5", "6.00", "met"),
        ("a step in turns against one that overlaps, heavy-tailed tools", ">= 1.6", "1.50", "MISSED"),
    ]
    assert table(found).row_count == 6


def test_figures_leave_out_first_steps_except_from_the_time_that_led_to_a_reward() -> None:
    one = replace(figures(2.0, rewards=(0.1, 0.2, 0.4, 0.6)), skip=2)
    assert len(one.steps) == 2
    assert one.sampled_per_cpu_second == pytest.approx(1000.0)
    assert one.sampled_per_second == pytest.approx(2000 / 3)
    assert one.trained_per_second == pytest.approx(1000.0)
    assert one.total == 8.0
    found = [one.reward_after(seconds) for seconds in (1.9, 2.0, 5.9, 6.0, 99.0)]
    assert found == [None, *(pytest.approx(mean) for mean in (0.1, 0.15, 0.7 / 3, 0.4))]


def test_rewards_are_compared_after_the_same_time() -> None:
    slow = figures(9.0)
    made = table({"0": {"quick": figures(2.0), "slow": slow, "half": figures(3.0)}})
    assert list(made.columns[-1].cells) == ["0.40 after 6 s", "no step in 6 s", "0.30 after 6 s"]


def test_sampling_is_compared_with_each_of_their_modes() -> None:
    found = {
        "0": {
            "ours, in turns": figures(1.0),
            "ours, overlapping": figures(4.0),
            "TRL": figures(8.0),
            "TRL, vLLM": figures(2.0),
        }
    }
    made = ratios({**found, "heavy": {name: figures(2.0) for name in ("ours, in turns", "ours, overlapping")}})
    rows = list(zip(*(column.cells for column in made.columns), strict=True))
    assert rows[:5] == [
        ("TRL's step against ours, tools 0 s", ">= 2", "2.00", "met"),
        ("sampled tokens per CPU second in turns against TRL's", ">= 3", "8.00", "met"),
        ("sampled tokens per CPU second in turns against TRL, vLLM's", ">= 1.2", "2.00", "met"),
        ("trained tokens per second against TRL's", ">= 1.3", "2.00", "met"),
        ("TRL's peak memory against ours", ">= 1.25", "2.00", "met"),
    ]
