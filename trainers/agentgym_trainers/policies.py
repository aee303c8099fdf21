"""A trained model as a policy, from what a run left behind."""

from __future__ import annotations

from pathlib import Path

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.policy import Sampling
from agentgym_trainers.checkpoint import Checkpoint, find, model_folder
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.models import chat_of, load_model, longest_context
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.settings import ChatSettings, ModelSettings, TrainerSettings


def checkpoint_policy(
    path: str | Path,
    *,
    sampling: Sampling | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    max_batch: int = 256,
) -> TokenPolicy:
    """Return a policy that plays with a model, as its run did: with the chat format and the context of its recipe.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, or a Hugging Face folder or name.
        sampling: how to draw; by default at temperature 1, so many tokens per turn as the episode allows.
        device: where to compute.
        context_length: tokens, prompt and answers together; by default the recipe's, or without one what the model
            allows.
        max_batch: requests computed at once.

    Raises:
        RecipeError: no model can be loaded from there, or it reads no such context or other tokens.
        CheckpointError: the run has no checkpoint yet.
    """
    model, tokenizer = load_model(model_folder(path), device)
    said, longest = _trained_with(find(Path(path)))
    limit = longest_context(model.config, context_length or longest or ModelSettings().context_length)
    if context_length is not None and context_length > limit:
        raise RecipeError(
            f"wanted a context of at most the {limit} tokens that the model reads, found {context_length}"
        )
    context = min(context_length or longest or limit, limit)
    chat = chat_of(model, tokenizer, said)
    return TokenPolicy(HFEngine(model, max_batch=max_batch), chat, sampling or Sampling(max_tokens=context), context)


def _trained_with(checkpoint: Checkpoint | None) -> tuple[ChatSettings, int | None]:
    """Return the chat format and the context of a checkpoint's recipe, where its trainer's settings have them."""
    section = {} if checkpoint is None else checkpoint.recipe.get("trainer") or {}
    name = section.get("name", "native")
    kind = getattr(registry.lookup("trainers", name), "Settings", None) if name in registry.names("trainers") else None
    if not (section and isinstance(kind, type) and issubclass(kind, TrainerSettings)):
        return ChatSettings(), None
    model = ModelSettings.model_validate(section.get("model") or {})
    return ChatSettings.model_validate(section.get("chat") or {}), model.context_length
