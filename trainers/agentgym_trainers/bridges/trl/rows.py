"""What TRL is told of an episode: one row of tokens and one reward."""

from __future__ import annotations

from dataclasses import dataclass

from agentgym.rewards import RewardScheme
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Group


@dataclass(frozen=True, slots=True)
class Row:
    """One completion as `rollout_func` returns it; the last three are of the completion's length."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """From the first token that was sampled to the last."""
    logprobs: list[float]
    """Natural, of the distribution that was sampled from; 0.0 where nothing was sampled."""
    env_mask: list[int]
    """1 where a sampled token is to be trained."""


def row_of(tokens: TokenBuffer, *, end_id: int, learn: bool) -> Row:
    """Return an episode's row.

    What was observed after the last sampled token is left out: nothing depends on it, and TRL takes a completion that
    does not end in a stop token for a truncated one.

    Args:
        tokens: the train context, of one row.
        end_id: stands for the completion where nothing was sampled, which TRL could not take; masked.
        learn: False masks every token, so that the episode has no part in the loss or in what it is divided by.

    Raises:
        ValueError: the buffer has forks.
    """
    if tokens.forks:
        raise ValueError("TRL takes one row per completion, found a forked one; keep earlier thoughts in the context")
    sampled = tokens.mask(TokenKind.SAMPLED)
    if True not in sampled:
        return Row(list(tokens.ids) or [end_id], [end_id], [0.0], [0])
    first, stop = sampled.index(True), len(sampled) - sampled[::-1].index(True)
    mask = [int(learn and one) for one in sampled[first:stop]]
    return Row(tokens.ids[:first], tokens.ids[first:stop], tokens.logprobs[first:stop], mask)


def prices(scheme: RewardScheme, group: Group) -> list[float | None]:
    """Return the return of each attempt of a group; None, which TRL leaves out of statistics, where there is none."""
    rewards = scheme(group)
    return [value if keep else None for value, keep in zip(rewards.returns, rewards.keep, strict=True)]
