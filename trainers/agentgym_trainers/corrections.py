"""Advantage estimators are tried out before a run, and refused where they would silently teach nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym_trainers.advantages import Credit

_TOLERANCE = 1e-3
_ADVICE = {
    "scale": "choose grpo with std: none or batch, or rloo",
    "shift": "choose reinforce",
}


def refuse_cancellation(scheme: Any, advantage: str, estimate: Callable[[Credit], Tensor]) -> None:
    """Refuse an estimator under which a scheme's correction has no effect.

    A group-wise standard deviation divides out any `scale` of a group's rewards, and with it backward correction; a
    group mean takes away any `shift`, and with it forward correction. The estimator is tried on two groups of which
    one is moved that way: if the advantages stay what they were, it cancels. A critic learns what a group is worth,
    so an estimator that takes its values cancels any shift.

    Args:
        scheme: what names in `cancelled_by` the change that it depends on; other schemes pass.
        advantage: the estimator's name.
        estimate: the estimator, options included, and the values of a critic that knows nothing where it takes some.

    Raises:
        RecipeError: naming an estimator that keeps the correction.
    """
    change: Literal["scale", "shift"] | None = getattr(scheme, "cancelled_by", None)
    if change is None:
        return
    plain = _two_groups()
    second_B = plain.group_B == 1
    moved_B = plain.outcome_B * 3 if change == "scale" else plain.outcome_B + 3
    moved = replace(plain, outcome_B=torch.where(second_B, moved_B, plain.outcome_B))
    learned = change == "shift" and "value_BL" in signature(registry.lookup("advantages", advantage)).parameters
    if learned or bool((estimate(plain) - estimate(moved)).abs().max() < _TOLERANCE):
        raise RecipeError(
            f"the advantage {advantage!r} cancels the {type(scheme).__name__} of noisy rewards, because it is blind to "
            f"a group's {change}; {_ADVICE[change]}"
        )


def refuse_loneliness(advantage: str, estimate: Callable[[Credit], Tensor]) -> None:
    """Refuse an estimator that compares siblings where every task is attempted once.

    Raises:
        RecipeError: attempts without siblings would all get the advantage 0.
    """
    lone = replace(_two_groups(), group_B=torch.arange(6))
    if not bool(estimate(lone).any()):
        raise RecipeError(
            f"the advantage {advantage!r} compares attempts at one task, found trainer.policy.attempts 1; "
            "wanted at least 2, or an advantage without siblings, such as gae"
        )


def _two_groups() -> Credit:
    """Return two groups of three attempts with one sampled token each, one attempt of three right."""
    return Credit(
        outcome_B=torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
        step_BT=torch.zeros(6, 1),
        keep_B=torch.ones(6, dtype=torch.bool),
        group_B=torch.tensor([0, 0, 0, 1, 1, 1]),
        turn_BL=torch.zeros(6, 1, dtype=torch.long),
        sampled_BL=torch.ones(6, 1, dtype=torch.bool),
    )
