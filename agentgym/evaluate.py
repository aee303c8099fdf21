"""Held-out evaluation: pass@1 and pass@k with their intervals, from attempts that were really scored."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from agentgym.difficulty import difficulties_of
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError
from agentgym.guidance import RolloutRequest
from agentgym.policy import Policy
from agentgym.rollout import Limits, Rollouts
from agentgym.run import RunDirectory
from agentgym.sampling import derive_seed
from agentgym.stats import Count, Estimate, mean_pass_at_k
from agentgym.task import Task
from agentgym.types import Group, Record, Trajectory, Trust, count_by_end

REPORT = "report.json"
_WEAKEST_LAST = list(Trust)


class PassAtK(Record):
    """The chance that at least one of k attempts passes: mean over tasks with its 95% interval; None if unknown."""

    k: int
    value: float | None
    low: float | None
    high: float | None
    tasks: int
    """How many tasks it rests on."""
    left_out: int
    """Tasks with fewer than k scored attempts."""

    @classmethod
    def of(cls, k: int, counts: Sequence[Count]) -> Self:
        """Estimate from the counts of all tasks."""
        found = mean_pass_at_k(counts, k)
        value, low, high = (None if math.isnan(one) else one for one in (found.value, found.low, found.high))
        return cls(k=k, value=value, low=low, high=high, tasks=found.tasks, left_out=found.left_out)

    def __str__(self) -> str:
        known = [math.nan if one is None else one for one in (self.value, self.low, self.high)]
        return str(Estimate(known[0], known[1], known[2], self.tasks, self.left_out))


class Report(Record):
    """What an evaluation found."""

    attempts: int
    """Per task."""
    tasks: int
    splits: dict[str, int]
    """Tasks per split; a number that rests on the train split is no held-out number."""
    scored: int
    unscored: int
    """Attempts that infrastructure or the verifier lost: left out everywhere, never zeros."""
    pass_at: tuple[PassAtK, ...]
    by_difficulty: dict[str, PassAtK]
    """pass@1 per difficulty, or per band of difficulties where there are many, for tasks that name theirs."""
    by_end: dict[str, int]
    by_level: dict[str, int]
    trust: Trust | None
    """The weakest trust of all verdicts; None if nothing was scored."""
    mean_turns: float
    mean_sampled_tokens: float | None
    """None for scripts; what an endpoint sampled is what it said it did."""
    mean_seconds: float
    errors: dict[str, int]
    """Why attempts are unscored, the most frequent reasons."""

    @property
    def held_out(self) -> bool:
        """Whether no task of the train split took part."""
        return "train" not in self.splits

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """Return the figures that a tracker logs."""
        found = {"unscored": float(self.unscored), "turns": self.mean_turns}
        for one in self.pass_at:
            for name, value in (("", one.value), ("_low", one.low), ("_high", one.high)):
                found[f"pass@{one.k}{name}"] = math.nan if value is None else value
        for difficulty, band in self.by_difficulty.items():
            found[f"difficulty_{difficulty}"] = math.nan if band.value is None else band.value
        return {prefix + name: value for name, value in found.items()}


async def attempt_all(
    make_env: Callable[[], AgentEnv],
    tasks: Iterable[Task],
    policy: Policy,
    *,
    attempts: int = 1,
    limits: Limits | None = None,
    seed: int = 0,
    on_done: Callable[[Trajectory], None] | None = None,
    gate: asyncio.Semaphore | None = None,
) -> list[Group]:
    """Run `attempts` episodes of every task; the same seed gives the same episodes their seeds.

    A `gate` bounds how many episodes of several calls run at once.
    """
    requests = [RolloutRequest(task, attempts, derive_seed(seed, "evaluation")) for task in tasks]
    return await Rollouts(make_env, policy, limits, on_done, gate=gate).run(requests)


def evaluate(
    make_env: Callable[[], AgentEnv],
    tasks: Iterable[Task],
    policy: Policy,
    *,
    attempts: int = 1,
    limits: Limits | None = None,
    seed: int = 0,
    on_done: Callable[[Trajectory], None] | None = None,
    run: RunDirectory | None = None,
) -> Report:
    """Attempt every task and report; with a run directory, keep the report and the trajectories there."""
    chosen = list(tasks)
    groups = asyncio.run(
        attempt_all(make_env, chosen, policy, attempts=attempts, limits=limits, seed=seed, on_done=on_done)
    )
    report = summarise(chosen, groups, attempts=attempts)
    if run is not None:
        run.write_trajectories(0, groups)
        run.write_json(REPORT, report)
    return report


def summarise(tasks: Sequence[Task], groups: Sequence[Group], *, attempts: int) -> Report:
    """Return the report of one group per task.

    Raises:
        AgentgymError: if noise was injected into a verdict.
    """
    noisy = next((item for one in groups for item in one.trajectories if item.verdict and item.verdict.noise), None)
    if noisy is not None:
        raise AgentgymError(
            f"the verdict on {noisy.task_id!r} was given under injected noise, which belongs to training only; "
            "evaluate with an environment whose `review` is None"
        )
    counts = [Count(len(one.scored), sum(item.passed for item in one.scored)) for one in groups]
    all_attempts = [item for one in groups for item in one.trajectories]
    verdicts = [one.verdict for one in all_attempts if one.scored and one.verdict]
    lost = [one.error or "no reason given" for one in all_attempts if not one.scored]
    sampled = [count for one in all_attempts if (count := _sampled(one)) is not None]
    return Report(
        attempts=attempts,
        tasks=len(tasks),
        splits=dict(Counter(task.split for task in tasks)),
        scored=len(verdicts),
        unscored=len(lost),
        pass_at=tuple(PassAtK.of(2**power, counts) for power in range(attempts.bit_length())),
        by_difficulty=_by_difficulty(tasks, counts),
        by_end=count_by_end(all_attempts),
        by_level=dict(Counter(one.level for one in verdicts)),
        trust=max((one.trust for one in verdicts), key=_WEAKEST_LAST.index, default=None),
        mean_turns=_mean([float(len(one.turns)) for one in all_attempts]),
        mean_sampled_tokens=_mean(sampled) if sampled else None,
        mean_seconds=_mean([one.seconds for one in all_attempts]),
        errors=dict(Counter(lost).most_common(5)),
    )


def _sampled(one: Trajectory) -> float | None:
    if one.tokens is not None:
        return float(one.tokens.sampled_count)
    told = one.extra.get("sampled_tokens")
    return float(told) if isinstance(told, int) else None


def _by_difficulty(tasks: Sequence[Task], counts: Sequence[Count]) -> dict[str, PassAtK]:
    of = {task.id: count for task, count in zip(tasks, counts, strict=True)}
    bands: dict[str, list[Count]] = {}
    for name, band in difficulties_of(tasks).items():
        bands.setdefault(band, []).append(of[name])
    return {band: PassAtK.of(1, found) for band, found in bands.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
