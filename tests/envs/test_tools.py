"""Generated tool worlds, the users in them, and the conversation that joins both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai_server
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import AgentgymError, InfrastructureError
from agentgym.rewards import SubGoals
from agentgym.task import Task
from agentgym.testing import check_environment
from agentgym_envs.tools.builder import built_world, generate, scenarios
from agentgym_envs.tools.env import ToolsEnv
from agentgym_envs.tools.tables import Tables
from agentgym_envs.tools.users import Persona, ScriptedUser, UserScript, first_person

DIFFICULTIES = (0, 1, 2, 3, 4)


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def play(env: ToolsEnv, task: Task, lines: Iterator[str] | list[str]) -> dict[str, Any]:
    """Play until the end, and return the last info with all signals of the episode."""
    env.reset(seed=0, options={"task": task})
    for line in lines:
        *_, terminated, truncated, info = env.step(line)
        if terminated or truncated:
            return info
    raise AssertionError("the episode has not ended")


@pytest.fixture
def env() -> ToolsEnv:
    return ToolsEnv()


def test_the_environment_keeps_every_promise() -> None:
    check_environment("agentgym/Tools-v0", difficulty=2.0)


@given(seed=st.integers(0, 2**31), difficulty=st.sampled_from(DIFFICULTIES))
@settings(max_examples=60, deadline=None)
def test_the_expert_of_any_world_scores_1_and_whoever_does_less_0(seed: int, difficulty: int) -> None:
    env, task = ToolsEnv(), generate(seed, difficulty)
    assert generate(seed, difficulty) == task
    lines = list(env.oracle(task))
    assert play(env, task, lines)["verdict"].value == 1.0
    for place, line in enumerate(lines):
        if any(name in line for name in built_world(task).changing):
            less = [*lines[:place], *lines[place + 1 :]]
            assert play(env, task, less)["verdict"].value == 0.0


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_code_that_was_asked_for_must_be_told_and_all_the_rest_must_stay(seed: int) -> None:
    env, task = ToolsEnv(), generate(seed, 4)
    world = built_world(task)
    lines = list(env.oracle(task))
    told: Any = task.hidden.data["communicate"]
    if told:
        assert play(env, task, [*lines[:-1], "All done."])["verdict"].value == 0.0
    stranger = next(
        key for key, one in world.tables.items("records")
        if one["status"] == "active" and key not in json.dumps(task.hidden.reference)
    )  # fmt: skip
    spoiled = call(world.scenario.cancel, **{f"{world.scenario.record}_id": stranger})
    info = play(env, task, [*lines[:-1], spoiled, lines[-1]])
    assert (info["verdict"].value, info["verdict"].level) == (0.0, "failed")


def test_whoever_recites_every_code_is_not_taken_to_have_told_the_right_one() -> None:
    env = ToolsEnv()
    task = next(one for one in (generate(seed, 4) for seed in range(50)) if one.hidden.data["communicate"])
    codes = [one["code"] for _, one in built_world(task).tables.items("records")]
    *lines, last = env.oracle(task)
    asked: Any = task.hidden.data["communicate"]
    unasked, plain = len(set(codes) - set(asked)), " ".join(codes)
    assert re.search(r"\d{4}", plain)
    for recited in (plain, plain.lower(), re.sub(r"(?<=\d)(?=\d{3})", ",", plain)):
        verdict = play(env, task, [*lines, f"All done: {recited}."])["verdict"]
        assert (verdict.value, verdict.level, verdict.components["said"]) == (0.0, "failed", 0.0)
        assert f"{unasked} codes were told that nobody had asked for" in verdict.feedback
    assert play(env, task, [*lines, last])["verdict"].value == 1.0


def test_signals_tell_how_far_an_episode_came(env: ToolsEnv) -> None:
    task = generate(3, 3)
    env.reset(seed=0, options={"task": task})
    met, spoiled = [], []
    for line in env.oracle(task):
        *_, info = env.step(line)
        if "goals_met" in info["signals"]:
            met.append(info["signals"]["goals_met"])
            spoiled.append(info["signals"]["goals_spoiled"])
    assert met == sorted(met)
    assert met[-1] == 1.0
    assert len(met) >= 3
    assert set(spoiled) == {0.0}


def test_harder_worlds_ask_for_more_among_more_people() -> None:
    sizes = [
        [(len(task.hidden.reference["actions"]), len(built_world(task).tables.whole()["people"]))  # type: ignore[arg-type]
         for task in (generate(seed, difficulty) for seed in range(20))]
        for difficulty in DIFFICULTIES
    ]  # fmt: skip
    means = [tuple(sum(column) / 20 for column in zip(*rows, strict=True)) for rows in sizes]
    assert means == sorted(means)
    assert len(set(means)) == len(DIFFICULTIES)


def test_each_scenario_has_tools_of_its_own(env: ToolsEnv) -> None:
    tasks = [generate(seed, 1) for seed in range(60)]
    found = {built_world(task).scenario.name: set(env.tools_for(task)) for task in tasks}
    assert found.keys() == scenarios().keys()
    assert all(len(names) == 6 for names in found.values())
    assert len(set.union(*found.values())) == 36


def test_a_refused_call_is_told_counted_and_changes_nothing(env: ToolsEnv) -> None:
    task = generate(3, 3)
    env.reset(seed=0, options={"task": task})
    kind = env.world.scenario.record  # type: ignore[attr-defined]
    observation, *_, info = env.step(call(f"show_{kind}", **{f"{kind}_id": "X0"}))
    assert observation[0].content == f"error: there is no {kind} with that id"
    assert info["signals"]["tool_errors"] == 1.0
    assert env.world.tables.changes() == {}


def test_episodes_share_a_start_that_none_can_change() -> None:
    start = {"orders": {"1": {"items": [1]}, "2": {"items": []}}}
    first, second = Tables(start), Tables(start)
    first.edit("orders", "1")["items"].append(2)
    first.remove("orders", "2")
    first.put("orders", "3", {"items": [3]})
    assert list(first.items("orders")) == [("1", {"items": [1, 2]}), ("3", {"items": [3]})]
    assert first.changes() == {"orders": {"1": {"items": [1, 2]}, "2": None, "3": {"items": [3]}}}
    with pytest.raises(KeyError):
        first.edit("orders", "2")
    assert second.changes() == {}
    assert second.whole() == start == {"orders": {"1": {"items": [1]}, "2": {"items": []}}}
    first.edit("orders", "1")["items"].pop()
    assert "1" not in first.changes()["orders"]


def test_a_scripted_user_answers_agrees_and_leaves() -> None:
    user = ScriptedUser(UserScript(instruction="…", facts={"email|mail": "a@b.c", "zip": "80218"}, patience=4))
    assert user.reply("Your mail and zip code, please?").text == "a@b.c 80218"
    assert user.reply("I would cancel it. Do you agree?").text == "Yes, please go ahead."
    assert user.reply("Done. Can I do anything else for you?").text is None
    assert user.reply("Really?").text == "Yes, please go ahead."
    assert user.reply("And now?").text is None


def test_a_personas_mood_follows_what_it_hears_once() -> None:
    user = Persona(ScriptedUser(UserScript(instruction="…", wants=("refund", "sorry"))))
    moods = [user.reply(said).mood for said in ("I am sorry. Refund?", "Sorry, sorry?", "Well?")]
    assert moods == pytest.approx([1.0, 0.9, 0.8])
    assert user.reply("Goodbye.").text is None


def test_a_persona_in_the_worst_mood_leaves() -> None:
    user = Persona(ScriptedUser(UserScript(instruction="…")))
    replies = [user.reply("Why?") for _ in range(5)]
    assert [one.text is None for one in replies] == [False] * 4 + [True]


def test_an_instruction_is_said_in_the_first_person() -> None:
    assert first_person("Your name is Al Fo. You are shy. They sent you two; you'd keep yours.") == (
        "My name is Al Fo. I am shy. They sent me two; I'd keep mine."
    )


def test_a_model_can_play_the_user() -> None:
    task = generate(3, 1)
    lines = [openai_server.say(text) for text in ("The harbour, I think.", "[END]")]
    with openai_server.endpoint(openai_server.script(*lines)) as endpoint:
        env = ToolsEnv(user={"url": endpoint.url, "model": "user"})
        env.reset(seed=0, options={"task": task})
        observation, *_ = env.step("Which one?")
        assert observation[0].content == "The harbour, I think."
        *_, terminated, _, info = env.step("Good.")
    assert (terminated, info["verdict"].value) == (True, 0.0)
    system, *talk = endpoint.bodies[-1]["messages"]
    assert task.public.prompt in system["content"]
    assert [one["role"] for one in talk] == ["user", "assistant", "user", "assistant", "user"]


def test_a_user_leaves_a_conversation_that_is_refused_and_an_endpoint_that_refuses_all_is_broken() -> None:
    task = generate(3, 1)
    with openai_server.endpoint(
        lambda body: openai_server.say("Hello.") if len(body["messages"]) == 1 else openai_server.refuse(400)
    ) as endpoint:
        env = ToolsEnv(user={"url": endpoint.url, "model": "user"})
        env.reset(seed=0, options={"task": task})
        *_, terminated, _, info = env.step("Something that its filter refuses?")
    assert (terminated, info["verdict"].value) == (True, 0.0)
    with openai_server.endpoint(lambda _: openai_server.refuse(400)) as endpoint:
        env = ToolsEnv(user={"url": endpoint.url, "model": "user"})
        env.reset(seed=0, options={"task": task})
        with pytest.raises(InfrastructureError, match="refuses even a greeting"):
            env.step("Which one?")


def test_a_model_that_plays_the_user_hears_only_so_much_at_once() -> None:
    with openai_server.endpoint(lambda _: openai_server.say("Well.")) as endpoint:
        env = ToolsEnv(user={"url": endpoint.url, "model": "user"})
        env.reset(seed=0, options={"task": generate(3, 1)})
        env.step("a" * 50_000 + "z?")
    heard = endpoint.bodies[-1]["messages"][-1]["content"]
    assert len(heard) < 8100
    assert heard.startswith("aaaa")
    assert heard.endswith("z?")
    assert "42002 characters left out" in heard


def test_bad_options_are_refused_in_one_sentence() -> None:
    with pytest.raises(AgentgymError, match="wanted user: scripted, persona, or"):
        ToolsEnv(user="robot")
    with pytest.raises(AgentgymError, match="the user's endpoint is malformed: model: Field required"):
        ToolsEnv(user={"url": "http://localhost/v1"})
    with pytest.raises(ValueError, match="wanted no path for the family 'built'"):
        ToolsEnv(path="x")
    with pytest.raises(ValueError, match="wanted a difficulty from 0 to 4"):
        generate(0, 7)
    with pytest.raises(AgentgymError, match="did you mean 'tau_bench'"):
        ToolsEnv(family="taubench")


def test_spamming_calls_lowers_what_ftrl_pays_and_undoing_pays_nothing_again() -> None:
    scheme = SubGoals(solved="solved", unsolved="unsolved", empty=-0.5, malformed=-0.3)
    task = next(one for one in (generate(seed, 1) for seed in range(50)) if _changes_something(one))

    def paid(lines: list[str]) -> float:
        env = ToolsEnv(scheme=scheme)
        env.reset(seed=0, options={"task": task})
        return sum(env.step(line)[1] for line in lines)

    lines = list(ToolsEnv().oracle(task))
    honest = paid(lines)
    goals = len(task.hidden.data["parts"]["records"]["gold"]["records"])  # type: ignore[index,call-overload,arg-type]
    told: Any = task.hidden.data["communicate"]
    assert honest == pytest.approx(1.0 + goals + 2 * len(told))
    looks = next(line for line in lines if "show_" in line)
    costs = [paid(["\n".join([line, *[looks] * times]) if "tool_call" in line else line for line in lines])
             for times in (0, 1, 5)]  # fmt: skip
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == honest > costs[1] > costs[2] > 1.0
    assert paid([lines[0], "<tool_call>{</tool_call>", *lines[1:]]) == pytest.approx(honest - 0.3)
    assert paid(["Done."]) == pytest.approx(1 / (1 + goals + len(told)))
    assert paid([""]) == pytest.approx(1 / (1 + goals + len(told)) - 0.5)
    change = next(line for line in lines if "change_" in line)
    kind, wanted = built_world(task).scenario.record, json.loads(change.split("\n")[1])["arguments"]
    old = built_world(task).tables.get("records", wanted[f"{kind}_id"])
    assert old is not None
    undo = call(f"change_{kind}", **{**wanted, "value": old[wanted["attribute"]]})
    assert paid([*lines[:-1], undo, change, lines[-1]]) == honest


def _changes_something(task: Task) -> bool:
    return '"change_' in json.dumps(task.hidden.reference)
