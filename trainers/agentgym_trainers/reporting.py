"""What a step says about itself, as plain numbers."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import torch

from agentgym.rewards import Rewards
from agentgym.task import Task
from agentgym.types import EndReason, Group, Trajectory, count_by_end, pass_rate

Metrics = dict[str, float]
_DIFFICULTIES = 12


class Stopwatch:
    """Measures the laps of a step."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.monotonic()
        self._laps[name], self._last = now - self._last, now

    def metrics(self, step: Mapping[str, float]) -> Metrics:
        """Return the seconds of each lap and of the whole, and the tokens per second that a step's metrics make."""
        whole = time.monotonic() - self._began
        return {
            **{f"seconds/{name}": value for name, value in self._laps.items()},
            "seconds/step": whole,
            "speed/sampled_tokens": step["rollout/sampled_tokens"] / whole,
            "speed/trained_tokens": step.get("train/tokens", 0.0) / max(self._laps["learn"], 1e-9),
        }


def rollout_metrics(
    groups: Sequence[Group], rewards: Sequence[Rewards], difficulties: Mapping[str, float] | None = None
) -> Metrics:
    """Describe one step's attempts; outcome and step reward parting ways means that the reward is being gamed.

    Args:
        groups: what was sampled.
        rewards: of each group.
        difficulties: of tasks, by id, for a pass rate of each.
    """
    attempts = [one for group in groups for one in group.trajectories]
    kept = [
        (outcome, sum(step))
        for one in rewards
        for outcome, step, keep in zip(one.outcome, one.step, one.keep, strict=True)
        if keep
    ]
    flat = sum(len({round(value, 9) for value in _kept_returns(one)}) <= 1 for one in rewards)
    sampled = sum(one.tokens.sampled_count for one in attempts if one.tokens is not None)
    turns = [turn for one in attempts for turn in one.turns]
    metrics = {
        "rollout/reward": _mean([outcome + step for outcome, step in kept]),
        "rollout/outcome": _mean([outcome for outcome, _ in kept]),
        "rollout/step_reward": _mean([step for _, step in kept]),
        "rollout/pass_rate": pass_rate(attempts),
        "rollout/turns": _mean([len(one.turns) for one in attempts]),
        "rollout/sampled_tokens": float(sampled),
        "rollout/truncated": _mean([float(turn.stop_reason == "length") for turn in turns]),
        "rollout/groups_without_signal": flat / len(groups),
        "rollout/groups_guided": sum(group.guided for group in groups) / len(groups),
        "rollout/unscored": _mean([float(not one.scored) for one in attempts]),
        "rollout/infrastructure": _mean([float(one.end == "infrastructure") for one in attempts]),
    }
    metrics |= _noise_metrics(attempts) | _by_difficulty(groups, difficulties or {})
    ends = count_by_end(attempts)
    # Nobody's end is 0 and not silence: a rule about one must see that it is over.
    return metrics | {f"end/{name}": ends.get(name, 0) / len(attempts) for name in get_args(EndReason)}


def resources(device: str) -> Metrics:
    """Return the peak memory of this process so far, and on a GPU of what is allocated there."""
    found = {"memory/resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.device(device).type == "cuda":
        found["memory/device_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def difficulties_of(tasks: Iterable[Task]) -> dict[str, float]:
    """Return the difficulty of each task, by id, if there are few enough different ones to tell apart in curves."""
    found = {task.id: task.difficulty for task in tasks if task.difficulty is not None}
    return found if len(set(found.values())) <= _DIFFICULTIES else {}


def _by_difficulty(groups: Sequence[Group], difficulties: Mapping[str, float]) -> Metrics:
    bands: dict[float, list[Trajectory]] = {}
    for group in groups:
        if group.task_id in difficulties:
            bands.setdefault(difficulties[group.task_id], []).extend(group.trajectories)
    return {f"rollout/difficulty_{band:g}": pass_rate(bands[band]) for band in sorted(bands)}


def _noise_metrics(attempts: Sequence[Trajectory]) -> Metrics:
    """Return how much of the pass rate is injected noise, and how many verdicts were appealed, where any were."""
    verdicts = [one.verdict for one in attempts if one.verdict is not None and one.scored]
    noises = [one.noise for one in verdicts if one.noise is not None]
    found: Metrics = {}
    if noises:
        found["noise/flipped"] = _mean([float(one.flipped) for one in noises])
        clean = [float(one.passed if one.noise is None else one.noise.clean_value == 1.0) for one in verdicts]
        found["noise/clean_pass_rate"] = _mean(clean)
    if any(one.appeal is not None for one in verdicts):
        found["noise/appealed"] = _mean([float(one.appeal is not None) for one in verdicts])
    return found


def _kept_returns(rewards: Rewards) -> list[float]:
    return [value for value, keep in zip(rewards.returns, rewards.keep, strict=True) if keep]


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing, because what was not measured is no 0."""
    return sum(values) / len(values) if values else math.nan
