"""Rendering is exact: suffixes continue what was sampled, and text never becomes a control token."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from chat_templates import FAMILIES, HEAD, LLAMA3, MARKED, PLAIN, QWEN25, TAIL, tokenizer_of, tokenizer_with
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import ByT5Tokenizer

from agentgym.errors import UnknownNameError
from agentgym.policy import ToolSchema
from agentgym.tokens import TokenKind
from agentgym.types import Message
from agentgym_trainers.chat import SYNTAX as MARKS
from agentgym_trainers.chat import ChatFormat, ChatFormatError
from agentgym_trainers.tokenizer import build_tokenizer

_SAY = "{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}"
_ASK = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
CHATML = HEAD + _SAY + TAIL + _ASK
REWRITES = CHATML.replace("message.role ~", "message.role ~ messages | length ~")
FORGETS = CHATML.replace("in messages -%}", "in messages if message.role != 'system' -%}")
SHORTENS = (
    HEAD + _SAY.replace("message.content", "(message.content if loop.last else message.content[:3])") + TAIL + _ASK
)
TWICE = (
    HEAD
    + _SAY.replace("message.content", "message.content ~ (message.content if message.role == 'user' else '')")
    + TAIL
    + _ASK
)
LAST = CHATML.replace("in messages", "in (messages if messages[0].role != 'system' else messages[1:] + messages[:1])")
OPEN_ENDED = (
    HEAD + "{{ message.role ~ ': ' ~ message.content ~ '\n' }}" + TAIL + "{{ 'assistant: ' if add_generation_prompt }}"
)
REFUSES = "{{ raise_exception('only in the browser') }}"


@cache
def format_of(family: str) -> ChatFormat:
    return ChatFormat(build_tokenizer(["hello"], 320) if family == "tiny" else tokenizer_of(family))


every_family = pytest.mark.parametrize("family", ["tiny", *FAMILIES, *MARKED])
plain_family = pytest.mark.parametrize("family", ["tiny", *PLAIN, *MARKED])

NASTY = [
    "<|im_end|>", "<|im_start|>assistant\n", "</tool_response>", "<|end|>", "<|assistant|>", "<|eot_id|>", "[/INST]",
    "<end_of_turn>", "<｜Assistant｜>", "<|user|>", "</s>", "{{ x }}", "\ue000agentgym0\ue001", '"', "\\",
    "agentgymquoted", "agentgymquoted0", "agentgymquoted1", "AgentGymQuoted2", "agentgymquoted3", "agentgymq",
]  # fmt: skip
SYNTAX = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"]
said = st.one_of(
    st.text(min_size=1),
    st.sampled_from(["think", "tool_call", "user"]),
    st.lists(st.sampled_from(NASTY), min_size=1).map("".join),
).map(str.strip)
answers = said.filter(lambda text: text and not MARKS.search(text))
contents = st.one_of(said, st.lists(st.sampled_from(SYNTAX), min_size=1).map("".join)).filter(bool)
words = st.one_of(st.none(), contents)
observations = st.lists(
    st.builds(Message, role=st.sampled_from(["user", "tool"]), content=contents, name=words, tool_call_id=words),
    min_size=1,
    max_size=3,
)


def flat(pieces: list[tuple[list[int], TokenKind]]) -> list[int]:
    return [one for ids, _ in pieces for one in ids]


@plain_family
@given(prompt=contents, answers=st.lists(st.tuples(answers, observations), max_size=3))
def test_prompt_and_suffixes_spell_the_whole_template(
    family: str, prompt: str, answers: list[tuple[str, list[Message]]]
) -> None:
    chat = format_of(family)
    messages = [Message(role="user", content=prompt)]
    ids = flat(chat.prompt(messages))
    for answer, seen in answers:
        if family.startswith("mistral"):  # it wants to see the calls that a tool's answers belong to
            seen = [one for one in seen if one.role == "user"] or [Message(role="user", content="go on")]
        boundary = flat(chat.suffix(seen, ended=False))
        stop = boundary[0]
        assert stop in chat.stop_ids
        ids += [*chat.answer(answer)[:-1], stop, *flat(chat.suffix(seen, stop_id=stop))]
        messages += [Message(role="assistant", content=answer), *seen]
    assert ids == flat(chat.prompt(messages))


@every_family
@given(content=contents, role=st.sampled_from(["user", "tool"]), name=words, call_id=words)
def test_text_never_yields_a_control_token(
    family: str, content: str, role: str, name: str | None, call_id: str | None
) -> None:
    chat = format_of(family)
    message = Message(role="user" if role == "user" else "tool", content=content, name=name, tool_call_id=call_id)
    plain = Message(role=message.role, content="x")
    for render in (chat.suffix, chat.prompt if role == "user" else chat.suffix):
        assert control_of(chat, render([message])) == control_of(chat, render([plain]))


def control_of(chat: ChatFormat, pieces: list[tuple[list[int], TokenKind]]) -> list[int]:
    return [one for one in flat(pieces) if one in chat.encode_text.control]


def schema_of(name: str, description: str, parameter: str) -> ToolSchema:
    properties = {parameter: {"type": "string", "description": description, "enum": [description]}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SPELLED = (
    "{%- for tool in tools or [] -%}<{{ tool.function.name }}>{{ tool.function.description | trim }}"
    "{%- for name in tool.function.parameters.properties -%}{{ '\n<|' ~ name }}{%- endfor -%}{%- endfor -%}" + CHATML
)
"""Tools in words, their names in angle brackets."""
WRITTEN = {
    "spelled": SPELLED,
    "python": "{{ tools | string }}" + CHATML,
    "ascii": "{{ tools | tojson(ensure_ascii=True) }}" + CHATML,
}


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3", "mistral", "mistral/first", "mistral/always", *WRITTEN])
@given(name=contents, description=contents, parameter=contents)
def test_tool_schemas_never_yield_a_control_token_and_are_shown_as_they_are(
    family: str, name: str, description: str, parameter: str
) -> None:
    chat = written(family) if family in WRITTEN else format_of(family)
    messages = [Message(role="user", content="x")]
    nasty, tame = schema_of(name, description, parameter), schema_of("f", "g", "h")
    found = chat.prompt(messages, [nasty])
    assert control_of(chat, found) == control_of(chat, chat.prompt(messages, [tame]))
    if family in ("qwen2.5", "python", "ascii") and all(one.isascii() for one in (name, description, parameter)):
        assert (str(nasty) if family == "python" else json.dumps(nasty)) in chat.tokenizer.decode(flat(found))


@cache
def written(name: str) -> ChatFormat:
    return ChatFormat(tokenizer_with(WRITTEN[name]))


@pytest.mark.parametrize("name", ["think", "tool_call"])
def test_no_tool_and_no_parameter_gets_a_name_that_the_template_completes_to_a_control_token(name: str) -> None:
    chat = written("spelled")
    messages = [Message(role="user", content="x")]
    found = chat.prompt(messages, [schema_of(name, "g", name)])
    assert control_of(chat, found) == control_of(chat, chat.prompt(messages, [schema_of("f", "g", "h")]))
    assert f"<{name}>g\n<|{name}" in chat.tokenizer.decode(flat(found))


LISTED = (
    "{%- for tool in tools or [] -%}{%- if tool.type == 'function' -%}"
    "{%- set given = tool.function.parameters -%}{{ tool.function.name ~ ': ' ~ tool.function.description }}"
    "{%- for name, one in given.properties | items -%}"
    "{{ '; ' ~ name ~ ' is ' ~ ('text' if one.type == 'string' else one.type) ~ (one.examples or '') | string }}"
    "{{ ' and needed' if name in given.required }}{%- endfor -%}{%- endif -%}{%- endfor -%}" + CHATML
)


def test_a_schemas_own_words_reach_the_template_whatever_tokens_were_added() -> None:
    tokenizer = tokenizer_with(LISTED)
    tokenizer.add_tokens(["protein", "types", "strings", "functional", "parametersrequired"])
    chat = ChatFormat(tokenizer)
    schema: Any = schema_of("fold", "Fold a protein", "name")
    schema["function"]["parameters"]["properties"]["properties"] = {"type": "integer", "examples": ["<", ">"]}
    shown = chat.tokenizer.decode(flat(chat.prompt([Message(role="user", content="x")], [schema])))
    assert shown.startswith(
        "fold: Fold a protein; name is text and needed; properties is integer['<', '>']<|im_start|>"
    )


def test_a_mark_that_is_put_together_from_two_strings_quotes_nothing() -> None:
    chat = ChatFormat(tokenizer_with(SPELLED.replace("}}>{{", "}}{{")))
    messages = [Message(role="user", content="x")]
    wanted = control_of(chat, chat.prompt(messages, [schema_of("f", "g", "h")]))
    for cut in range(1, 15):
        opens, closes = (schema_of(f"agentgymquoted{one}"[:cut], f"agentgymquoted{one}"[cut:], "h") for one in (0, 1))
        assert control_of(chat, chat.prompt(messages, [opens, closes])) == wanted


def test_a_quote_that_the_template_cuts_off_is_refused_and_not_closed_by_the_next() -> None:
    cuts = "{%- for tool in tools or [] -%}{{ tool.function.description[:20] }}{%- endfor -%}" + CHATML
    chat = ChatFormat(tokenizer_with(cuts + "{{ tools[0].function.description if tools }}"))
    with pytest.raises(ChatFormatError, match="changes a tool's name or schema"):
        chat.prompt([Message(role="user", content="x")], [schema_of("f", "<|im_end|> and so on", "x")])


def test_each_string_of_a_schema_is_judged_once() -> None:
    encoder = format_of("qwen2.5").encode_template
    encoder.quoted(schema_of("object_ref", "Look it up.", "query"))
    before = encoder.alarming.cache_info()
    encoder.quoted(schema_of("object_ref", "Look it up.", "query"))
    after = encoder.alarming.cache_info()
    assert after.misses == before.misses
    assert after.hits > before.hits


def test_what_a_template_writes_may_be_no_token_at_all() -> None:
    tokenizer = tokenizer_of("mistral/first")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", "")
    chat = ChatFormat(tokenizer)
    assert chat.encode_template("\n", after=chat.end_id) == []


def test_a_tools_schema_that_needs_no_care_is_encoded_as_the_template_writes_it() -> None:
    chat = format_of("qwen2.5")
    messages, schema = [Message(role="user", content="x")], schema_of("object_ref", "Look it up.", "query")
    shown = chat.tokenizer.apply_chat_template([messages[0].openai()], tools=[schema], tokenize=False)
    before = shown.partition("x<|im_end|>")[0]
    wanted = chat.tokenizer.encode(before, add_special_tokens=False)
    assert flat(chat.prompt(messages, [schema]))[: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("found", "shown"), [("abcdefghi", "abcdefghi"), ("ab", "agentgym0"), ("[/INST]ab", "agentgym0"), ("", "agentgym0")]
)
def test_an_id_that_a_model_made_up_is_shown_where_the_template_takes_it(found: str, shown: str) -> None:
    chat = format_of("mistral")
    seen = [Message(role="tool", content="ok", tool_call_id=found, name="f")]
    assert f'"call_id": "{shown}"' in chat.tokenizer.decode(flat(chat.suffix(seen)))


def test_a_made_up_name_that_the_template_changes_is_shown_as_another() -> None:
    shouts = CHATML.replace("message.content", "(message.name or '') | upper ~ message.content")
    chat = ChatFormat(tokenizer_with(shouts))
    for name, shown in (("look", "LOOK"), ("<|im_end|>f", "UNKNOWN")):
        seen = [Message(role="tool", content="ok", name=name)]
        assert f"tool\n{shown}ok" in chat.tokenizer.decode(flat(chat.suffix(seen)))


def test_a_name_that_a_model_made_up_is_shown_as_text() -> None:
    chat = ChatFormat(tokenizer_with(CHATML.replace("message.content", "(message.name or '') ~ message.content")))
    seen = [Message(role="tool", content="ok", name="<|im_end|>f")]
    found = chat.suffix(seen)
    assert "tool\n<|im_end|>fok" in chat.tokenizer.decode(flat(found))
    assert control_of(chat, found) == control_of(chat, chat.suffix([Message(role="tool", content="ok")]))


@every_family
def test_an_answer_is_parsed_back(family: str) -> None:
    chat = format_of(family)
    text = "hello\n <|im_end|> "
    ids = chat.answer(text)
    assert ids[-1] in chat.stop_ids
    opened = "<think>\n\n</think>\n\n" if chat.opens_thought else ""
    assert chat.parse(ids) == Message(role="assistant", content=opened + text, call_format=chat.call_format)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2.5", "hermes"),
        ("llama3", "llama3_json"),
        ("mistral", "mistral"),
        ("deepseek", "deepseek"),
        ("gemma", None),
    ],
)
def test_the_format_of_calls_comes_from_the_template_and_can_be_chosen(family: str, name: str | None) -> None:
    assert format_of(family).parse([]).call_format == name
    assert ChatFormat(tokenizer_of(family), calls="fenced").parse([]).call_format == "fenced"
    with pytest.raises(UnknownNameError, match="did you mean 'mistral'"):
        ChatFormat(tokenizer_of(family), calls="mistrall")


@pytest.mark.parametrize(
    ("family", "call"),
    [
        ("qwen2.5", '<tool_call>\n{"name": "f"}\n</tool_call>'),
        ("mistral", '[TOOL_CALLS][{"name": "f"}]'),
        ("llama3", '<|python_tag|>{"name": "f"}'),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
    ],
)
def test_the_marks_of_calls_are_single_tokens_that_are_said_and_heard(family: str, call: str) -> None:
    chat = format_of(family)
    ids = chat.answer(call)
    marks = chat.tokenizer.convert_ids_to_tokens([one for one in ids[:-1] if one in chat.encode_text.control])
    assert marks
    assert "".join(marks) == "".join(one for one in _split(call, marks) if one in marks)
    assert chat.parse(ids).content == call


def _split(text: str, marks: list[str]) -> list[str]:
    found = []
    while text:
        mark = next((one for one in marks if text.startswith(one)), text[0])
        found.append(mark)
        text = text[len(mark) :]
    return found


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2.5", "\n<|im_start|>user\n<tool_response>\nok\n</tool_response><|im_end|>\n<|im_start|>assistant\n"),
        ("llama3", "<|start_header_id|>ipython<|end_header_id|>\n\n\"ok\"<|eot_id|>"
                   "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral", '[TOOL_RESULTS]{"content": ok, "call_id": "agentgym0"}[/TOOL_RESULTS]'),
        ("gemma", "\n<start_of_turn>user\nok<end_of_turn>\n<start_of_turn>model\n"),
        ("deepseek", "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>ok<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"),
    ],
)  # fmt: skip
def test_each_family_has_its_own_boundary_after_a_turn(family: str, text: str) -> None:
    chat = format_of(family)
    assert chat.tokenizer.decode(flat(chat.suffix([Message(role="tool", content="ok")]))) == text


def test_a_stop_token_that_also_opens_the_next_message_is_written_once() -> None:
    chat = format_of("glm")
    user, observation = chat.tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])
    assert {user, observation} <= set(chat.stop_ids)
    seen = [Message(role="tool", content="ok")]
    assert flat(chat.suffix(seen, ended=False))[0] == observation
    assert flat(chat.suffix(seen, stop_id=observation))[0] != observation
    assert flat(chat.suffix(seen, stop_id=user))[0] == observation  # the model expected somebody else


EOM = LLAMA3 + "{#- calls of tools that are built in end with <|eom_id|> -#}"


@pytest.mark.parametrize(
    ("template", "stop", "after"),
    [
        pytest.param(QWEN25, "<|im_end|>", "\n<|im_start|>", id="the-templates"),
        pytest.param(QWEN25, "<|endoftext|>", "<|im_end|>\n<|im_start|>", id="the-documents"),
        pytest.param(QWEN25, "<|im_start|>", "<|im_end|>\n<|im_start|>", id="an-opening"),
        pytest.param(EOM, "<|eom_id|>", "<|start_header_id|>", id="another-of-the-template"),
        pytest.param(EOM, "<|endoftext|>", "<|eot_id|><|start_header_id|>", id="not-of-the-template"),
    ],
)
def test_every_stop_token_of_a_model_ends_a_turn_and_the_templates_own_end_follows_where_it_is_another(
    template: str, stop: str, after: str
) -> None:
    tokenizer = tokenizer_with(template)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|eom_id|>"]}, replace_extra_special_tokens=False)
    number = tokenizer.convert_tokens_to_ids(stop)
    chat = ChatFormat(tokenizer, stop_ids=[number])
    assert number in chat.stop_ids
    assert chat.parse([*chat.encode_text("so"), number]).content == "so"
    found = flat(chat.suffix([Message(role="user", content="ok")], stop_id=number))
    assert tokenizer.decode(found).startswith(after)


def test_a_tools_answer_is_escaped_where_the_template_writes_json() -> None:
    ids = flat(format_of("llama3").suffix([Message(role="tool", content='a "b"\n\\')]))
    assert '"a \\"b\\"\\n\\\\"' in format_of("llama3").tokenizer.decode(ids)


def test_a_calls_id_reaches_the_template() -> None:
    ids = flat(format_of("mistral").suffix([Message(role="tool", content="ok", tool_call_id="abcdefghi")]))
    assert '"call_id": "abcdefghi"' in format_of("mistral").tokenizer.decode(ids)


@pytest.mark.parametrize("family", ["gemma", "mistral", *MARKED])
def test_a_system_message_that_is_refused_joins_the_question(family: str) -> None:
    chat = format_of(family)
    ids = flat(chat.prompt([Message(role="system", content="Be good."), Message(role="user", content="Hi")]))
    assert "Be good.\n\nHi" in chat.tokenizer.decode(ids)


@plain_family
def test_a_turn_that_was_cut_is_ended_by_the_suffix(family: str) -> None:
    chat = format_of(family)
    seen = [Message(role="user", content="ok")]
    assert flat(chat.suffix(seen, ended=False)) == [chat.end_id, *flat(chat.suffix(seen))]


@every_family
def test_guidance_is_tokenised_apart_and_leaves_no_trace(family: str) -> None:
    chat = format_of(family)
    bare = Message(role="user", content="2+2")
    pieces = chat.prompt([bare.model_copy(update={"guidance": "\nthink<|im_end|>"})])
    assert [ids for ids, kind in pieces if kind is TokenKind.GUIDANCE] == [chat.encode_text("\nthink<|im_end|>")]
    assert flat([piece for piece in pieces if piece[1] is not TokenKind.GUIDANCE]) == flat(chat.prompt([bare]))


def test_tools_reach_the_template() -> None:
    schema = {"type": "function", "function": {"name": "fetch_it", "description": "", "parameters": {}}}
    for family in ("qwen2.5", "mistral"):
        chat = format_of(family)
        assert "fetch_it" in chat.tokenizer.decode(flat(chat.prompt([Message(role="user", content="x")], [schema])))


@pytest.mark.parametrize("family", MARKED)
def test_contents_between_control_tokens_are_read_as_the_tokenizer_reads_the_whole(family: str) -> None:
    chat = format_of(family)
    shown = [Message(role="user", content="hello\n\nseen  it"), Message(role="assistant", content="Hi answer")]
    shown += [Message(role="user", content="question")]
    text = chat.tokenizer.apply_chat_template([one.openai() for one in shown], tokenize=False)
    wanted = chat.tokenizer.encode(text, add_special_tokens=False)
    found = flat(chat.prompt(shown))
    assert (found == wanted) if family.startswith("mistral") else (found[: len(wanted)] == wanted)


@pytest.mark.parametrize("family", MARKED)
def test_no_space_is_read_or_heard_that_nobody_wrote(family: str) -> None:
    chat = format_of(family)
    seen = Message(role="user", content="hello", guidance="Hi")
    assert "helloHi" in chat.tokenizer.decode(flat(chat.prompt([seen])))
    assert chat.parse(chat.answer("answer")).content == "answer"
    if family != "mistral/always":  # which reads " return" and "return" alike behind a control token
        assert chat.parse(chat.answer("  return 1\n")).content == "  return 1\n"


def test_only_fast_tokenizers_are_taken() -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHATML
    with pytest.raises(ChatFormatError, match=r"wanted a fast tokenizer .*, found ByT5Tokenizer; load it with"):
        ChatFormat(tokenizer)


def test_a_template_that_changes_a_tools_schema_which_needs_care_is_refused() -> None:
    shouts = "{%- for tool in tools or [] -%}{{ tool.function.description | upper }}{%- endfor -%}" + CHATML
    chat = ChatFormat(tokenizer_with(shouts))
    messages = [Message(role="user", content="x")]
    assert "LOOK" in chat.tokenizer.decode(flat(chat.prompt(messages, [schema_of("f", "look", "x")])))
    with pytest.raises(ChatFormatError, match=r"changes a tool's name or schema: found .*; choose a template"):
        chat.prompt(messages, [schema_of("f", "<|im_end|>", "x")])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(None, "has no chat template", id="missing"),
        pytest.param(
            REWRITES,
            r"of 'Qwen2Tokenizer' rewrites message 1 \('user'\) when a 'user' message follows: "
            r"wanted '.*user1\\n.*', found '.*user3\\n.*'; so",
            id="rewrites",
        ),
        pytest.param(
            SHORTENS, r"rewrites message 1 \('user'\) when a 'user' message follows: wanted '.*question<", id="shortens"
        ),
        pytest.param(OPEN_ENDED, "wanted a control token after an assistant message", id="no-end-token"),
        pytest.param(REFUSES, "'Qwen2Tokenizer' refuses a conversation: only in the browser", id="refuses"),
        pytest.param("{{ messages[0].content.split('') }}", "refuses a conversation: empty separator", id="raises"),
        pytest.param(TWICE, "repeats or reorders a message", id="doubles-questions"),
    ],
)
def test_an_unsuitable_template_is_refused_in_one_sentence(template: str | None, reason: str) -> None:
    with pytest.raises(ChatFormatError, match=reason):
        ChatFormat(tokenizer_with(template))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(FORGETS, "'be good' is out of place", id="forgets"),
        pytest.param(TWICE.replace("'user'", "'system'"), "repeats or reorders a message", id="twice"),
        pytest.param(LAST, "repeats or reorders a message", id="reorders"),
    ],
)
def test_a_message_that_the_template_does_not_show_once_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ChatFormatError, match=reason):
        ChatFormat(tokenizer_with(template)).prompt(
            [Message(role="system", content="be good"), Message(role="user", content="hi")]
        )


def test_templates_by_name_are_read_like_single_ones() -> None:
    tokenizer = tokenizer_with(None)
    tokenizer.chat_template = {"default": QWEN25, "other": CHATML}
    assert ChatFormat(tokenizer).call_format == "hermes"
