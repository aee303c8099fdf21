"""What OpenRLHF takes from an agent: one dictionary per attempt, with tokens, what was sampled, and one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from agentgym.errors import RecipeError
from agentgym.rewards import Rewards
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Group, Trajectory
from agentgym_trainers.demonstrations import train_context


@dataclass(frozen=True, slots=True)
class Price:
    """What one attempt is worth to OpenRLHF, which knows no step rewards, and no attempts that train nothing."""

    outcome: float
    step: float
    """Sum of the step rewards."""
    score: float
    """The verdict's value: what dynamic filtering compares."""
    keep: bool
    instead: float | None = None
    """What OpenRLHF is given in place of the return, for an attempt that counts and of which nothing is trained."""

    @property
    def reward(self) -> float:
        """The number that OpenRLHF compares with the siblings': the return, unless there is another."""
        return self.outcome + self.step if self.instead is None else self.instead


def prices(group: Group, rewards: Rewards) -> list[Price]:
    """Return the price of each attempt of a group that is trained.

    OpenRLHF takes mean and standard deviation over all attempts of a group. One of which nothing is trained, because it
    does not count or never came to speak, is given the mean of the others, so that the mean stays what it is without
    it, and its own advantage is 0.
    """
    steps = [sum(step) for step in rewards.step]
    values = [one.verdict.value if one.verdict else None for one in group.trajectories]
    kept = [index for index, keep in enumerate(rewards.keep) if keep]
    trained = [index for index in kept if _spoke(group.trajectories[index])]
    filled = Price(
        _mean([rewards.outcome[index] for index in trained]),
        _mean([steps[index] for index in trained]),
        _mean([value for index in kept if (value := values[index]) is not None]),
        keep=False,
    )

    def price(index: int, keep: bool) -> Price:
        if not keep:
            return filled
        value = values[index]
        own = Price(rewards.outcome[index], steps[index], filled.score if value is None else value, keep=True)
        return own if index in trained else replace(own, instead=filled.reward)

    return [price(index, keep) for index, keep in enumerate(rewards.keep)]


def lost(count: int, value: float = 0.0) -> list[Price]:
    """Return the prices of a group of which nothing counts."""
    return [Price(value, 0.0, value, keep=False)] * count


def passes(group: Group) -> list[Price]:
    """Return 1 for each attempt that passed and 0 for each that did not, so that means of rewards are pass rates.

    An unscored attempt is given the mean of the scored ones; where there are none, the rate is not a number.
    """
    filled = _mean([float(one.passed) for one in group.scored], default=math.nan)
    values = [float(one.passed) if one.scored else filled for one in group.trajectories]
    return [Price(value, 0.0, value, one.scored) for value, one in zip(values, group.trajectories, strict=True)]


def training_sample(one: Trajectory | None, price: Price, filler: Sequence[int], *, logprobs: bool) -> dict[str, Any]:
    """Return the sample of an attempt of a training group.

    Args:
        one: the attempt; None where none could begin.
        price: what it is worth.
        filler: two token ids, for an attempt that trains nothing.
        logprobs: whether the behaviour's logprobs are wanted.

    Raises:
        HeldOutError: the task is not in the train split.
        RecipeError: the attempt has several rows.
    """
    context = train_context(one) if one is not None else TokenBuffer()
    if context.forks:
        raise RecipeError(
            "the chat template rewrites earlier turns, so that an attempt has several rows, and OpenRLHF takes one; "
            "say trainer.chat.thinking: keep"
        )
    if not price.keep or not context.sampled_count:
        return _sample(one, price, list(filler), [(1, 2)], [0.0, 0.0] if logprobs else None)
    # What nobody answered to is not trained; it would only cost memory.
    last = max(place for place, kind in enumerate(context.kinds) if kind == TokenKind.SAMPLED) + 1
    ranges = _spans(context.kinds[:last])
    return _sample(one, price, context.ids[:last], ranges, context.logprobs[:last] if logprobs else None)


def evaluation_sample(one: Trajectory | None, price: Price, filler: Sequence[int], *, logprobs: bool) -> dict[str, Any]:
    """Return the sample of a held-out attempt: its figures, and none of its tokens."""
    return _sample(one, price, list(filler), [], [0.0, 0.0] if logprobs else None)


def _sample(
    one: Trajectory | None, price: Price, ids: list[int], ranges: list[tuple[int, int]], logprobs: list[float] | None
) -> dict[str, Any]:
    return {
        "observation_tokens": ids,
        "action_ranges": ranges,
        "rollout_log_probs": logprobs,
        "reward": price.reward,
        "scores": price.score,
        "truncated": one is not None and price.keep and _truncated(one),
        "mm_train_inputs": None,
        "extra_logs": _logs(one, price),
    }


def _logs(one: Trajectory | None, price: Price) -> dict[str, float]:
    """Return the same names for every sample; the pass rate is the mean of `passed` over that of `scored`."""
    return {
        "outcome": price.outcome,
        "step_reward": price.step,
        "kept": float(price.keep),
        "scored": float(one is not None and one.scored),
        "passed": float(one is not None and one.passed),
        "turns": float(len(one.turns)) if one is not None else 0.0,
        "sampled_tokens": float(one.tokens.sampled_count) if one is not None and one.tokens is not None else 0.0,
        "hinted": float(one is not None and one.hint is not None),
        "infrastructure": float(one is None or one.end == "infrastructure"),
    }


def _spoke(one: Trajectory) -> bool:
    """Whether anything was sampled: a prompt may leave no room for it."""
    return one.tokens is not None and bool(one.tokens.sampled_count)


def _truncated(one: Trajectory) -> bool:
    """Whether the last turn was cut, or none could follow it for want of tokens."""
    return one.end in ("tokens", "context") or (bool(one.turns) and one.turns[-1].stop_reason == "length")


def _spans(kinds: Sequence[int]) -> list[tuple[int, int]]:
    """Return where runs of sampled tokens begin and end.

    >>> _spans([0, 1, 1, 0, 1])
    [(1, 3), (4, 5)]
    """
    spans, place = [], 0
    for sampled, run in groupby(kind == TokenKind.SAMPLED for kind in kinds):
        length = len(list(run))
        if sampled:
            spans.append((place, place + length))
        place += length
    return spans


def _mean(values: Sequence[float], default: float = 0.0) -> float:
    return math.fsum(values) / len(values) if values else default
