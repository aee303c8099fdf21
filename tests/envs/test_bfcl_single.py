"""Single questions of BFCL: the right calls in any order, nothing else, and an active no where none will do."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentgym import redteam
from agentgym.errors import TaskError
from agentgym.task import Task
from agentgym.testing import check_environment
from agentgym.types import Verdict
from agentgym_envs.bfcl.env import line as as_said
from agentgym_envs.bfcl.matching import example, matches
from agentgym_envs.bfcl.single import FunctionCallEnv
from agentgym_envs.bfcl.single_rows import DECLINE, SingleTurnTasks, functions_of, generated_questions, wanted_of
from agentgym_envs.bfcl.world import Call


def play(task: Task, lines: list[str]) -> Verdict:
    env = FunctionCallEnv()
    env.reset(seed=0, options={"task": task})
    for line in lines:
        *_, terminated, truncated, info = env.step(line)
        if terminated or truncated:
            return info["verdict"]  # type: ignore[no-any-return]
    raise AssertionError("the episode has not ended")


def test_the_environment_keeps_every_promise() -> None:
    check_environment("agentgym/FunctionCall-v0")


def test_every_real_row_is_a_task_that_its_example_solves_or_is_refused_with_the_reason(data: Path) -> None:
    tasks = SingleTurnTasks(data / "bfcl_v4" / "single_turn")
    found, refused = list(tasks), tasks.refused()
    assert len(found) == 1491
    assert Counter(reason.split(":")[0] for reason in refused.values()) == {
        "its acceptable calls are not told, so any call would do": 16,
        "its acceptable calls do not fit its functions": 7,
    }
    env = FunctionCallEnv()
    for task in found[::15]:
        assert play(task, list(env.oracle(task))).value == 1.0, task.id
        assert play(task, ["I cannot do that."]).value == 0.0, task.id


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"city": "new york,", "days": 3}, True),
        ({"city": "New York", "days": 3.0, "unit": "Celsius"}, True),
        ({"city": "New York"}, False),
        ({"city": "New York", "days": True}, False),
        ({"city": "New York", "days": "3"}, False),
        ({"city": "New York", "days": 3, "unit": ""}, True),
        ({"city": "New York", "days": 3, "more": 1}, False),
        ({"city": ["New York"], "days": 3}, False),
        ({"city": None, "days": 3}, False),
    ],
)
def test_arguments_are_compared_by_meaning(arguments: dict[str, Any], right: bool) -> None:
    wanted: list[Any] = [{"weather": {"city": ["New York", "NYC"], "days": [3], "unit": ["celsius", ""]}}]
    assert (matches([Call(name="weather", arguments=arguments)], wanted) == "") is right


def test_lists_and_objects_are_compared_part_by_part() -> None:
    wanted: list[Any] = [{"f": {"points": [[1, 2], [2, 1]], "filter": [{"kind": ["a", "b"], "top": [3, ""]}]}}]
    for points, chosen, right in (
        ([1, 2], {"kind": "B"}, True),
        ([2, 1.0], {"kind": "a", "top": 3}, True),
        ([1], {"kind": "a"}, False),
        ([1, 2], {"kind": "c"}, False),
        ([1, 2], {"top": 3}, False),
    ):
        found = matches([Call(name="f", arguments={"points": points, "filter": chosen})], wanted)
        assert (found == "") is right


def test_calls_may_come_in_any_order_but_each_only_once() -> None:
    wanted = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}]
    one, two = Call(name="f", arguments={"a": 1}), Call(name="f", arguments={"a": 2})
    assert matches([one, two], wanted) == matches([two, one], wanted) == ""
    assert matches([two, two], wanted) == "1 of 2 calls are not as wanted"
    assert matches([one, two, two], wanted) == "wanted 2 calls, found 3"
    assert matches([], wanted) == "wanted 2 calls, found 0"


NO = '<tool_call>{"name": "no_tool_fits", "arguments": {}}</tool_call>'


def test_where_no_tool_fits_silence_and_any_call_score_0_and_an_active_no_1(tmp_path: Path) -> None:
    function = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {}}}
    row = {"id": "irrelevance_0", "question": [[{"role": "user", "content": "?"}]], "function": [function]}
    (tmp_path / "BFCL_irrelevance.json").write_text(json.dumps(row), encoding="utf-8")
    [task] = SingleTurnTasks(tmp_path)
    assert play(task, [NO, "None of these."]).value == 1.0
    assert play(task, [f"{NO}\n{NO}", "None of these."]).value == 0.0
    assert play(task, ["None of these."]).value == 0.0


def test_a_generated_question_that_can_partly_be_met_wants_both_a_call_and_a_no() -> None:
    for task in generated_questions(count=40):
        if "partly" in task.id:
            call = as_said(example(next(one for one in wanted_of(task) if DECLINE not in one)))
            assert play(task, [f"{NO}\n{call}", "Done."]).value == 1.0
            assert [play(task, [said, "Done."]).value for said in (NO, call, f"{NO}\n{NO}")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("at", range(4))
def test_no_attack_scores(at: int) -> None:
    task = list(generated_questions(count=4))[at]
    target = redteam.target_of(FunctionCallEnv, task)
    attacks = redteam.attacks_on(target, FunctionCallEnv())
    assert {"says the calls", "makes the calls twice", "uses every tool once"} <= {one.name for one in attacks}
    for attack in attacks:
        assert redteam.run(FunctionCallEnv, target, attack).held, attack.name


def test_a_folder_without_questions_is_refused_and_calls_that_cannot_be_sent_are_too(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no file BFCL_\*\.json"):
        list(SingleTurnTasks(tmp_path))
    function = {
        "name": "f",
        "description": "",
        "parameters": {"type": "dict", "properties": {"a": {"type": "integer"}}},
    }
    rows = [
        {"id": str(at), "question": [[{"role": "user", "content": "?"}]], "function": [function]} for at in range(3)
    ]
    (tmp_path / "BFCL_x.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    answers = tmp_path / "possible_answer"
    answers.mkdir()
    told = [{"id": "0", "ground_truth": [{"f": {"a": [1]}}]}, {"id": "1", "ground_truth": [{"f": {"a": ["x"]}}]}]
    (answers / "BFCL_x.json").write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    tasks = SingleTurnTasks(tmp_path)
    assert [one.id for one in tasks] == ["0"]
    assert tasks.refused().keys() == {"1", "2"}


def test_no_generated_question_of_the_training_split_is_held_out() -> None:
    where: dict[str, set[str]] = {}
    for task in generated_questions(count=400):
        where.setdefault(task.public.prompt, set()).add(task.split)
    assert len(where) < 350
    assert all(len(splits) == 1 for splits in where.values())


def test_neither_the_number_of_functions_nor_their_order_tells_the_right_one() -> None:
    firsts: Counter[bool] = Counter()
    kinds: dict[int, set[str]] = {}
    for task in generated_questions(count=400):
        kind, names = task.id.split("_")[1], list(functions_of(task))
        kinds.setdefault(len(names), set()).add(kind)
        if kind == "multiple":
            firsts[names[0] in wanted_of(task)[0]] += 1
    several = {"multiple", "parallel"}
    assert kinds == {1: {"simple", "partly"}, 2: {*several, "partly"}, 3: several}
    assert 0.25 < firsts[True] / firsts.total() < 0.6
