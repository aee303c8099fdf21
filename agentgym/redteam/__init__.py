"""Attacks that every environment can be put to, made from its own graders and its oracle, and what became of them."""

from agentgym.redteam.attack import FAMILIES, Attack, Danger, Family, Outcome, Target
from agentgym.redteam.harness import attacks_on, chosen, isolated, run, target_of

__all__ = [
    "FAMILIES",
    "Attack",
    "Danger",
    "Family",
    "Outcome",
    "Target",
    "attacks_on",
    "chosen",
    "isolated",
    "run",
    "target_of",
]
