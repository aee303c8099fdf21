"""Reward schemes: pure functions from a group's signals and verdicts to outcome and step rewards."""

from agentgym.rewards.base import (
    AttemptScheme,
    LadderScheme,
    Price,
    Rewards,
    RewardScheme,
    Scheme,
    settlement,
)
from agentgym.rewards.checks import check_appeals, check_levels, check_signals
from agentgym.rewards.components import FlawPenalty, RubricGated, WeightedPartial
from agentgym.rewards.gated import GatedRewards, OutcomeOnly, UngatedSum
from agentgym.rewards.noisy import BackwardCorrection, ForwardCorrection
from agentgym.rewards.process import ClipDelta, MinForm, ReNorm
from agentgym.rewards.siblings import LengthPenalty, ProcessFilter, ToolContrast
from agentgym.rewards.subgoals import SubGoals

__all__ = [
    "AttemptScheme",
    "BackwardCorrection",
    "ClipDelta",
    "FlawPenalty",
    "ForwardCorrection",
    "GatedRewards",
    "LadderScheme",
    "LengthPenalty",
    "MinForm",
    "OutcomeOnly",
    "Price",
    "ProcessFilter",
    "ReNorm",
    "RewardScheme",
    "Rewards",
    "RubricGated",
    "Scheme",
    "SubGoals",
    "ToolContrast",
    "UngatedSum",
    "WeightedPartial",
    "check_appeals",
    "check_levels",
    "check_signals",
    "settlement",
]
