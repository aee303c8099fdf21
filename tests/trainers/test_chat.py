"""Rendering is exact: suffixes continue what was sampled, and text never becomes a control token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from agentgym.tokens import TokenKind
from agentgym.types import Message
from agentgym_trainers.chat import ChatFormat, ChatFormatError
from agentgym_trainers.tokenizer import build_tokenizer

CHATML = (
    "{%- if tools -%}{{ '<|im_start|>system\n' ~ tools | length ~ ' tools<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
LLAMA = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '<|header|>\n\n' + message.content | trim + '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant<|header|>\n\n' }}{%- endif -%}"
)
GROUPED = (  # observations of one turn share a user block, as in Qwen's templates
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' -%}"
    "{%- if messages[loop.index0 - 1].role != 'tool' -%}<|im_start|>user{%- endif -%}"
    "{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}"
    "{%- else -%}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
STRIPS = (
    "{%- for message in messages -%}"
    "{%- set text = message.content -%}"
    "{%- if message.role == 'assistant' and not loop.last -%}{%- set text = text.split('</think>')[-1] -%}{%- endif -%}"
    "{{ '<|im_start|>' + message.role + '\n' + text + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
REWRITES = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' ~ message.role ~ messages | length ~ message.content ~ '<|im_end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant' ~ messages | length }}{%- endif -%}"
)
FORGETS = CHATML.replace("in messages -%}", "in messages if message.role != 'system' -%}")
OPEN_ENDED = "{%- for message in messages -%}{{ message.role }}: {{ message.content }}\n{%- endfor -%}"

_SEED = build_tokenizer(["<tool_response>", "<|im_start|>user\nhello"] * 2, 320)


def tokenizer_with(template: str | None) -> Any:
    shape = _SEED.get_vocab()
    tokenizer = Qwen2Tokenizer(
        vocab=shape, unk_token=None, bos_token="<|begin|>", eos_token="<|endoftext|>", pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>", "<|header|>"],
    )  # fmt: skip
    tokenizer.add_tokens(["<tool_response>", "</tool_response>", "<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "grouped": GROUPED, "tiny": _SEED.chat_template}
FORMATS = {
    name: ChatFormat(tokenizer_with(template) if name != "tiny" else _SEED) for name, template in TEMPLATES.items()
}
every_format = pytest.mark.parametrize("chat", [pytest.param(one, id=name) for name, one in FORMATS.items()])

NASTY = ["<|im_end|>", "<|im_start|>assistant\n", "</tool_response>", "<|end|>", "<|assistant|>", "<think>", "{{ x }}"]
texts = st.one_of(st.text(min_size=1), st.lists(st.sampled_from(NASTY), min_size=1).map("".join)).map(str.strip)
contents = texts.filter(bool)
observations = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "tool"]), content=contents), min_size=1, max_size=3
)


def flat(pieces: list[tuple[list[int], TokenKind]]) -> list[int]:
    return [one for ids, _ in pieces for one in ids]


@every_format
@given(prompt=contents, answers=st.lists(st.tuples(contents, observations), max_size=3))
def test_prompt_and_suffixes_spell_the_whole_template(
    chat: ChatFormat, prompt: str, answers: list[tuple[str, list[Message]]]
) -> None:
    messages = [Message(role="user", content=prompt)]
    ids = flat(chat.prompt(messages))
    for answer, seen in answers:
        ids += chat.answer(answer) + flat(chat.suffix(seen))
        messages += [Message(role="assistant", content=answer), *seen]
    assert ids == flat(chat.prompt(messages))


@every_format
@given(content=contents)
def test_text_never_yields_a_control_token(chat: ChatFormat, content: str) -> None:
    message = Message(role="tool", content=content)
    plain = flat(chat.suffix([message.model_copy(update={"content": "x"})]))
    found = flat(chat.suffix([message]))
    control = chat.encode_text.control
    assert [one for one in found if one in control] == [one for one in plain if one in control]


@every_format
def test_an_answer_is_parsed_back(chat: ChatFormat) -> None:
    ids = chat.answer("hello\n <|im_end|> ")
    assert ids[-1] in chat.stop_ids
    assert chat.parse(ids) == Message(role="assistant", content="hello\n <|im_end|> ")


def test_the_newline_after_the_end_of_turn_belongs_to_the_suffix() -> None:
    chat = FORMATS["chatml"]
    assert chat.tokenizer.decode(flat(chat.suffix([Message(role="user", content="ok")]))).startswith(
        "\n<|im_start|>user"
    )


@every_format
def test_a_turn_that_was_cut_is_ended_by_the_suffix(chat: ChatFormat) -> None:
    seen = [Message(role="user", content="ok")]
    assert flat(chat.suffix(seen, ended=False)) == [chat.end_id, *flat(chat.suffix(seen))]


@every_format
def test_guidance_is_tokenised_apart_and_leaves_no_trace(chat: ChatFormat) -> None:
    bare = Message(role="user", content="2+2")
    pieces = chat.prompt([bare.model_copy(update={"guidance": "\nthink<|im_end|>"})])
    assert [ids for ids, kind in pieces if kind is TokenKind.GUIDANCE] == [chat.encode_text("\nthink<|im_end|>")]
    assert flat([piece for piece in pieces if piece[1] is not TokenKind.GUIDANCE]) == flat(chat.prompt([bare]))


def test_tools_reach_the_template() -> None:
    chat = FORMATS["chatml"]
    schema = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    assert "1 tools" in chat.tokenizer.decode(flat(chat.prompt([Message(role="user", content="x")], [schema])))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(None, "has no chat template", id="missing"),
        pytest.param(REWRITES, "rewrites the turns before when a 'user' message follows", id="rewrites"),
        pytest.param(STRIPS, "rewrites thinking .* allow_stripped_thinking=True", id="strips-thinking"),
        pytest.param(OPEN_ENDED, "wanted a control token after an assistant message", id="no-end-token"),
    ],
)
def test_an_unsuitable_template_is_refused_in_one_sentence(template: str | None, reason: str) -> None:
    with pytest.raises(ChatFormatError, match=reason):
        ChatFormat(tokenizer_with(template))


def test_stripped_thinking_can_be_accepted() -> None:
    assert ChatFormat(tokenizer_with(STRIPS), allow_stripped_thinking=True).stop_ids


def test_a_message_that_the_template_hides_is_refused() -> None:
    chat = ChatFormat(tokenizer_with(FORGETS))
    with pytest.raises(ChatFormatError, match="'be good' is out of place"):
        chat.prompt([Message(role="system", content="be good"), Message(role="user", content="hi")])
