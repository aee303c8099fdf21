"""Make a small tokenizer from a corpus: byte-level BPE, so that any UTF-8 text can be encoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
"""One token per role and one per end of turn; tool schemas are left to the prompt's author."""


def build_tokenizer(corpus: Iterable[str], vocab_size: int = 512, context_length: int = 4096) -> Any:
    """Train a tokenizer; the same corpus gives the same tokenizer.

    Digits are always single tokens, so that numbers look alike wherever they stand, and the 256 bytes are in the
    vocabulary, so that nothing is ever unknown.

    Args:
        corpus: texts to take merges from; an empty corpus gives plain bytes.
        vocab_size: upper limit in tokens, at least 262 (bytes and special tokens).
        context_length: written to `model_max_length`, in tokens.

    Returns:
        A `transformers.PreTrainedTokenizerFast` with a chat template.
    """
    specials = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    if vocab_size < 256 + len(specials):
        raise ValueError(
            f"wanted a vocabulary of at least {256 + len(specials)} tokens, found {vocab_size}; raise vocab_size"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=specials[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
