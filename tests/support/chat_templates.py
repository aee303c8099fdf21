"""Chat templates that behave like those of public model families, and a tokenizer that has their control tokens."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from agentgym_trainers.tokenizer import build_tokenizer

HEAD = "{%- for message in messages -%}"
TAIL = "{%- endfor -%}"

# ChatML with Qwen2.5's ways: tools in the system message, the tools' answers of one turn in one user block.
QWEN25 = (
    "{%- if tools -%}<|im_start|>system\n{{ tools | tojson }}\nAnswer with <tool_call>\n{}\n</tool_call>.<|im_end|>\n"
    "{%- endif -%}" + HEAD + "{%- if message.role == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}<|im_start|>user{%- endif -%}"
    "{{ '\n<tool_response>\n' ~ message.content ~ '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}"
    "{%- else -%}{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}{%- endif -%}"
    + TAIL
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

# Qwen3: thoughts after the last message of a user stay, earlier ones go.
QWEN3 = (
    "{%- set ns = namespace(last=-1) -%}"
    + HEAD
    + "{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    + TAIL
    + "{%- if tools -%}<|im_start|>system\n{{ tools | tojson }} <tool_call></tool_call><|im_end|>\n{%- endif -%}"
    + HEAD
    + "{%- if message.role == 'tool' -%}"
    "{{ '<|im_start|>user\n<tool_response>\n' ~ message.content ~ '\n</tool_response><|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' -%}"
    "{%- set parts = message.content.split('</think>') -%}{%- set answer = parts[-1].lstrip('\n') -%}"
    "{{ '<|im_start|>assistant\n' }}"
    "{%- if parts | length > 1 and loop.index0 > ns.last -%}"
    "{{ '<think>\n' ~ parts[0].split('<think>')[-1].strip('\n') ~ '\n</think>\n\n' ~ answer }}"
    "{%- else -%}{{ answer }}{%- endif -%}{{ '<|im_end|>\n' }}"
    "{%- else -%}{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}{%- endif -%}"
    + TAIL
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

# Llama 3.1: headers, trimmed contents, no newline after a turn, a tool's answer as a JSON string under `ipython`.
LLAMA3 = (
    "{{ bos_token }}" + HEAD + "{%- set role = 'ipython' if message.role == 'tool' else message.role -%}"
    "{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}"
    "{%- if message.role == 'tool' -%}{{ message.content | tojson }}"
    "{%- else -%}{{ message.content | trim }}{%- endif -%}{{ '<|eot_id|>' }}"
    + TAIL
    + "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)

# Mistral: users and assistants take turns, the tools stand before the last user's message, calls have nine-letter ids.
MISTRAL = (
    "{{ bos_token }}{%- set ns = namespace(count=0, last=-1) -%}"
    + HEAD
    + "{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    "{%- if message.role in ('user', 'assistant') -%}"
    "{%- if (message.role == 'user') != (ns.count % 2 == 0) -%}"
    "{{ raise_exception('users and assistants must take turns') }}{%- endif -%}"
    "{%- set ns.count = ns.count + 1 -%}{%- endif -%}" + TAIL + HEAD + "{%- if message.role == 'user' -%}"
    "{%- if tools and loop.index0 == ns.last -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}"
    "[INST]{{ message.content }}[/INST]"
    "{%- elif message.role == 'tool' -%}"
    "{%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 -%}"
    "{{ raise_exception('a call has an id of nine letters') }}{%- endif -%}"
    '[TOOL_RESULTS]{"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]'
    "{%- elif message.role == 'assistant' -%}{{ message.content ~ eos_token }}"
    "{%- else -%}{{ raise_exception('no such role') }}{%- endif -%}"
    "{#- calls begin with [TOOL_CALLS] -#}" + TAIL
)

# Gemma: no system message, no tools, and users and models that take turns.
GEMMA = (
    "{{ bos_token }}{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
    + HEAD
    + "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('roles must alternate') }}{%- endif -%}"
    "{%- set role = 'model' if message.role == 'assistant' else message.role -%}"
    "{{ '<start_of_turn>' ~ role ~ '\n' ~ message.content | trim ~ '<end_of_turn>\n' }}"
    + TAIL
    + "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)

# DeepSeek V3: no assistant mark after a tool's answer.
DEEPSEEK = (
    "{{ bos_token }}{%- set ns = namespace(tool=false) -%}"
    + HEAD
    + "{%- if message.role == 'system' -%}{{ message.content }}"
    "{%- elif message.role == 'user' -%}"
    "{%- if ns.tool -%}<｜tool▁outputs▁end｜>{%- endif -%}{%- set ns.tool = false -%}<｜User｜>{{ message.content }}"
    "{%- elif message.role == 'assistant' -%}"
    "{%- if ns.tool -%}<｜tool▁outputs▁end｜>{%- else -%}<｜Assistant｜>{%- endif -%}{%- set ns.tool = false -%}"
    "{{ message.content }}{#- <｜tool▁calls▁begin｜> -#}<｜end▁of▁sentence｜>"
    "{%- else -%}{%- if not ns.tool -%}<｜tool▁outputs▁begin｜>{%- endif -%}{%- set ns.tool = true -%}"
    "<｜tool▁output▁begin｜>{{ message.content }}<｜tool▁output▁end｜>{%- endif -%}"
    + TAIL
    + "{%- if add_generation_prompt -%}"
    "{%- if ns.tool -%}<｜tool▁outputs▁end｜>{%- else -%}<｜Assistant｜>{%- endif -%}{%- endif -%}"
)

# DeepSeek R1: the prompt opens a thought, and every earlier thought goes.
DEEPSEEK_R1 = (
    "{{ bos_token }}" + HEAD + "{%- if message.role == 'assistant' -%}"
    "<｜Assistant｜>{{ message.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{%- else -%}<｜User｜>{{ message.content }}{%- endif -%}"
    + TAIL
    + "{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\n' }}{%- endif -%}"
)

# GLM: the mark of the next speaker ends a turn.
GLM = (
    "[gMASK]" + HEAD + "{{ '<|observation|>' if message.role == 'tool' else '<|' ~ message.role ~ '|>' }}"
    "{{ '\n' ~ message.content }}" + TAIL + "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)

FAMILIES = {
    "qwen2.5": QWEN25,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "deepseek": DEEPSEEK,
    "deepseek-r1": DEEPSEEK_R1,
    "glm": GLM,
}
PLAIN = ["qwen2.5", "llama3", "mistral", "gemma", "deepseek", "glm"]
"""Those without thoughts."""

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>",
    "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "<start_of_turn>", "<end_of_turn>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]",
]  # fmt: skip
ADDED = ["<tool_response>", "</tool_response>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
"""Tokens of their own that are no control tokens, as in Qwen's vocabularies."""

_SEED = build_tokenizer(["<tool_response>", "<|im_start|>user\nhello", "I think that </think> ends"] * 2, 320)
_EOS = {"mistral": "</s>", "deepseek": "<｜end▁of▁sentence｜>", "deepseek-r1": "<｜end▁of▁sentence｜>"}


MARKS = ["never", "first", "always", "prepend"]
"""Where tokenizers made by SentencePiece write a space that is not in the text: nowhere, at the beginning, after every
control token, and the last once more, by a normalizer as in the files of Llama 2."""
BLANKS = ["\n", "\n\n", "\u2581\u2581"]
MARKED = ["mistral/first", "mistral/always", "mistral/prepend", "gemma/never", "gemma/first"]
"""Families whose tokenizers are made by SentencePiece."""


def tokenizer_of(family: str) -> Any:
    """Return a tokenizer with the template of a family, or one of `MARKED`, and every family's control tokens."""
    name, _, marks = family.partition("/")
    eos = _EOS.get(name, "<|endoftext|>")
    return marked_tokenizer(FAMILIES[name], eos, marks) if marks else tokenizer_with(FAMILIES[name], eos)


def tokenizer_with(template: str | None, eos: str = "<|endoftext|>") -> Any:
    """Return a tokenizer with a template."""
    tokenizer = Qwen2Tokenizer(
        vocab=_SEED.get_vocab(), unk_token=None, bos_token="<|begin|>", eos_token=eos, pad_token="<|pad|>",
        extra_special_tokens=SPECIAL,
    )  # fmt: skip
    tokenizer.add_tokens(ADDED)
    tokenizer.chat_template = template
    return tokenizer


def marked_tokenizer(template: str, eos: str, marks: str) -> Any:
    """Return a tokenizer like those made by SentencePiece: spaces are letters, and unknown letters are bytes.

    Without marks it is like Gemma's, which has tokens of their own for runs of blanks.

    Args:
        template: its chat template.
        eos: the token that ends a text.
        marks: one of `MARKS`.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    corpus = ["question answer observation hello seen Be good. Hi", "\nuser abc xyz"] * 3
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", *(f"<0x{one:02X}>" for one in range(256)), "\u2581", *'{}[]<|>"\\:,/', *BLANKS, *model["vocab"]]
    vocab = {name: place for place, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(
        models.BPE(vocab, [tuple(one) for one in model["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    spaced = normalizers.Replace(" ", "\u2581")
    if marks == "never":
        tokenizer.normalizer = spaced
    elif marks == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaced])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=marks, split=False)
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([] if marks == "never" else [decoders.Strip(" ", 1, 0)])])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token=eos, pad_token="<pad>",
        additional_special_tokens=SPECIAL, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.add_tokens(ADDED)
    if marks == "never":
        made.add_tokens([AddedToken(one, normalized=False) for one in BLANKS])
    made.chat_template = template
    return made
