"""Checkpoints leave the trainer as Hugging Face folders, which transformers and inference servers load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from agentgym.errors import RecipeError
from agentgym_trainers.checkpoint import CheckpointError, find
from agentgym_trainers.models import export as write_model
from agentgym_trainers.models import load_model

DTYPES = ("float32", "bfloat16", "float16")


def export(source: Path, folder: Path, *, which: str = "latest", dtype: str | None = None) -> str:
    """Write a checkpoint's model to a new folder, whole or not at all; see `NativeTrainer.export`."""
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"no weights can be written as {dtype!r}; choose one of {', '.join(DTYPES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} exists and is not an empty folder; name another")
    found = find(source, which)
    if found is None:
        raise CheckpointError(f"{source} is neither a run nor a checkpoint; wanted a folder that training wrote")
    model, tokenizer = load_model(found.model_path, "cpu")  # what cannot be loaded here, nobody else loads
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        if dtype is None:
            shutil.copytree(found.model_path, aside)
        else:
            write_model(model.to(getattr(torch, dtype)), tokenizer, aside)
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found.path.name
