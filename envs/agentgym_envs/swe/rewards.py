"""The ladder of outcomes of software engineering, and which steps count above its gate (G-RA)."""

from __future__ import annotations

from agentgym.rewards import GatedRewards

LEVELS = ("no_submission", "empty", "malformed", "broken", "failed", "passed")
"""Worst first: nothing handed in; nothing changed; no diff that fits; tests cannot run; wrong; right."""

G_RA = GatedRewards(
    ladder={"no_submission": -1.0, "empty": -0.5, "malformed": -0.5, "broken": -0.25, "failed": 0.0, "passed": 1.0},
    threshold=-0.25,
    step_weights={"found_gold": 0.05, "touches_gold": 0.1, "fail_to_pass": 0.2, "pass_to_pass": 0.05},
)
"""Gated rewards (Stabilizing Long-term Multi-turn Reinforcement Learning with Gated Rewards): the gate opens for every
real change, right or wrong, and stays shut for none and for an empty one. The values are ours, the paper gives none.

Each weighted signal adds up to at most 1 over an episode, so that no repetition pays; all steps of a wrong attempt are
worth at most 0.4, and a right one 1 more.
"""
