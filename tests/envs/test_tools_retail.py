"""The shop of tau-bench: gold actions leave the states behind that its authors recorded, and nothing else does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import TaskError
from agentgym.guidance import RolloutRequest
from agentgym.policy import ScriptedPolicy
from agentgym.rollout import Limits, Rollouts
from agentgym.task import Task
from agentgym_envs.tools.env import ToolsEnv
from agentgym_envs.tools.retail import RetailWorld
from agentgym_envs.tools.state_hash import StateHash
from agentgym_envs.tools.tables import Tables
from agentgym_envs.tools.tau_bench import TauTasks

SHOP: dict[str, dict[str, Any]] = {
    "users": {
        "ann_1": {
            "name": {"first_name": "Ann", "last_name": "Bo"},
            "address": {"zip": "80218"},
            "email": "ann@example.com",
            "payment_methods": {
                "gift_card_1": {"source": "gift_card", "balance": 20, "id": "gift_card_1"},
                "paypal_1": {"source": "paypal", "id": "paypal_1"},
            },
            "orders": ["#W1", "#W2"],
        }
    },
    "orders": {
        name: {
            "order_id": name,
            "user_id": "ann_1",
            "items": [{"name": "Lamp", "product_id": "p", "item_id": "i1", "price": 30.5, "options": {"hue": "red"}}],
            "status": status,
            "payment_history": [{"transaction_type": "payment", "amount": 30.5, "payment_method_id": "gift_card_1"}],
        }
        for name, status in (("#W1", "pending"), ("#W2", "delivered"))
    },
    "products": {
        "p": {
            "name": "Lamp",
            "product_id": "p",
            "variants": {
                "i1": {"item_id": "i1", "options": {"hue": "red"}, "available": True, "price": 30.5},
                "i2": {"item_id": "i2", "options": {"hue": "blue"}, "available": True, "price": 45.0},
                "i3": {"item_id": "i3", "options": {"hue": "grey"}, "available": False, "price": 10.0},
                "i4": {"item_id": "i4", "options": {"hue": "gold"}, "available": True, "price": 99.0},
            },
        }
    },
}


@pytest.fixture(scope="module")
def retail(data: Path) -> TauTasks:
    return TauTasks.from_folder(data / "tau_bench" / "retail")


def test_every_recorded_state_is_reproduced_and_idle_tasks_are_refused_with_the_reason(retail: TauTasks) -> None:
    tasks = list(retail)
    refused = retail.refused()
    assert len(tasks) == 514
    assert len(refused) == 6
    assert {reason.split(", so ")[-1] for reason in refused.values()} == {"doing nothing would solve it"}


def test_a_wrong_state_is_not_taken_for_the_recorded_one(retail: TauTasks, data: Path) -> None:
    row = json.loads((data / "tau_bench" / "retail" / "tasks_dev.jsonl").read_text("utf-8").splitlines()[0])
    world = RetailWorld(Tables(retail.start))
    hashed = StateHash(retail.start)
    assert hashed(world.tables.touched()) == row["initial_db_sha256"]
    [action] = row["actions"]
    world.call(action["name"], {**action["kwargs"], "reason": "ordered by mistake"})
    assert hashed(world.tables.touched()) not in (row["initial_db_sha256"], row["gold_db_sha256"])


def test_the_expert_scores_1_and_silence_0(retail: TauTasks, data: Path) -> None:
    def make() -> ToolsEnv:
        return ToolsEnv(family="tau_bench", path=str(data / "tau_bench" / "retail"))

    env = make()
    tasks = [*retail.split("validation").take(4)]
    by_id: dict[str, Task] = {task.id: task for task in tasks}
    requests = [RolloutRequest(task, 1, 0) for task in tasks]
    expert = ScriptedPolicy(lambda episode: env.oracle(by_id[episode.task_id]))
    for policy, value in ((expert, 1.0), (ScriptedPolicy(lambda _: ("",)), 0.0)):
        groups = asyncio.run(Rollouts(make, policy, Limits()).run(requests))
        assert [one.verdict and one.verdict.value for group in groups for one in group.trajectories] == [value] * 4


@pytest.fixture
def shop() -> RetailWorld:
    return RetailWorld(Tables(SHOP))


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("cancel_pending_order", {"order_id": "#W2", "reason": "no longer needed"}, "non-pending"),
        ("cancel_pending_order", {"order_id": "W1", "reason": "no longer needed"}, "begins with #"),
        ("modify_pending_order_payment", {"order_id": "#W1", "payment_method_id": "gift_card_1"}, "different"),
        ("modify_pending_order_payment", {"order_id": "#W1", "payment_method_id": "visa"}, "payment method not found"),
        ("return_delivered_order_items",
         {"order_id": "#W2", "item_ids": ["i1"], "payment_method_id": "paypal_1"}, "either the original"),
        ("return_delivered_order_items",
         {"order_id": "#W2", "item_ids": ["i1", "i1"], "payment_method_id": "gift_card_1"}, "i1 not found"),
        *(("exchange_delivered_order_items",
           {"order_id": "#W2", "item_ids": ["i1"], "new_item_ids": new, "payment_method_id": "gift_card_1"}, told)
          for new, told in ((["i3"], "not found or available"), (["i4"], "insufficient gift card"),
                            (["i2", "i2"], "should match"))),
        ("get_product_details", {"product_id": "i1"}, "product not found"),
        ("find_user_id_by_email", {"email": "bob@example.com"}, "user not found"),
        ("calculate", {"expression": "__import__('os').getpid()"}, "numbers"),
        ("calculate", {"expression": "9**9**9"}, "numbers"),
        ("calculate", {"expression": "1/0"}, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_the_shop_refuses_changes_nothing(
    shop: RetailWorld, name: str, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        shop.call(name, arguments)
    assert shop.tables.changes() == {}


def test_money_goes_where_the_rules_say(shop: RetailWorld) -> None:
    shop.call("cancel_pending_order", {"order_id": "#W1", "reason": "no longer needed"})
    changed = shop.tables.changes()
    assert changed["users"]["ann_1"]["payment_methods"]["gift_card_1"]["balance"] == 50.5
    assert changed["orders"]["#W1"]["status"] == "cancelled"
    swap = {"order_id": "#W2", "item_ids": ["i1"], "new_item_ids": ["i2"], "payment_method_id": "gift_card_1"}
    shop.call("exchange_delivered_order_items", swap)
    assert shop.tables.changes()["orders"]["#W2"]["exchange_price_difference"] == 14.5
    assert SHOP["users"]["ann_1"]["payment_methods"]["gift_card_1"]["balance"] == 20


def test_the_calculator_calculates(shop: RetailWorld) -> None:
    assert shop.call("calculate", {"expression": "(2 + 3) * -4 / 8"}) == "-2.5"


def test_a_folder_without_a_shop_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no records can be read at"):
        ToolsEnv(family="tau_bench", path=str(tmp_path))
