"""Schemes that do not fit the environment or the recipe, refused before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agentgym.errors import RecipeError
from agentgym.noise import Appeals
from agentgym.rewards.base import RewardScheme


def check_levels(scheme: RewardScheme, levels: Mapping[str, str] | Sequence[str]) -> None:
    """Refuse a ladder that lacks a rung for a level that the environment can reach, or has one for another level.

    Of the prices of levels without components, only `no_submission` must be there: nothing is ever judged at it.

    Raises:
        RecipeError: naming the missing or needless rungs.
    """
    _check_without_components(getattr(scheme, "without_components", None), levels)
    ladder = getattr(scheme, "ladder", None)
    if ladder is None:
        return
    missing = [level for level in levels if level not in ladder]
    if missing:
        raise RecipeError(f"the ladder has no rung for {', '.join(missing)}; the environment can reach it, so add it")
    needless = [level for level in ladder if level not in levels]
    if needless:
        raise RecipeError(
            f"the ladder has a rung for {', '.join(needless)}, which the environment never reaches; "
            f"its levels are {', '.join(levels)}; correct the name or take it out"
        )


def _check_without_components(priced: Mapping[str, float] | None, levels: Mapping[str, str] | Sequence[str]) -> None:
    if priced is None:
        return
    if "no_submission" in levels and "no_submission" not in priced:
        raise RecipeError("nothing is judged at the level no_submission; price it in `without_components`")
    needless = [level for level in priced if level not in levels]
    if needless:
        raise RecipeError(
            f"`without_components` prices {', '.join(needless)}, which the environment never reaches; "
            f"its levels are {', '.join(levels)}"
        )


def check_signals(scheme: RewardScheme, declared: Iterable[str]) -> None:
    """Refuse a scheme that reads a signal which the environment does not declare.

    Raises:
        RecipeError: naming the signal.
    """
    known = sorted(declared)
    for name in getattr(scheme, "signals", ()):
        if name not in known:
            raise RecipeError(
                f"the reward scheme reads the signal {name!r}, and the environment declares only {', '.join(known)}; "
                "correct the name, or add it to the environment's `signals`"
            )


def check_appeals(scheme: RewardScheme, appeals: Appeals | None) -> None:
    """Refuse a scheme that waits for appeals which will never come.

    Raises:
        RecipeError: if nobody appeals against accepted or against rejected answers.
    """
    if getattr(scheme, "learn_after", None) is None:
        return
    if appeals is None or not (appeals.accepted and appeals.rejected):
        raise RecipeError(
            "the reward scheme learns its rates from appeals against accepted and rejected answers, and the recipe "
            "does not send both; set shares above 0 in `appeals`, or learn_after: null"
        )
