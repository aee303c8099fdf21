"""Folders without a whole model, or with another model's tokenizer, are refused in one sentence before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from agentgym.errors import RecipeError
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.models import export, load_model
from agentgym_trainers.policies import checkpoint_policy

Tiny = tuple[Any, ChatFormat]
SHALLOWER: dict[str, Any] = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
DEEPER: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A model and its tokenizer, whole."""
    export(tiny[0], tiny[1].tokenizer, tmp_path / "model")
    return tmp_path / "model"


def configured(**changes: Any) -> Callable[[Path], None]:
    """What changes a folder's config.json and leaves its weights."""

    def change(folder: Path) -> None:
        place = folder / "config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | changes))

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    """What leaves so many bytes of a file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(
            configured(**DEEPER),
            r"its files lack 24 of 51 weights, model\.layers\.2\.input_layernorm\.weight first; wanted",
            id="fewer-layers",
        ),
        pytest.param(
            configured(intermediate_size=96),
            r"model\.layers\.0\.mlp\.down_proj\.weight has the shape \[32, 64\] in its files and \[32, 96\] by its "
            r"config\.json; wanted the weights and the config\.json of one model",
            id="other-shapes",
        ),
        pytest.param(
            configured(**SHALLOWER),
            r"its files hold 12 weights of layers beyond its config\.json's, "
            r"model\.layers\.1\.input_layernorm\.weight first; wanted",
            id="fewer-layers",
        ),
        pytest.param(cut("model.safetensors", 5000), r".+; wanted a Hugging Face folder", id="torn-weights"),
        pytest.param(cut("model.safetensors", 0), r".+; wanted a Hugging Face folder", id="empty-weights"),
        pytest.param(cut("tokenizer.json", 5000), r".+; wanted a Hugging Face folder", id="torn-tokenizer"),
        pytest.param(cut("config.json", 50), r".+; wanted a Hugging Face folder", id="torn-configuration"),
        pytest.param(
            configured(hidden_size="wide"), r".*hidden_size.+; wanted a Hugging Face folder", id="strange-configuration"
        ),
    ],
)
def test_a_folder_without_a_whole_model_is_one_sentence(
    folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    load_model(folder, "cpu")
    spoil(folder)
    with pytest.raises(RecipeError, match=rf"^no model can be loaded from '{folder}': {reason}") as told:
        load_model(folder, "cpu")
    assert "\n" not in str(told.value)


def test_training_does_not_go_on_with_weights_that_no_file_holds(lab: Any, folder: Path) -> None:
    configured(**DEEPER)(folder)
    with pytest.raises(RecipeError, match="its files lack 24 of"):
        lab.train(trainer={"model": {"path": str(folder)}, "policy": {"steps": 1}}, tasks={"train": 4, "test": 2})


def added(token: str, *, special: bool = False) -> Callable[[Path], None]:
    """What gives a folder's tokenizer one token more than its model has embeddings."""

    def change(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([token], special_tokens=special)
        tokenizer.save_pretrained(folder)

    return change


def ending(folder: Path) -> None:
    """Let a token end turns that the model does not know."""
    GenerationConfig(eos_token_id=[1, 5000]).save_pretrained(folder)


def written(folder: Path) -> None:
    """Let the chat template write a special token that the model does not know."""
    added("<|now|>", special=True)(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "<|now|>" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        pytest.param(added("lepton"), r"'lepton', \d+", id="text"),
        pytest.param(written, r"'<\|now\|>', \d+", id="template"),
        pytest.param(ending, "nameless, 5000", id="stop"),
    ],
)
def test_tokens_that_the_model_does_not_read_are_refused_before_the_first_attempt(
    lab: Any, tiny: Tiny, folder: Path, spoil: Callable[[Path], None], found: str
) -> None:
    rows = tiny[0].config.vocab_size
    spoil(folder)
    sentence = (
        rf"^wanted tokens below {rows} for the model '{folder}', found 1 beyond in its tokenizer or to end turns, the "
        rf"first of them {found}; take the tokenizer"
    )
    with pytest.raises(RecipeError, match=sentence):
        checkpoint_policy(folder)
    with pytest.raises(RecipeError, match=sentence):
        lab.train(trainer={"model": {"path": str(folder)}, "policy": {"steps": 1}}, tasks={"train": 4, "test": 2})


def test_a_special_token_that_nobody_writes_needs_no_embedding(tiny: Tiny, folder: Path) -> None:
    added("<|image|>", special=True)(folder)
    policy = checkpoint_policy(folder)
    assert policy.chat.tokenizer.convert_tokens_to_ids("<|image|>") >= tiny[0].config.vocab_size
