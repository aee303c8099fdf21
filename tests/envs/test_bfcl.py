"""BFCL's conversations: real rows replay, turns are judged one by one, and what is not offered cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import redteam
from agentgym.task import Task
from agentgym.testing import check_environment
from agentgym.tools import tools_of
from agentgym.types import Submission, Verdict
from agentgym_envs.bfcl.env import BfclEnv
from agentgym_envs.bfcl.generated import VARIANTS, row
from agentgym_envs.bfcl.rows import MultiTurnTasks, to_task
from agentgym_envs.bfcl.world import APIS, ApiWorld, Scenario, read_call
from agentgym_envs.rows import Refused

DOCS = {"GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api",
        "TicketAPI": "ticket_api", "TradingBot": "trading_bot", "TravelAPI": "travel_booking",
        "TwitterAPI": "posting_api", "VehicleControlAPI": "vehicle_control"}  # fmt: skip


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def play(task: Task, lines: Iterable[str], **options: Any) -> Verdict:
    env = BfclEnv(**options)
    env.reset(seed=0, options={"task": task})
    for line in lines:
        *_, terminated, truncated, info = env.step(line)
        if terminated or truncated:
            return info["verdict"]  # type: ignore[no-any-return]
    raise AssertionError("the episode has not ended")


def files(gold: list[list[str]], **more: Any) -> dict[str, Any]:
    tree = {"notes.txt": {"type": "file", "content": "b\na"}, "old": {"type": "directory", "contents": {}}}
    return {
        "id": "files_0",
        "question": [[{"role": "user", "content": f"Wish {at}."}] for at in range(len(gold))],
        "initial_config": {"GorillaFileSystem": {"root": {"home": {"type": "directory", "contents": tree}}}},
        "involved_classes": ["GorillaFileSystem"],
        "ground_truth": gold,
        **more,
    }


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Task]:
    return list(MultiTurnTasks(data / "bfcl_v4" / "multi_turn" / "base_even.jsonl"))


def test_the_environment_keeps_every_promise() -> None:
    check_environment("agentgym/Bfcl-v0")


def test_every_real_row_loads_and_its_reference_scores_1_silence_0_and_one_call_less_0(rows: list[Task]) -> None:
    assert len(rows) == 100
    env = BfclEnv()
    for task in rows:
        lines = list(env.oracle(task))
        assert play(task, lines).value == 1.0, task.id
        assert play(task, [""] * len(lines)).value == 0.0, task.id
        last = max(at for at, line in enumerate(lines) if "tool_call" in line)
        assert play(task, [*lines[:last], *lines[last + 1 :]]).value == 0.0, task.id


def test_the_tools_are_those_that_are_documented(data: Path) -> None:
    for owner, name in DOCS.items():
        text = (data / "bfcl_v4" / "multi_turn" / "func_doc" / f"{name}.json").read_text("utf-8")
        documented = {one["name"]: one["parameters"] for one in map(json.loads, text.splitlines())}
        found = {key: one.schema["function"]["parameters"] for key, one in tools_of(APIS[owner]).items()}
        assert found.keys() == documented.keys()
        for key, wanted in documented.items():
            assert found[key].get("properties", {}).keys() == wanted["properties"].keys(), key
            assert set(found[key].get("required", [])) == set(wanted["required"]), key


@given(seed=st.integers(0, 2**31), variant=st.sampled_from(VARIANTS), turns=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_expert_of_any_conversation_scores_1_and_whoever_leaves_a_call_out_0(
    seed: int, variant: str, turns: int
) -> None:
    task = to_task(row(seed, variant, turns))
    lines = list(BfclEnv().oracle(task))
    assert play(task, lines).value == 1.0
    for place, line in enumerate(lines):
        if "tool_call" in line and '"cd"' not in line:
            assert play(task, [*lines[:place], *lines[place + 1 :]]).value == 0.0


def test_whoever_looks_around_first_may_still_score_1() -> None:
    task = to_task(files([["sort('notes.txt')"], ["mkdir(dir_name='new')"]]))
    around = [call("ls"), call("cat", file_name="notes.txt"), call("cat", file_name="nothing")]
    rest = [call("sort", file_name="notes.txt"), "Sorted.", call("ls"), call("mkdir", dir_name="new"), "Made."]
    assert play(task, [*around, *rest]).value == 1.0


def test_what_was_read_in_an_earlier_turn_counts_but_every_turn_needs_a_call() -> None:
    task = to_task(files([["ls()"], ["sort('notes.txt')"]]))
    early = [call("ls"), call("sort", file_name="notes.txt"), "Done."]
    assert play(task, [*early, call("pwd"), "Done."]).value == 1.0
    verdict = play(task, [*early, "Done."])
    assert (verdict.value, verdict.level, verdict.components) == (0.0, "failed", {"turns": 0.5})
    assert verdict.feedback == "in user turn 2 no tool was called"


def test_a_state_that_comes_right_only_later_is_too_late() -> None:
    task = to_task(files([["mkdir('new')"], ["rm('old')"]]))
    late = [call("ls"), "Done.", call("mkdir", dir_name="new"), call("rm", file_name="old"), "Done."]
    verdict = play(task, late)
    assert verdict.feedback == "in user turn 1 the state of GorillaFileSystem is not as wanted"


def test_a_tool_that_appears_in_mid_episode_is_described_and_cannot_be_used_before() -> None:
    gold = [["pwd()"], [], ["mkdir('new')"]]
    questions = [[{"role": "user", "content": text}] for text in ("Where am I?", "Make a folder new.")]
    given = files(gold, question=[*questions, []], missed_function={"2": ["mkdir"]})
    env, task = BfclEnv(), to_task(given)
    _, info = env.reset(seed=0, options={"task": task})
    assert "mkdir" not in {one["function"]["name"] for one in info["tools"]}
    env.step(call("pwd"))
    env.step("At home.")
    observation, *_ = env.step(call("mkdir", dir_name="new"))
    assert "no tool is registered as 'mkdir'" in observation[0].content
    observation, *_ = env.step("I cannot.")
    assert '"name": "mkdir"' in observation[0].content
    env.step(call("mkdir", dir_name="new"))
    *_, info = env.step("Done.")
    assert info["verdict"].value == 1.0
    early = {"turns": [[{"name": "pwd"}, {"name": "mkdir", "arguments": {"dir_name": "new"}}], [], []]}
    verdict = env.grade(task, Submission(data=early))  # type: ignore[arg-type]
    assert (verdict.level, verdict.feedback) == ("malformed", "in user turn 1 there is no tool 'mkdir' in this turn")


def test_whoever_guesses_a_missing_fact_has_changed_too_much() -> None:
    given = files([["ls()"], [], ["touch('a.txt')"]])
    lines = [call("ls"), "Done.", call("touch", file_name="b.txt"), "Done.", call("touch", file_name="a.txt"), "Done."]
    assert play(to_task(given), lines).value == 0.0


def test_a_turn_in_which_nothing_can_be_done_says_nothing_of_the_agent_and_earns_nothing() -> None:
    task, env = to_task(files([[], ["ls()"], [], ["mkdir('new')"]])), BfclEnv()

    def told(*lines: str) -> tuple[list[float | None], Verdict]:
        env.reset(seed=0, options={"task": task})
        infos = [env.step(line)[-1] for line in lines]
        return [one["signals"].get("turn_right") for one in infos], infos[-1]["verdict"]

    signals, verdict = told("", "", "", "")
    assert signals == [None, 0.0, None, 0.0]
    assert (verdict.value, verdict.components) == (0.0, {"turns": 0.0})
    signals, verdict = told("I cannot.", call("ls"), "Done.", "I cannot.", "Done.")
    assert signals == [None, None, 1.0, None, 0.0]
    assert (verdict.value, verdict.components) == (0.0, {"turns": 0.5})
    assert env.grade(task, Submission(data={"turns": [[], [{"name": "ls"}]]})).components == {"turns": 0.5}
    assert env.grade(task, Submission(data={"turns": [[]]})).components == {"turns": 0.0}


def test_answers_of_a_long_context_are_long_and_cut() -> None:
    env = BfclEnv(observation_limit=400)
    env.reset(seed=0, options={"task": to_task(files([["ls()"]], id="multi_turn_long_context_0"))})
    observation, *_ = env.step(call("ls"))
    shown = observation[0].content
    assert shown.startswith('{"current_directory_content": ["notes.txt", "old"]}\n[log')
    assert "characters left out" in shown
    assert len(shown) < 460


def test_a_user_waits_only_so_long_in_one_turn() -> None:
    task = to_task(files([["ls()"]]))
    verdict = play(task, [call("ls")] * 10, patience=3)
    assert (verdict.value, verdict.level) == (0.0, "failed")
    assert play(task, [*[call("ls")] * 3, "Done."], patience=3).value == 1.0


def test_one_turn_takes_only_so_many_calls() -> None:
    task, env = to_task(files([["ls()"]])), BfclEnv()
    env.reset(seed=0, options={"task": task})
    observation, *_ = env.step("\n".join([call("ls")] * 201))
    assert observation[-2].content.startswith("{")
    assert observation[-1].content == "error: no more than 200 calls are made in one turn"
    *_, info = env.step("Done.")
    assert info["verdict"].value == 1.0
    forged = env.grade(task, Submission(data={"turns": [[{"name": "ls"}] * 201]}))
    assert (forged.level, forged.value) == ("malformed", 0.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"involved_classes": ["WebSearch"]}, "needs the tools of WebSearch"),
        ({"ground_truth": [[]]}, "doing nothing would solve it"),
        ({"ground_truth": [["ls()"], ["ls()"]]}, "1 user turns and a reference for 2"),
        ({"ground_truth": [["cat('nothing')"]]}, "calls nothing that works"),
        ({"ground_truth": [["cat(pwd())"]]}, "cannot be read"),
        ({"ground_truth": [["__import__('os').getpid()"]]}, "cannot be read"),
        ({"ground_truth": [["cat(name='x')"]]}, "cannot be replayed"),
        ({"excluded_function": ["ls"], "ground_truth": [["ls()"]]}, "cannot be read: wanted a call of one of 17 tools"),
        ({"initial_config": {"GorillaFileSystem": {"root": {"home": 3}}}}, "cannot be replayed"),
        ({"question": [[]]}, "its user says nothing in turn 0"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_judged_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        to_task({**files([["ls()"]]), **changes})


def test_reference_calls_that_a_tool_refuses_need_not_be_made() -> None:
    task = to_task(files([["cat('nothing')", "cat('notes.txt')"]]))
    assert play(task, [call("cat", file_name="notes.txt"), "Done."]).value == 1.0
    assert play(task, [call("cat", file_name="nothing"), "Done."]).value == 0.0


def test_refused_rows_are_counted(tmp_path: Path) -> None:
    lines = [files([["ls()"]]), files([[]], id="files_1")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    tasks = MultiTurnTasks(tmp_path)
    assert [one.id for one in tasks] == ["files_0"]
    assert list(tasks.refused()) == ["files_1"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_attack_of_its_author_scores(variant: str) -> None:
    task, env = to_task(row(5, variant, 2)), BfclEnv()
    target = redteam.target_of(BfclEnv, task)
    own = set(env.attacks(task))
    attacks = [one for one in redteam.attacks_on(target, env) if one.name in own]
    assert len(attacks) == len(own) >= 5
    for attack in attacks:
        assert redteam.run(BfclEnv, target, attack).held, attack.name


def test_calls_are_read_as_literals_and_never_run() -> None:
    tools = Scenario(classes=("TwitterAPI",), questions=("?",)).tools_at(0)
    found = read_call("post_tweet('a', ['#b'], mentions=['@c'])", tools)
    assert found.arguments == {"content": "a", "tags": ["#b"], "mentions": ["@c"]}
    for text in ("post_tweet(content=open('/etc/passwd').read())", "post_tweet('a', content='b')", "post_tweet(**{})",
                 "api.post_tweet('a')", "post_tweet", "(" * 300):  # fmt: skip
        with pytest.raises(ValueError, match="cannot be read"):
            read_call(text, tools)


def test_a_directory_that_is_copied_into_copies_stays_within_bounds() -> None:
    tree: dict[str, Any] = {"a": {"type": "directory", "contents": {}}, "b": {"type": "directory", "contents": {}}}
    config = {"GorillaFileSystem": {"root": {"home": {"type": "directory", "contents": tree}}}}
    world = ApiWorld(Scenario(classes=("GorillaFileSystem",), config=config, questions=("?",)))

    def grow() -> None:
        for at in range(60):
            world.call("cp", {"source": "b", "destination": f"c{at}"})
            world.call("cp", {"source": f"c{at}", "destination": "b"})

    with pytest.raises(ValueError, match="no space left"):
        grow()
    assert len(json.dumps(world.states())) < 2**21


def test_episodes_share_no_state() -> None:
    task = to_task(files([["rm('old')"]]))
    lines = list(BfclEnv().oracle(task))
    assert [play(task, lines).value for _ in range(2)] == [1.0, 1.0]
    world = ApiWorld(Scenario.model_validate(task.public.data["scenario"]))
    assert "old" in world.call("ls", {})


@pytest.mark.parametrize(
    ("owner", "config", "name", "arguments", "told"),
    [
        ("TravelAPI", {"access_token": "t", "token_expires_in": 3}, "set_budget_limit",
         {"access_token": "u", "budget_limit": 1.0}, "token is not valid"),
        ("TradingBot", {}, "place_order",
         {"order_type": "Buy", "symbol": "AAPL", "price": 1.0, "amount": 1}, "log in first"),
        ("VehicleControlAPI", {}, "startEngine", {"ignitionMode": "START"}, "doors must be locked first"),
        ("VehicleControlAPI", {}, "fillFuelTank", {"fuelAmount": 51.0}, "at most 50 gallons"),
        ("TicketAPI", {}, "create_ticket", {"title": "a", "description": "", "priority": 1}, "log in first"),
        ("MessageAPI", {"current_user": "USR001"}, "send_message",
         {"receiver_id": "USR009", "message": "a"}, "no member with the id"),
        ("TwitterAPI", {}, "comment", {"tweet_id": 1, "comment_content": "a"}, "log in first"),
        ("MathAPI", {}, "power", {"base": 9.0, "exponent": 1e9}, "cannot be told"),
        ("MathAPI", {}, "sum_values", {"numbers": [1e308, 1e308]}, "too large"),
    ],
)  # fmt: skip
def test_what_a_tool_refuses_changes_nothing(
    owner: str, config: dict[str, Any], name: str, arguments: dict[str, Any], told: str
) -> None:
    scenario = Scenario(classes=(owner,), config={owner: config}, questions=("?",))
    world = ApiWorld(scenario)
    with pytest.raises(ValueError, match=told):
        world.call(name, arguments)
    assert world.states() == ApiWorld(scenario).states()


def test_directories_are_nested_only_so_deep_and_no_search_outgrows_the_tree() -> None:
    world = ApiWorld(Scenario(classes=("GorillaFileSystem",), questions=("?",)))
    world.call("mkdir", {"dir_name": "d0"})

    def nest() -> None:
        for at in range(300):
            world.call("mkdir", {"dir_name": f"d{at + 1}"})
            world.call("mv", {"source": f"d{at}", "destination": f"d{at + 1}"})

    with pytest.raises(ValueError, match="at most 40 directories"):
        nest()
    world.call("cp", {"source": "d39", "destination": "other"})
    for at in range(200):
        world.call("touch", {"file_name": f"f{at}"})
    with pytest.raises(ValueError, match="too many matches"):
        world.call("find", {"path": "./" * 10_000})
    assert "/f199" in world.call("find", {"path": "."})
