"""Chat templates that behave like those of public model families, and a tokenizer that has their control tokens."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Tokenizer

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


def tokenizer_of(family: str) -> Any:
    """Return a tokenizer with the template of a family and every family's control tokens."""
    return tokenizer_with(FAMILIES[family], _EOS.get(family, "<|endoftext|>"))


def tokenizer_with(template: str | None, eos: str = "<|endoftext|>") -> Any:
    """Return a tokenizer with a template."""
    tokenizer = Qwen2Tokenizer(
        vocab=_SEED.get_vocab(), unk_token=None, bos_token="<|begin|>", eos_token=eos, pad_token="<|pad|>",
        extra_special_tokens=SPECIAL,
    )  # fmt: skip
    tokenizer.add_tokens(ADDED)
    tokenizer.chat_template = template
    return tokenizer
