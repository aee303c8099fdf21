"""The model that OpenRLHF begins with: a folder that is there, or one that the native trainer makes."""

from __future__ import annotations

import gc
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from agentgym.errors import RecipeError
from agentgym.recipe import Prepared, Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.bridges.openrlhf.argv import Files
from agentgym_trainers.bridges.openrlhf.expressible import chat_format
from agentgym_trainers.bridges.openrlhf.options import Settings
from agentgym_trainers.native import Progress


def needs_start(settings: Settings) -> bool:
    """Return whether a model must be made, or warmed up on demonstrations, first."""
    return settings.model.path is None or settings.sft.steps > 0


def native_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the warm start alone, for the native trainer."""
    trainer = {name: value for name, value in recipe.trainer.items() if name != "openrlhf"}
    policy = {**trainer.get("policy", {}), "steps": 0}
    plain = recipe.model_dump(mode="json")
    return Recipe.parse({**plain, "trainer": {**trainer, "name": "native", "policy": policy}})


def make(prepared: Prepared, run: RunDirectory, folder: Path, *, resume: bool, progress: Progress | None) -> None:
    """Make the model, evaluate it, and leave a copy that no later checkpoint replaces."""
    from agentgym_trainers.loop import train

    recipe = native_recipe(prepared.recipe)
    train(replace(prepared, recipe=recipe), run, resume=resume, progress=progress)
    _leave_the_gpu()
    step = recipe.trainer_settings().sft.steps
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.copytree(run.checkpoints / f"step-{step:06}" / "model", aside)
    aside.rename(folder)


def _leave_the_gpu() -> None:
    """Give back what PyTorch keeps of a GPU's memory: OpenRLHF's processes fill it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def refuse_template(settings: Settings, *, download: bool) -> str | None:
    """Refuse a chat template that a rollout process would refuse; that of a model made from nothing is ours.

    Args:
        settings: name the model.
        download: fetch a tokenizer that is not on this machine.

    Returns:
        Why there was none to look at; None if there was.

    Raises:
        RecipeError: an attempt would have several rows.
        ChatFormatError: there is no template, or none that can be used.
    """
    from agentgym_trainers.models import load_tokenizer

    if settings.model.path is None:
        return None
    try:
        tokenizer = load_tokenizer(located(str(settings.model.path)), download=download)
    except RecipeError as error:
        return str(error)
    chat_format(tokenizer, settings.chat)
    return None


def located(path: str) -> str:
    """Return the Hugging Face folder of a run or a checkpoint, absolute; a name stays a name."""
    from agentgym_trainers.checkpoint import model_folder

    found = Path(model_folder(path))
    return str(found.resolve()) if found.is_dir() else path


def context_of(settings: Settings, files: Files) -> int:
    """Return how many tokens an attempt may have: the recipe's limit or the model's, whichever is less."""
    try:
        config = json.loads((Path(files.model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not made, or not downloaded yet; whoever loads it says what is wrong
        return settings.model.context_length
    return min(settings.model.context_length, int(config.get("max_position_embeddings", settings.model.context_length)))
