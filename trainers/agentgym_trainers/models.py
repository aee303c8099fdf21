"""Load a model and its tokenizer, or make small ones from nothing."""

from __future__ import annotations

import re
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
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.lora import has_lora, merged_state
from agentgym_trainers.settings import ChatSettings, ModelSettings
from agentgym_trainers.tokenizer import build_tokenizer

_ALIGNMENT = 64
"""Bytes; PyTorch allocates at multiples of it."""
_LAYER = re.compile(r"\.\d+\.")


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
    except Exception as error:
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
    except Exception as error:
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
        RecipeError: nothing can be loaded from there, or not all weights.
    """
    with without_bars():
        tokenizer = load_tokenizer(path)
        model = _read(path)
    return _ready(model, device), tokenizer


def load_trunk(path: str | Path, device: str) -> Any:
    """Return the base model of a Hugging Face folder or name, in float32, whatever head it has there, if any.

    Raises:
        RecipeError: nothing can be loaded from there, or not all weights.
    """
    with without_bars():
        model = _read(path, head=False)
    return _ready(model.base_model, device)


def chat_of(model: Any, tokenizer: Any, settings: ChatSettings) -> ChatFormat:
    """Return the chat format of a model and its tokenizer.

    Raises:
        ChatFormatError: the tokenizer's template cannot be used.
        RecipeError: the model does not read all that is written with it.
    """
    chat = ChatFormat(tokenizer, thinking=settings.thinking, calls=settings.calls, stop_ids=stop_ids_of(model))
    _refuse_unread(model, chat)
    return chat


def _refuse_unread(model: Any, chat: ChatFormat) -> None:
    """Refuse tokens without an embedding, but for special ones that nobody writes: for padding, or for images."""
    tokenizer, rows = chat.tokenizer, int(model.get_input_embeddings().weight.shape[0])
    ends = {*chat.stop_ids, tokenizer.bos_token_id}
    unwritten = {
        number
        for number, one in tokenizer.added_tokens_decoder.items()
        if one.special and number not in ends and one.content not in chat.template.source
    }
    names = {number: repr(token) for token, number in tokenizer.get_vocab().items()}
    beyond = sorted(one for one in {*names, *chat.stop_ids} - unwritten if one >= rows)
    if beyond:
        raise RecipeError(
            f"wanted tokens below {rows} for the model {model.name_or_path!r}, found {len(beyond)} beyond in its "
            f"tokenizer or to end turns, the first of them {names.get(beyond[0], 'nameless')}, {beyond[0]}; "
            "take the tokenizer that the model was trained with, or resize its embeddings"
        )


def _read(path: str | Path, *, head: bool = True) -> Any:
    """Return a causal language model with all the weights that it wants, be it those of its trunk only."""
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:
        raise _unloadable(path, error) from error
    weights = dict(model.named_parameters(remove_duplicate=False))
    trunk = {id(one) for one in model.base_model.parameters()}
    unwanted = set() if head else {name for name, one in weights.items() if id(one) not in trunk}
    reasons = [
        f"{name} has the shape {list(found)} in its files and {list(wanted)} by its config.json"
        for name, found, wanted in sorted(told["mismatched_keys"])
        if name not in unwanted
    ]
    absent = sorted(weights.keys() & set(told["missing_keys"]) - unwanted)
    if absent:  # transformers would go on with random ones
        reasons.append(f"its files lack {len(absent)} of {len(weights)} weights, {absent[0]} first")
    layers = {_LAYER.sub(".#.", name) for name in weights}
    left_over = sorted(name for name in told["unexpected_keys"] if _LAYER.sub(".#.", name) in layers)
    if left_over:  # of a head for another task, transformers leaves weights out rightly
        reasons.append(
            f"its files hold {len(left_over)} weights of layers beyond its config.json's, {left_over[0]} first"
        )
    if reasons:
        raise RecipeError(
            f"no model can be loaded from {str(path)!r}: {reasons[0]}; wanted the weights and the config.json of one "
            "model"
        )
    return model


def _ready(model: Any, device: str) -> Any:
    # Training and sampling must see one function: dropout would make their logprobs differ.
    model = model.to(device).eval()
    _align(model)
    return model


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
    """Return what to tell of whatever kind of error the code of a model's family raises at a damaged file."""
    reason, *more = [one.strip() for one in str(error).splitlines() if one.strip()] or [type(error).__name__]
    if reason.endswith(":"):
        reason = " ".join([reason, *more[:1]])
    return RecipeError(f"no model can be loaded from {str(path)!r}: {reason}; wanted a Hugging Face folder")
