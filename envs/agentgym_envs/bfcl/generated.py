"""Conversations of BFCL's multi-turn form from seeds; in some, a tool or a fact is missing at first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from agentgym.sampling import derive_seed
from agentgym.task import Task, TaskSet
from agentgym.types import Record
from agentgym_envs.bfcl.apis.base import facts
from agentgym_envs.bfcl.rows import to_task

VARIANTS = ("base", "miss_func", "miss_param", "long_context")
_NOUNS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "islet", "juniper", "kelp", "lagoon")
_FOLDERS = ("archive", "drafts", "letters", "plans", "reports")
_USERS = ("Alice", "Bob", "Catherine", "Daniel")


class _Matter(Record):
    """One thing that the user wants."""

    owner: str
    config: dict[str, Any]
    text: str
    vague: str
    """The same without the fact that `detail` tells."""
    detail: str
    calls: tuple[str, ...]
    needs: str
    """The tool without which it cannot be done."""


def generated_tasks(*, count: int = 500, turns: int = 3, seed: int = 0) -> TaskSet:
    """Return conversations of so many matters; the four variants of BFCL follow one another."""

    def source() -> Iterator[Task]:
        for index in range(count):
            yield to_task(row(derive_seed(seed, "bfcl", index) % 2**31, VARIANTS[index % len(VARIANTS)], turns))

    return TaskSet("generated", source)


def row(seed: int, variant: str, turns: int) -> dict[str, Any]:
    """Return the row of a seed, in BFCL's multi-turn format.

    Args:
        seed: the same seed gives the same row.
        variant: one of `VARIANTS`: a tool or a fact that is missing at first, or long answers.
        turns: how many matters, 1 to 6.
    """
    if not 1 <= turns <= len(_MATTERS):
        raise ValueError(f"wanted 1 to {len(_MATTERS)} turns, found {turns}")
    rng = np.random.default_rng(seed)
    matters = [_MATTERS[int(at)](rng) for at in rng.permutation(len(_MATTERS))[:turns]]
    short = int(rng.integers(turns))
    questions: list[list[dict[str, str]]] = []
    gold: list[list[str]] = []
    missed: dict[str, list[str]] = {}
    for at, one in enumerate(matters):
        incomplete = at == short and variant in ("miss_func", "miss_param")
        questions.append(_said(one.vague if incomplete and variant == "miss_param" else one.text))
        gold.append([] if incomplete else list(one.calls))
        if incomplete:
            questions.append(_said(one.detail) if variant == "miss_param" else [])
            gold.append(list(one.calls))
            if variant == "miss_func":
                missed[str(len(questions) - 1)] = [one.needs]
    return {
        "id": f"generated_{variant}_{seed}",
        "question": questions,
        "initial_config": {one.owner: one.config for one in matters},
        "involved_classes": [one.owner for one in matters],
        "excluded_function": [],
        "missed_function": missed,
        "ground_truth": gold,
    }


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _file(rng: np.random.Generator) -> _Matter:
    noun, word, folder = _three(rng)
    tree: dict[str, Any] = {name: {"type": "directory", "contents": {}} for name in _FOLDERS}
    return _Matter(
        owner="GorillaFileSystem",
        config={"root": {"home": {"type": "directory", "contents": tree}}},
        text=f"Please make a file {noun}.txt in the folder {folder}, with nothing in it but the word {word}.",
        vague=f"Please make a file {noun}.txt in the folder {folder}, with nothing in it but the word I like best.",
        detail=f"The word that I like best is {word}.",
        calls=(f"cd(folder={folder!r})", f"touch(file_name='{noun}.txt')", f"echo({word!r}, '{noun}.txt')"),
        needs="echo",
    )


def _ticket(rng: np.random.Generator) -> _Matter:
    noun, word, _ = _three(rng)
    number, priority = int(rng.integers(100, 1000)), int(rng.integers(2, 6))
    queue = [{"id": number, "title": f"{noun} {word}", "status": "Open", "priority": 1, "created_by": "ann"}]
    return _Matter(
        owner="TicketAPI",
        config={"ticket_queue": queue, "ticket_counter": number + 1, "current_user": "ann"},
        text=f"Raise the priority of the ticket {number} to {priority}, and show me the ticket then.",
        vague=f"Raise the priority of the ticket {number}, and show me the ticket then.",
        detail=f"To {priority}, please.",
        calls=(f"edit_ticket(ticket_id={number}, updates={{'priority': {priority}}})", f"get_ticket({number})"),
        needs="edit_ticket",
    )


def _fuel(rng: np.random.Generator) -> _Matter:
    level, more = int(rng.integers(1, 20)), int(rng.integers(5, 30))
    return _Matter(
        owner="VehicleControlAPI",
        config={"fuelLevel": float(level)},
        text=f"Fill {more} gallons into the tank of the car.",
        vague="Fill some gallons into the tank of the car; I will tell you how many.",
        detail=f"{more} gallons.",
        calls=(f"fillFuelTank(fuelAmount={more})",),
        needs="fillFuelTank",
    )


def _order(rng: np.random.Generator) -> _Matter:
    stocks = facts()["stocks"]
    symbol, amount = str(rng.choice(list(stocks))), int(rng.integers(2, 40)) * 5
    return _Matter(
        owner="TradingBot",
        config={"authenticated": True},
        text=f"Look up {symbol} and buy {amount} shares of it at its present price.",
        vague=f"Look up {symbol} and buy shares of it at its present price.",
        detail=f"I want {amount} shares.",
        calls=(f"get_stock_info({symbol!r})", f"place_order('Buy', {symbol!r}, {stocks[symbol][0]}, {amount})"),
        needs="place_order",
    )


def _message(rng: np.random.Generator) -> _Matter:
    noun, word, _ = _three(rng)
    at = int(rng.integers(1, len(_USERS)))
    return _Matter(
        owner="MessageAPI",
        config={"current_user": "USR001"},
        text=f"Find out the id of {_USERS[at]} and send them the message: {noun} {word}",
        vague=f"Find out somebody's id for me and send them the message: {noun} {word}",
        detail=f"It is for {_USERS[at]}.",
        calls=(f"get_user_id({_USERS[at]!r})", f"send_message('USR00{at + 1}', '{noun} {word}')"),
        needs="send_message",
    )


def _post(rng: np.random.Generator) -> _Matter:
    noun, word, _ = _three(rng)
    return _Matter(
        owner="TwitterAPI",
        config={"authenticated": True, "username": "ann"},
        text=f"Post the text '{noun} and {word}' for me, without tags or mentions.",
        vague="Post a text for me, without tags or mentions.",
        detail=f"The text is '{noun} and {word}'.",
        calls=(f"post_tweet(content='{noun} and {word}')",),
        needs="post_tweet",
    )


def _three(rng: np.random.Generator) -> tuple[str, str, str]:
    noun, word = (str(one) for one in rng.choice(_NOUNS, size=2, replace=False))
    return noun, word, str(rng.choice(_FOLDERS))


_MATTERS: tuple[Callable[[np.random.Generator], _Matter], ...] = (_file, _ticket, _fuel, _order, _message, _post)
