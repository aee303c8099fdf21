"""What OpenRLHF cannot do with a rollout is refused before the first one, with the reason and a way out."""

from __future__ import annotations

from typing import Any

from agentgym.errors import RecipeError
from agentgym.learnable import Learnable
from agentgym.recipe import Prepared
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.chat_checks import TOOL
from agentgym_trainers.settings import ChatSettings, TrainerSettings


def refuse(prepared: Prepared, trainer: TrainerSettings) -> None:
    """Refuse a recipe whose groups would reach OpenRLHF as something else.

    Raises:
        RecipeError: naming the part.
    """
    for name, part in (("reward", prepared.scheme), ("guidance", prepared.guidance)):
        if isinstance(part, Learnable) and getattr(part, "learn_after", part) is not None:
            raise RecipeError(
                f"{name}: {type(part).__name__} learns from every step's groups, and OpenRLHF's rollout processes each "
                "see a part of them; train natively, or choose one that does not learn"
            )
    if trainer.schedule.spare_attempts:
        raise RecipeError(
            "trainer.schedule.spare_attempts: OpenRLHF waits for every attempt, "
            f"found {trainer.schedule.spare_attempts}; leave it out"
        )
    if prepared.make_env().paced:
        raise RecipeError(
            f"environment: {prepared.recipe.environment.id} changes as training goes on, and OpenRLHF does not tell "
            "its rollout processes how far it is; leave the schedule out, or train natively"
        )
    ratio = getattr(prepared.guidance, "ratio", None)
    if ratio is not None:
        refuse_off_policy(ratio, trainer)


def refuse_off_policy(ratio: str, trainer: TrainerSettings) -> None:
    """Refuse a treatment of hinted attempts, trained without their hint, that OpenRLHF has no formula for.

    It computes the old logprobs anew, in the context that is trained. `reset` is that. `true` is its importance
    weight between the old logprobs and those of the rollout, which are the hinted context's, cut from above, as the
    loss `truncated` does.

    Raises:
        RecipeError: naming what there is instead.
    """
    loss = trainer.policy.loss
    if ratio == "none" or (ratio == "reset" and loss == "clip") or (ratio == "true" and loss == "truncated"):
        return
    raise RecipeError(
        f"hinted attempts trained with ratio {ratio!r} and the loss {loss!r} have no equal in OpenRLHF; "
        "say ratio: reset with the loss clip, ratio: true with the loss truncated, or train natively"
    )


def chat_format(tokenizer: Any, settings: ChatSettings) -> ChatFormat:
    """Return how messages become tokens, under which an attempt is one row.

    Raises:
        RecipeError: the template drops earlier thoughts or moves the tools, and the recipe follows it.
        ChatFormatError: there is no template, or none that can be used.
    """
    from agentgym_trainers.models import saved_stop_ids

    stop_ids = saved_stop_ids(tokenizer.name_or_path)
    chat = ChatFormat(tokenizer, thinking=settings.thinking, calls=settings.calls, stop_ids=stop_ids)
    if chat.conversation([TOOL]) is not None:
        raise RecipeError(
            f"the chat template of {chat.template.name!r} rewrites earlier turns, so that an attempt has several "
            "rows, and OpenRLHF takes one; say trainer.chat.thinking: keep"
        )
    return chat
