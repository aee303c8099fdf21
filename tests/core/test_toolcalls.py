"""Only what the assistant wrote as a call is a call; everything else gets feedback and no crash."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.testing import ToyEnv
from agentgym.toolcalls import parse_calls
from agentgym.tools import Submit, tool, tools_of

TOOLS = tools_of(ToyEnv)


def tagged(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_tagged_calls_are_read_in_order() -> None:
    found = parse_calls(f"First {tagged('reverse', text='ab')}\nthen {tagged('answer', text='ba')}", TOOLS)
    assert [(one.name, one.arguments) for one in found.calls] == [
        ("reverse", {"text": "ab"}),
        ("answer", {"text": "ba"}),
    ]
    assert found.problems == ()


def test_the_last_tag_may_be_left_open() -> None:
    assert parse_calls('<tool_call>{"name": "answer", "arguments": {"text": "x"}}', TOOLS).calls[0].name == "answer"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("<tool_call>{not json}</tool_call>", "not valid JSON", id="no-json"),
        pytest.param("<tool_call>[1]</tool_call>", 'wanted {"name"', id="a-list"),
        pytest.param('<tool_call>{"arguments": {}}</tool_call>', 'wanted {"name"', id="no-name"),
        pytest.param('<tool_call>{"name": "answer", "arguments": "x"}</tool_call>', "must be a JSON object", id="text"),
        pytest.param("<tool_call>" + "[" * 100_000 + "</tool_call>", "", id="deeply-nested"),
        pytest.param('<tool_call>{"name": "answer", "arguments": {"text": "\\ud800"}}</tool_call>', "", id="surrogate"),
        pytest.param('<tool_call>{"name": "answer", "arguments": {"text": 1e999}}</tool_call>', "", id="infinity"),
        pytest.param(
            f'<tool_call>{{"name": "answer", "arguments": {{"n": -{"9" * 310}}}}}</tool_call>',
            "an integer is out of the range",
            id="larger-than-a-float",
        ),
        pytest.param(f'<tool_call>{{"name": "answer", "arguments": {{"n": {"9" * 5000}}}}}</tool_call>', "", id="huge"),
    ],
)
def test_a_malformed_call_is_a_problem_told_to_the_agent(text: str, problem: str) -> None:
    found = parse_calls(text, TOOLS)
    if problem:
        assert problem in found.problems[0]
    else:
        assert len(found.calls) + len(found.problems) == 1


@given(st.text(st.sampled_from('<>/tool_callanswer\n`{}": '), max_size=60))
def test_no_text_whatever_makes_the_parser_raise(text: str) -> None:
    parse_calls(text, TOOLS)


def test_a_fenced_block_named_after_a_tool_is_a_call_and_other_blocks_are_not() -> None:
    text = "```python\nanswer('x')\n```\n```answer\nx\ny\n```"
    found = parse_calls(text, TOOLS)
    assert [(one.name, one.arguments) for one in found.calls] == [("answer", {"text": "x\ny"})]


def test_inline_fences_are_not_calls() -> None:
    assert parse_calls("say ```answer x``` now", TOOLS).calls == ()


def test_tagged_calls_win_over_fenced_ones() -> None:
    found = parse_calls(f"{tagged('reverse', text='a')}\n```answer\nx\n```", TOOLS)
    assert [one.name for one in found.calls] == ["reverse"]


def test_a_tools_schema_has_the_shape_of_openai() -> None:
    shape = TOOLS["reverse"].schema
    assert shape["function"]["name"] == "reverse"
    assert shape["function"]["description"] == "Reverse a text, once or more often."
    assert shape["function"]["parameters"] == {
        "additionalProperties": False,
        "properties": {"text": {"type": "string"}, "times": {"type": "integer", "default": 1}},
        "required": ["text"],
        "type": "object",
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param({}, "text: Field required", id="missing"),
        pytest.param({"text": 3}, "text: Input should be a valid string", id="wrong-type"),
        pytest.param({"text": "a", "times": "2"}, "times: Input should be a valid integer", id="no-coercion"),
        pytest.param({"text": "a", "extra": 1}, "extra: Extra inputs are not permitted", id="unknown"),
    ],
)
def test_arguments_are_checked_strictly(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=f"reverse: {problem}"):
        TOOLS["reverse"].check(arguments)


def test_a_tool_without_docstring_or_type_is_refused_when_the_class_is_read() -> None:
    class Silent:
        @tool
        def run(self, code: str) -> str:
            return code

    class Untyped:
        @tool
        def run(self, code) -> str:  # type: ignore[no-untyped-def]
            """Run."""
            return str(code)

    with pytest.raises(TypeError, match="'run' has no docstring"):
        tools_of(Silent)
    with pytest.raises(TypeError, match="'code' of the tool 'run' has no type"):
        tools_of(Untyped)


def test_a_subclass_adds_replaces_and_takes_away_tools() -> None:
    class More(ToyEnv):
        @tool
        def shout(self, text: str) -> str:
            """Raise your voice."""
            return text.upper()

        def reverse(self, text: str, times: int = 1) -> str:
            return text

    assert list(tools_of(More)) == ["answer", "shout"]


def test_submitting_carries_data_only() -> None:
    handed_in = Submit("a", files={"f.py": "x"}, score=3).submission
    assert (handed_in.answer, handed_in.files, handed_in.data) == ("a", {"f.py": "x"}, {"score": 3})
    assert Submit("  ", files={"f.py": " "}).submission.empty
