"""What a step says about itself, as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.rewards import Rewards
from agentgym.types import Group, Trajectory, count_by_end, pass_rate

Metrics = dict[str, float]


def rollout_metrics(groups: Sequence[Group], rewards: Sequence[Rewards]) -> Metrics:
    """Describe one step's attempts; outcome and step reward parting ways means that the reward is being gamed."""
    attempts = [one for group in groups for one in group.trajectories]
    kept = [
        (outcome, sum(step))
        for one in rewards
        for outcome, step, keep in zip(one.outcome, one.step, one.keep, strict=True)
        if keep
    ]
    flat = sum(len({round(value, 9) for value in _kept_returns(one)}) <= 1 for one in rewards)
    sampled = sum(one.tokens.sampled_count for one in attempts if one.tokens is not None)
    metrics = {
        "rollout/reward": _mean([outcome + step for outcome, step in kept]),
        "rollout/outcome": _mean([outcome for outcome, _ in kept]),
        "rollout/step_reward": _mean([step for _, step in kept]),
        "rollout/pass_rate": pass_rate(attempts),
        "rollout/turns": _mean([len(one.turns) for one in attempts]),
        "rollout/sampled_tokens": float(sampled),
        "rollout/groups_without_signal": flat / len(groups),
        "rollout/groups_guided": sum(group.guided for group in groups) / len(groups),
        "rollout/unscored": 1 - len(kept) / len(attempts),
    }
    metrics |= _noise_metrics(attempts)
    return metrics | {f"end/{name}": count / len(attempts) for name, count in count_by_end(attempts).items()}


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
    return sum(values) / len(values) if values else 0.0
