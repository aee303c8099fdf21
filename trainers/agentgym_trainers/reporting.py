"""What a step says about itself, as plain numbers."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch

from agentgym.rewards import Rewards, RewardScheme
from agentgym.types import EndReason, Group, Trajectory, count_by_end, pass_rate

Metrics = dict[str, float]
_INSTANT = 1e-9


class Stopwatch:
    """Measures the laps of a step, one of which is `learn`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start; the clock tells seconds."""
        self._clock = clock
        self._began = self._last = clock()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a lap."""
        now = self._clock()
        self._laps[name], self._last = now - self._last, now

    def metrics(self, step: Mapping[str, float], flops: float = 0.0, peak: float | None = None) -> Metrics:
        """Return the seconds of each lap and of the whole, and what was done in each of them.

        Args:
            step: metrics of the step: the tokens that it sampled, if it did, and those that it trained.
            flops: floating-point operations while it learned.
            peak: operations per second of all devices; None where it is not known.
        """
        whole = max(self._clock() - self._began, _INSTANT)
        learning = max(self._laps["learn"], _INSTANT)
        found = {**{f"seconds/{name}": value for name, value in self._laps.items()}, "seconds/step": whole}
        if "rollout/sampled_tokens" in step:
            found["speed/sampled_tokens"] = step["rollout/sampled_tokens"] / whole
        found["speed/trained_tokens"] = step.get("train/tokens", step.get("sft/tokens", 0.0)) / learning
        if peak is not None and not math.isnan(flops):
            found["speed/mfu"] = flops / learning / peak
        return found


def unaided_rewards(groups: Sequence[Group], rewards: Sequence[Rewards], scheme: RewardScheme) -> list[Rewards]:
    """Return what attempts without a hint are worth, priced as if there had been no others, for groups that have any.

    Args:
        groups: what was sampled.
        rewards: of each group's trained attempts.
        scheme: what priced them.
    """
    return [
        scheme(Group(group.task_id, group.unaided)) if group.guided or group.replaced else priced
        for group, priced in zip(groups, rewards, strict=True)
        if group.unaided
    ]


def rollout_metrics(
    groups: Sequence[Group],
    rewards: Sequence[Rewards],
    difficulties: Mapping[str, str] | None = None,
    unaided: Sequence[Rewards] = (),
) -> Metrics:
    """Describe one step's attempts; outcome and step reward parting ways means that the reward is being gamed.

    What the policy achieves is measured on attempts without a hint, where there are any: those that hinted ones stand
    in for have failed, and without them a run would look the better the more of it fails.

    Args:
        groups: what was sampled.
        rewards: of each group's trained attempts.
        difficulties: what `difficulties_of` calls those of tasks, for a pass rate of each.
        unaided: what `unaided_rewards` returns; where it is empty, the trained attempts' rewards are taken.
    """
    attempts = [one for group in groups for one in group.trajectories]
    ended = [one for group in groups for one in group.ended]
    shown = _shown(groups)
    tried = [one for some in shown for one in some]
    own = _kept(unaided or rewards)
    sampled = sum(one.tokens.sampled_count for one in attempts if one.tokens is not None)
    turns = [turn for one in attempts for turn in one.turns]
    metrics = {
        "rollout/reward": _mean([outcome + step for outcome, step in _kept(rewards)]),
        "rollout/outcome": _mean([outcome for outcome, _ in own]),
        "rollout/step_reward": _mean([step for _, step in own]),
        "rollout/pass_rate": pass_rate(tried),
        "rollout/turns": _mean([len(one.turns) for one in attempts]),
        "rollout/sampled_tokens": float(sampled),
        "rollout/truncated": _mean([float(turn.stop_reason == "length") for turn in turns]),
        "rollout/groups_guided": sum(group.guided for group in groups) / len(groups),
        "rollout/unscored": _mean([float(not one.scored) for one in ended]),
        "rollout/infrastructure": _mean([float(one.end == "infrastructure") for one in ended]),
    }
    metrics |= _signal_metrics(rewards) | _noise_metrics(tried) | _by_difficulty(groups, shown, difficulties or {})
    ends = count_by_end(ended)
    # Nobody's end is 0 and not silence: a rule about one must see that it is over.
    return metrics | {f"end/{name}": ends.get(name, 0) / len(ended) for name in get_args(EndReason)}


def resources(device: str) -> Metrics:
    """Return the peak memory of this process so far, and on a GPU of what is allocated there."""
    found = {"memory/resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.device(device).type == "cuda":
        found["memory/device_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found


def _shown(groups: Sequence[Group]) -> list[list[Trajectory]]:
    """Return the attempts of each group that show what the policy can do."""
    unaided = [group.unaided for group in groups]
    return unaided if any(unaided) else [group.trajectories for group in groups]


def _kept(rewards: Sequence[Rewards]) -> list[tuple[float, float]]:
    """Return the outcome of each attempt that counts, and the sum of its step rewards."""
    return [
        (outcome, sum(step))
        for one in rewards
        for outcome, step, keep in zip(one.outcome, one.step, one.keep, strict=True)
        if keep
    ]


def _signal_metrics(rewards: Sequence[Rewards]) -> Metrics:
    """Return how many groups teach nothing to who compares siblings; nothing where no attempt has any."""
    flat = [
        len({round(outcome + step, 9) for outcome, step in _kept([one])}) <= 1 for one in rewards if len(one.keep) > 1
    ]
    return {"rollout/groups_without_signal": sum(flat) / len(flat)} if flat else {}


def _by_difficulty(
    groups: Sequence[Group], shown: Sequence[Sequence[Trajectory]], difficulties: Mapping[str, str]
) -> Metrics:
    bands: dict[str, list[Trajectory]] = {}
    for group, attempts in zip(groups, shown, strict=True):
        if group.task_id in difficulties:
            bands.setdefault(difficulties[group.task_id], []).extend(attempts)
    return {f"rollout/difficulty_{name}": pass_rate(band) for name, band in sorted(bands.items())}


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


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing, because what was not measured is no 0."""
    return sum(values) / len(values) if values else math.nan
