"""Load a model and its tokenizer, or make small ones from nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

from agentgym.errors import RecipeError
from agentgym_trainers.lora import has_lora, merged_state
from agentgym_trainers.settings import ModelSettings
from agentgym_trainers.tokenizer import build_tokenizer

_ALIGNMENT = 64
"""Bytes; PyTorch allocates at multiples of it."""


def new_model(settings: ModelSettings, corpus: Iterable[str], seed: int, device: str) -> tuple[Any, Any]:
    """Return a randomly initialised Qwen2 and a tokenizer made from the corpus."""
    tokenizer = build_tokenizer(corpus, settings.vocab_size, settings.context_length)
    config = new_config(settings, len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    return model.to(device).eval(), tokenizer


def new_config(settings: ModelSettings, vocab_size: int) -> Any:
    """Return the configuration of a Qwen2 made from nothing."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def load_config(path: str | Path) -> Any:
    """Return the configuration of a Hugging Face folder or name.

    Raises:
        RecipeError: there is none.
    """
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from error


def longest_context(config: Any, otherwise: int) -> int:
    """Return how many tokens a model reads by its configuration; of models that keep a state, it says nothing."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", otherwise))


def refuse_longer(settings: ModelSettings, limit: int) -> None:
    """Refuse a context that was asked for in words and is longer than what the model reads.

    Raises:
        RecipeError: `context_length` is set, and to more than `limit` tokens.
    """
    if "context_length" in settings.model_fields_set and settings.context_length > limit:
        raise RecipeError(
            f"trainer.model.context_length: wanted at most the {limit} tokens that the model of {settings.path} reads, "
            f"found {settings.context_length}; lower it, or name a model with a longer context"
        )


def load_tokenizer(path: str | Path, *, download: bool = True) -> Any:
    """Return the tokenizer of a Hugging Face folder or name.

    Args:
        path: the folder or the name.
        download: fetch what is not on this machine.

    Raises:
        RecipeError: nothing can be loaded from there.
    """
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=not download)
    except (OSError, ValueError) as error:
        raise _unloadable(path, error) from error


def stop_ids_of(model: Any) -> tuple[int, ...]:
    """Return the tokens that end a text, as the model's `generation_config` lists them beside the tokenizer's own."""
    return _stop_ids(getattr(model, "generation_config", None))


def saved_stop_ids(path: str | Path) -> tuple[int, ...]:
    """Return the same of a Hugging Face folder or name that is on this machine; none where there is no such file."""
    try:
        return _stop_ids(GenerationConfig.from_pretrained(path, local_files_only=True))
    except (OSError, ValueError):
        return ()


def _stop_ids(config: Any) -> tuple[int, ...]:
    found = getattr(config, "eos_token_id", None)
    return () if found is None else tuple(map(int, found)) if isinstance(found, list | tuple) else (int(found),)


def load_model(path: str | Path, device: str) -> tuple[Any, Any]:
    """Return the causal language model of a Hugging Face folder or name, in float32, and its tokenizer.

    Raises:
        RecipeError: nothing can be loaded from there.
    """
    with without_bars():
        tokenizer = load_tokenizer(path)
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise _unloadable(path, error) from error
    # Training and sampling must see one function: dropout would make their logprobs differ.
    model = model.to(device).eval()
    _align(model)
    return model, tokenizer


def _align(model: Any) -> None:
    """Move weights as new ones would lie: in a mapped file they lie anywhere, and products round by the address."""
    for one in model.parameters():
        if one.data_ptr() % _ALIGNMENT:
            one.data = one.data.clone()


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that transformers and inference servers load."""
    with without_bars():
        model.save_pretrained(folder, **({"state_dict": merged_state(model)} if has_lora(model) else {}))
        tokenizer.save_pretrained(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _unloadable(path: str | Path, error: Exception) -> RecipeError:
    reason = str(error).splitlines()[0]
    return RecipeError(f"no model can be loaded from {str(path)!r}: {reason}; wanted a Hugging Face folder")
