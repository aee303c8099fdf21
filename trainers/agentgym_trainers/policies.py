"""A trained model as a policy, from what a run left behind."""

from __future__ import annotations

from pathlib import Path

from agentgym.policy import Sampling
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.checkpoint import model_folder
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.models import load_model
from agentgym_trainers.policy import TokenPolicy


def checkpoint_policy(
    path: str | Path,
    *,
    sampling: Sampling | None = None,
    device: str = "cpu",
    context_length: int | None = None,
    max_batch: int = 256,
) -> TokenPolicy:
    """Return a policy that plays with a model.

    Args:
        path: a run's folder (its newest checkpoint), a checkpoint's folder, or a Hugging Face folder or name.
        sampling: how to draw; by default at temperature 1, so many tokens per turn as the episode allows.
        device: where to compute.
        context_length: tokens, prompt and answers together; by default what the model allows.
        max_batch: requests computed at once.

    Raises:
        RecipeError: no model can be loaded from there.
        CheckpointError: the run has no checkpoint yet.
    """
    model, tokenizer = load_model(model_folder(path), device)
    limit = int(model.config.max_position_embeddings)
    context = min(context_length or limit, limit)
    return TokenPolicy(
        HFEngine(model, max_batch=max_batch), ChatFormat(tokenizer), sampling or Sampling(max_tokens=context), context
    )
