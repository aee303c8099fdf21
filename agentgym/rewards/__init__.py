"""Reward schemes: pure functions from a group's signals and verdicts to outcome and step rewards."""

from agentgym.rewards.base import (
    LadderScheme,
    Price,
    Rewards,
    RewardScheme,
    Scheme,
    check_levels,
    check_signals,
    settlement,
)
from agentgym.rewards.gated import GatedRewards, OutcomeOnly, UngatedSum

__all__ = [
    "GatedRewards",
    "LadderScheme",
    "OutcomeOnly",
    "Price",
    "RewardScheme",
    "Rewards",
    "Scheme",
    "UngatedSum",
    "check_levels",
    "check_signals",
    "settlement",
]
