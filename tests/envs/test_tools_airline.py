"""An airline of tau-bench's form: its rules show in the records, and the benchmark's own files are read, never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym import redteam
from agentgym.errors import TaskError
from agentgym.task import Task
from agentgym.testing import check_environment
from agentgym.types import Verdict
from agentgym_envs.tools.airline import AirlineWorld
from agentgym_envs.tools.airline_tasks import airline, airline_tasks, row
from agentgym_envs.tools.env import ToolsEnv
from agentgym_envs.tools.state_hash import StateHash
from agentgym_envs.tools.tables import Tables
from agentgym_envs.tools.tau_bench import TauTasks

START = airline(0)


def play(task: Task, lines: list[str]) -> Verdict:
    env = ToolsEnv(family="airline", count=1)
    env.reset(seed=0, options={"task": task})
    for line in lines:
        *_, terminated, truncated, info = env.step(line)
        if terminated or truncated:
            return info["verdict"]  # type: ignore[no-any-return]
    raise AssertionError("the episode has not ended")


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.fixture
def world() -> AirlineWorld:
    return AirlineWorld(Tables(START))


def mine(cabin: str) -> dict[str, Any]:
    return next(one for one in START["reservations"].values() if one["cabin"] == cabin)


def test_the_environment_keeps_every_promise() -> None:
    check_environment("agentgym/Tools-v0", family="airline", count=40)


def test_the_expert_scores_1_and_whoever_does_nothing_less_or_all_that_is_asked_for_0() -> None:
    env = ToolsEnv(family="airline", count=30)
    for task in env.tasks:
        lines = list(env.oracle(task))
        changed = [line for line in lines if "tool_call" in line]
        assert changed
        assert play(task, lines).value == 1.0
        assert play(task, [""]).value == play(task, [*lines[:1], *lines[2:]]).value == 0.0
        user = START["users"][task.public.prompt.split("user id is ")[1].split(".")[0]]
        for key in user["reservations"]:
            if key in task.public.prompt and not any(key in line for line in changed):
                against = call("cancel_reservation", reservation_id=key)
                assert play(task, [*lines[:-1], against, lines[-1]]).level == "failed"


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_every_task_has_something_to_do_and_something_to_refuse(seed: int) -> None:
    made = row(START, seed)
    assert made == row(START, seed)
    assert len(made["actions"]) == 1
    assert sum(key in made["instruction"] for key in START["users"][made["user_id"]]["reservations"]) >= 1


def test_no_attack_of_its_author_scores() -> None:
    def make() -> ToolsEnv:
        return ToolsEnv(family="airline", count=3)

    env = make()
    for task in env.tasks:
        target = redteam.target_of(make, task)
        own = [one for one in redteam.attacks_on(target, env) if one.name in env.attacks(task)]
        assert len(own) == 2
        assert all(redteam.run(make, target, one).held for one in own)


def test_the_published_layout_is_read_as_literals(tmp_path: Path) -> None:
    made = [row(START, seed) for seed in range(3)]
    (tmp_path / "data").mkdir()
    for name, table in START.items():
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    tasks = ", ".join(map(_task_text, made))
    (tmp_path / "tasks_test.py").write_text(f"from x import Task, Action\n\nTASKS = [{tasks}]\n", encoding="utf-8")
    found = list(TauTasks.from_folder(tmp_path))
    assert [one.id for one in found] == ["airline/test/0", "airline/test/1", "airline/test/2"]
    assert {one.split for one in found} == {"test"}
    env = ToolsEnv(family="tau_bench", path=str(tmp_path))
    env.reset(seed=0, options={"task": found[0]})
    for line in env.oracle(found[0]):
        *_, info = env.step(line)
    assert info["verdict"].value == 1.0


def _task_text(one: dict[str, Any]) -> str:
    actions = [f"Action(name={act['name']!r}, kwargs={act['kwargs']!r})" for act in one["actions"]]
    told = f"user_id={one['user_id']!r}, instruction={one['instruction']!r}, outputs={one['outputs']!r}"
    return f"Task(annotator='', {told}, actions=[{', '.join(actions)}])"


def test_a_task_file_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, table in START.items():
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    mark = tmp_path / "ran"
    (tmp_path / "tasks_dev.py").write_text(f"TASKS = [Task(instruction=open({str(mark)!r}, 'w').name)]", "utf-8")
    with pytest.raises(TaskError, match="no list of tasks written as literals"):
        list(TauTasks.from_folder(tmp_path))
    assert not mark.exists()


def test_a_recorded_hash_must_come_out(tmp_path: Path) -> None:
    made = row(START, 1)
    world = AirlineWorld(Tables(START))
    for one in made["actions"]:
        world.call(one["name"], one["kwargs"])
    right = {**made, "gold_db_sha256": StateHash(START)(world.tables.touched())}
    (tmp_path / "db").mkdir()
    for name, table in START.items():
        (tmp_path / "db" / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    rows = [right, {**right, "id": "wrong", "gold_db_sha256": "0" * 64}]
    (tmp_path / "tasks_train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = TauTasks.from_folder(tmp_path)
    assert [one.id for one in tasks] == [made["id"]]
    assert tasks.refused() == {"wrong": "its gold actions do not leave the state behind whose hash it tells"}


def test_what_is_booked_is_paid_exactly_and_certificates_are_used_up(world: AirlineWorld) -> None:
    user_id, user = next(iter(START["users"].items()))
    card = next(iter(user["payment_methods"]))
    world.call("send_certificate", {"user_id": user_id, "amount": 100.0})
    flight = next(iter(START["flights"].values()))
    price = flight["dates"]["2024-05-16"]["prices"]["economy"]
    booked = {
        "user_id": user_id, "origin": flight["origin"], "destination": flight["destination"], "flight_type": "one_way",
        "cabin": "economy", "flights": [{"flight_number": flight["flight_number"], "date": "2024-05-16"}],
        "passengers": [{"first_name": "A", "last_name": "B", "dob": "1990-01-01"}], "total_baggages": 1,
        "nonfree_baggages": 1, "insurance": "yes",
    }  # fmt: skip
    payments = [{"payment_id": "certificate_3221322", "amount": 50}, {"payment_id": card, "amount": price + 30}]
    with pytest.raises(ValueError, match=f"the price is {price + 80}, paid {price + 81}"):
        world.call("book_reservation", {**booked, "payment_methods": [*payments, {"payment_id": card, "amount": 1}]})
    world.call("book_reservation", {**booked, "payment_methods": payments})
    changed = world.tables.changes()
    assert changed["reservations"]["HATHAT"]["flights"][0]["price"] == price
    assert "certificate_3221322" not in changed["users"][user_id]["payment_methods"]
    assert changed["users"][user_id]["reservations"][-1] == "HATHAT"


def test_kept_flights_keep_their_price_and_cancelling_turns_every_payment_back(world: AirlineWorld) -> None:
    one = mine("economy")
    leg = {name: one["flights"][0][name] for name in ("flight_number", "date")}
    same = {"reservation_id": one["reservation_id"], "cabin": "economy", "flights": [leg],
            "payment_id": one["payment_history"][0]["payment_id"]}  # fmt: skip
    world.call("update_reservation_flights", same)
    assert world.tables.changes() == {}
    world.call("cancel_reservation", {"reservation_id": one["reservation_id"]})
    changed = world.tables.changes()["reservations"][one["reservation_id"]]
    assert changed["status"] == "cancelled"
    assert sum(paid["amount"] for paid in changed["payment_history"]) == 0


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("update_reservation_passengers", {"passengers": []}, "number of passengers"),
        ("update_reservation_baggages",
         {"total_baggages": 9, "nonfree_baggages": 9, "payment_id": "credit_card_0"}, "payment method not found"),
        ("update_reservation_flights",
         {"cabin": "business", "flights": [{"flight_number": "HAT000", "date": "2024-05-16"}],
          "payment_id": "credit_card_0"}, "flight HAT000 is not available"),
        ("cancel_reservation", {"reservation_id": "NOBODY"}, "reservation not found"),
    ],
)  # fmt: skip
def test_what_the_airline_refuses_changes_nothing(
    world: AirlineWorld, name: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        world.call(name, {"reservation_id": mine("economy")["reservation_id"], **changes})
    assert world.tables.changes() == {}


def test_flights_are_found_direct_and_with_one_stop(world: AirlineWorld) -> None:
    asked = {"origin": "BOS", "destination": "SEA", "date": "2024-05-17"}
    direct = json.loads(world.call("search_direct_flight", asked))
    assert len(direct) == 2
    assert all((one["origin"], one["destination"], one["status"]) == ("BOS", "SEA", "available") for one in direct)
    for first, second in json.loads(world.call("search_onestop_flight", asked)):
        assert first["destination"] == second["origin"]
        assert first["scheduled_arrival_time_est"] <= second["scheduled_departure_time_est"]
    assert json.loads(world.call("list_all_airports", {}))["BOS"] == "Boston"


def test_generated_airlines_are_reproducible_and_differ_by_seed() -> None:
    assert airline(0) == START
    assert airline(1) != START
    assert [one.id for one in airline_tasks(count=5)] == [one.id for one in airline_tasks(count=5)]


def test_whoever_recites_the_prices_of_bags_has_not_said_what_was_asked() -> None:
    recited = ", ".join(str(50 * bags) for bags in range(1, 10))
    env = ToolsEnv(family="airline", count=30)
    asked = [task for task in env.tasks if "paid for it in all" in task.public.prompt]
    assert len(asked) > 3
    for task in asked:
        *lines, _ = env.oracle(task)
        assert play(task, [*lines, f"Done: {recited}."]).level == "failed"


def test_no_customer_with_the_same_wishes_is_in_two_splits() -> None:
    where: dict[tuple[str, ...], set[str]] = {}
    for task in airline_tasks(count=500):
        where.setdefault(tuple(sorted(task.public.prompt.split(". "))), set()).add(task.split)
    assert len(where) < 480
    assert all(len(splits) == 1 for splits in where.values())


def booking(**changes: Any) -> str:
    flight = next(iter(START["flights"].values()))
    return call("book_reservation", **{
        "user_id": next(iter(START["users"])), "origin": flight["origin"], "destination": flight["destination"],
        "flight_type": "one_way", "cabin": "economy",
        "flights": [{"flight_number": flight["flight_number"], "date": "2024-05-16"}],
        "passengers": [{"first_name": "A", "last_name": "B", "dob": "1990-01-01"}], "payment_methods": [],
        "total_baggages": 0, "nonfree_baggages": 0, "insurance": "no", **changes,
    })  # fmt: skip


def test_a_certificate_that_pays_twice_or_bags_without_number_void_no_episode() -> None:
    half = next(iter(START["flights"].values()))["dates"]["2024-05-16"]["prices"]["economy"] / 2
    one = mine("economy")
    bags = {"reservation_id": one["reservation_id"], "payment_id": one["payment_history"][0]["payment_id"]}
    task = next(iter(airline_tasks(count=1)))
    attacks = [
        [call("send_certificate", user_id=next(iter(START["users"])), amount=5000.0),
         booking(payment_methods=[{"payment_id": "certificate_3221322", "amount": half}] * 2)],
        [booking(nonfree_baggages=10**300)],
        [booking(nonfree_baggages=10**400)],
        [call("update_reservation_baggages", **bags, total_baggages=1, nonfree_baggages=9 * 10**4298)],
    ]  # fmt: skip
    for lines in attacks:
        verdict = play(task, [*lines, "Done."])
        assert (verdict.value, verdict.error) == (0.0, None)
