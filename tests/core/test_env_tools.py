"""Tools from elsewhere, guards in front of them, and environments in which plain text is said to somebody."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from agentgym.env import AgentEnv, Submit, tool
from agentgym.task import Public, Task, TaskSet
from agentgym.tools import SchemaTool, Tool
from agentgym.types import Submission, ToolCall, Turn

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Weather(AgentEnv):
    """Ask for the weather elsewhere, tell it, and say goodbye."""

    tasks = TaskSet("weather", lambda: [Task(id="w", split="train", public=Public(prompt="Rain?"))])
    conversational: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tools = {**self.tools, "forecast": SchemaTool("forecast", "Tell the weather.", PARAMETERS)}
        self.asked: list[dict[str, Any]] = []

    @tool
    def note(self, text: str) -> str:
        """Write something down."""
        return f"noted {text}"

    def call_tool(self, one: Tool, arguments: Mapping[str, Any]) -> Any:
        if one.name != "forecast":
            return super().call_tool(one, arguments)
        self.asked.append(dict(arguments))
        return "rain"

    def on_text(self, text: str) -> str | Submit:
        return Submit(text) if text.startswith("bye") else "and tomorrow?"

    def grade(self, task: Task, submission: Submission) -> bool:
        return "rain" in (submission.answer or "")


@pytest.fixture
def env() -> Weather:
    made = Weather()
    made.reset(seed=0)
    return made


def test_a_tool_known_by_its_schema_alone_is_called_with_checked_arguments(env: Weather) -> None:
    observation, *_ = env.step(call("forecast", city="Oslo", days=2))
    assert (observation[0].role, observation[0].content) == ("tool", "rain")
    assert env.asked == [{"city": "Oslo", "days": 2}]
    assert env.tools["forecast"].schema["function"]["parameters"] == PARAMETERS
    assert env.tools["forecast"].text_argument == "city"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "'city' is a required property"),
        ({"city": 3}, "city: 3 is not of type 'string'"),
        ({"city": "Oslo", "days": 0}, "days: 0 is less than the minimum of 1"),
        ({"city": "Oslo", "day": 1}, "did you mean 'days'?"),
    ],
)
def test_arguments_that_do_not_fit_a_schema_reach_no_tool(env: Weather, arguments: dict[str, Any], told: str) -> None:
    observation, *_ = env.step(call("forecast", **arguments))
    assert told in observation[0].content
    assert observation[0].content.startswith("error: forecast: ")
    assert env.asked == []


def test_a_malformed_schema_is_refused_when_the_tool_is_made() -> None:
    with pytest.raises(ValueError, match="the schema of the tool 'odd' is malformed: "):
        SchemaTool("odd", "", {"type": "no such type"})


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/secret", "file:///etc/hostname", "#/nowhere"])
def test_what_a_schema_refers_to_is_never_fetched(place: str) -> None:
    with pytest.raises(ValueError, match="which is not in it"):
        SchemaTool("odd", "", {"type": "object", "properties": {"a": {"$ref": place}}})


def test_a_schema_may_refer_to_its_own_parts() -> None:
    parameters = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/word"}},
        "$defs": {"word": {"type": "string"}},
    }
    one = SchemaTool("even", "", parameters)
    assert one.check({"a": "x"}) == {"a": "x"}
    with pytest.raises(ValueError, match="a: 3 is not of type 'string'"):
        one.check({"a": 3})


def test_text_is_said_to_somebody_and_may_end_the_episode(env: Weather) -> None:
    observation, _, terminated, _, info = env.step("It rains.")
    assert (observation[0].role, observation[0].content) == ("user", "and tomorrow?")
    assert (terminated, info["signals"]["malformed"]) == (False, 0.0)
    observation, reward, terminated, truncated, info = env.step("bye: rain")
    assert (observation, reward, terminated, truncated) == ((), 1.0, True, False)
    assert info["end"] == "submitted"


def test_a_guard_sees_every_call_before_it_runs_and_its_refusal_is_an_observation() -> None:
    seen: list[tuple[str, int]] = []

    def once(asked: ToolCall, turns: Sequence[Turn]) -> str | None:
        seen.append((asked.name, len(turns)))
        return "only one forecast per conversation" if asked.name == "forecast" and turns else None

    env = Weather(guard=once)
    env.reset(seed=0)
    *_, info = env.step(call("forecast", city="Oslo"))
    assert info["signals"]["refused"] == 0.0
    observation, *_, info = env.step(call("forecast", city="Bergen") + call("note", text="x"))
    assert [one.content for one in observation] == [
        "error: refused: only one forecast per conversation",
        "noted x",
    ]
    assert (info["signals"]["refused"], info["signals"]["valid_calls"]) == (1.0, 1.0)
    assert env.asked == [{"city": "Oslo"}]
    assert seen == [("forecast", 0), ("forecast", 1), ("note", 1)]
