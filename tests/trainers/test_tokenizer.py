"""The tokenizer made from a corpus is exact, deterministic, and survives every way of loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.models import export, load_model
from agentgym_trainers.tokenizer import build_tokenizer

CORPUS = ["def add(a, b):\n    return a + b\n", "```calc\n12+34", "error: wanted a+b"] * 3
TOKENIZER = build_tokenizer(CORPUS, 320)


@given(st.text())
@example("A\u0300 \U0002f800")  # marks and letters that Unicode's normal forms replace
def test_any_text_is_encoded_and_decoded_to_itself(text: str) -> None:
    ids = ChatFormat(TOKENIZER).encode_text(text)
    assert TOKENIZER.decode(ids) == text


@given(st.text(alphabet="0123456789 +-a", min_size=1))
def test_digits_are_single_tokens(text: str) -> None:
    pieces = [TOKENIZER.decode([one]) for one in TOKENIZER.encode(text)]
    assert all(len(piece) == 1 for piece in pieces if any(letter.isdigit() for letter in piece))


def test_the_same_corpus_gives_the_same_tokenizer() -> None:
    assert build_tokenizer(CORPUS, 320).backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_frequent_words_become_tokens() -> None:
    assert len(TOKENIZER.encode("def add")) < len("def add")


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 262 tokens, found 100; raise vocab_size"):
        build_tokenizer(CORPUS, 100)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Any, ChatFormat]) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("model")
    model, chat = tiny
    export(model, chat.tokenizer, folder)
    return chat.tokenizer, load_model(folder, "cpu")[1]


@pytest.mark.parametrize("text", ["```calc\n12+34", "\n\n  x = 1\n", "it's 3,14 é漢", "```answer\n46<|end|>"])
def test_a_tokenizer_loaded_beside_its_model_is_the_one_that_was_saved(reloaded: tuple[Any, Any], text: str) -> None:
    before, after = reloaded
    assert after.encode(text) == before.encode(text)
    assert after.chat_template == before.chat_template
    assert ChatFormat(after).stop_ids == ChatFormat(before).stop_ids
