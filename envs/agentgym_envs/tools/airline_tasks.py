"""A small airline from a seed, and customers whose wishes meet its rules; of the form of tau-bench's tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from agentgym.sampling import derive_seed
from agentgym_envs.code.splits import digest, split_of
from agentgym_envs.rows import Placed
from agentgym_envs.tools.airline import BAG_PRICE
from agentgym_envs.tools.builder import FIRST_NAMES, LAST_NAMES
from agentgym_envs.tools.tables import Start
from agentgym_envs.tools.tau_bench import TauTasks

_AIRPORTS = ("BOS", "DEN", "JFK", "LAX", "MIA", "ORD", "SEA")
_DAYS = tuple(f"2024-05-{day}" for day in range(16, 24))
_CABINS = ("basic_economy", "economy", "business")
_FREE_BAGS = {"regular": (0, 1, 2), "silver": (1, 2, 3), "gold": (2, 3, 3)}
Action = dict[str, Any]
Wish = tuple[str, list[Action], list[str]]
"""What the customer says, what is right to do, and what they must hear."""


def airline_tasks(*, count: int = 500, seed: int = 0) -> TauTasks:
    """Return tasks over one generated airline; the same seed gives the same."""
    start = airline(seed)
    return TauTasks("airline", lambda: start, partial(_rows, start, seed, count))


def airline(seed: int) -> Start:
    """Return the records of an airline: flights, reservations and users."""
    rng = np.random.default_rng(derive_seed(seed, "airline"))
    flights: dict[str, Any] = {}
    for origin in _AIRPORTS:
        for destination in _AIRPORTS:
            if origin != destination:
                for hour in rng.permutation(range(6, 20))[:2].tolist():
                    number = f"HAT{len(flights) + 1:03d}"
                    flights[number] = _flight(rng, number, origin, destination, hour)
    users: dict[str, Any] = {}
    reservations: dict[str, Any] = {}
    names = [(first, last) for first in FIRST_NAMES for last in LAST_NAMES]
    for at in rng.choice(len(names), size=40, replace=False).tolist():
        _user(rng, names[at], flights, users, reservations)
    return {"flights": flights, "reservations": reservations, "users": users}


def _flight(rng: np.random.Generator, number: str, origin: str, destination: str, hour: int) -> dict[str, Any]:
    def day() -> dict[str, Any]:
        base = int(rng.integers(60, 200))
        prices = {cabin: base * factor for cabin, factor in zip(_CABINS, (1, 2, 4), strict=True)}
        seats = {cabin: int(rng.integers(3, 20)) for cabin in _CABINS}
        return {"status": "available", "available_seats": seats, "prices": prices}

    times = {"scheduled_departure_time_est": f"{hour:02d}:00:00", "scheduled_arrival_time_est": f"{hour + 3:02d}:00:00"}
    ends = {"flight_number": number, "origin": origin, "destination": destination}
    return {**ends, **times, "dates": {one: day() for one in _DAYS}}


def _user(
    rng: np.random.Generator, name: tuple[str, str], flights: Mapping[str, Any], users: Any, reservations: Any
) -> None:
    first, last = name
    user_id = f"{first}_{last}_{int(rng.integers(1000, 10000))}".lower()
    card = f"credit_card_{int(rng.integers(10**6, 10**7))}"
    method = {"source": "credit_card", "id": card, "brand": "visa", "last_four": f"{int(rng.integers(10**4)):04d}"}
    users[user_id] = {
        "name": {"first_name": first, "last_name": last}, "email": f"{first}.{last}@example.com".lower(),
        "dob": _birth(rng), "payment_methods": {card: method}, "saved_passengers": [],
        "membership": str(rng.choice(list(_FREE_BAGS))), "reservations": [],
    }  # fmt: skip
    for cabin in _CABINS:
        key = "".join(rng.choice(list("ABCDEFGKLMNPRSTUVWXYZ"), size=6))
        number = str(rng.choice(list(flights)))
        day = str(rng.choice(_DAYS[:4]))
        price = flights[number]["dates"][day]["prices"][cabin]
        leg = {name: flights[number][name] for name in ("flight_number", "origin", "destination")}
        people = [{"first_name": first, "last_name": last, "dob": users[user_id]["dob"]}]
        people += [{"first_name": str(rng.choice(FIRST_NAMES)), "last_name": last, "dob": _birth(rng)}
                   for _ in range(int(rng.integers(2)))]  # fmt: skip
        free = _FREE_BAGS[users[user_id]["membership"]][_CABINS.index(cabin)] * len(people)
        reservations[key] = {
            "reservation_id": key, "user_id": user_id, "origin": leg["origin"], "destination": leg["destination"],
            "flight_type": "one_way", "cabin": cabin, "flights": [{**leg, "date": day, "price": price}],
            "passengers": people, "payment_history": [{"payment_id": card, "amount": price * len(people)}],
            "created_at": "2024-05-02T10:00:00", "total_baggages": free, "nonfree_baggages": 0, "insurance": "no",
        }  # fmt: skip
        users[user_id]["reservations"].append(key)


def _birth(rng: np.random.Generator) -> str:
    return f"{int(rng.integers(1950, 2004))}-{int(rng.integers(1, 13)):02d}-{int(rng.integers(1, 29)):02d}"


def _rows(start: Start, seed: int, count: int) -> Iterator[Placed]:
    for index in range(count):
        task_seed = derive_seed(seed, "airline task", index) % 2**31
        yield f"airline:{index}", row(start, task_seed)


def row(start: Start, seed: int) -> dict[str, Any]:
    """Return the task of a seed: one customer with two wishes, of which one may be against the rules."""
    rng = np.random.default_rng(seed)
    user_id = str(rng.choice(list(start["users"])))
    mine = {one["cabin"]: one for one in start["reservations"].values() if one["user_id"] == user_id}
    first = _ALLOWED[int(rng.integers(len(_ALLOWED)))](rng, start, mine)
    second = _REFUSED[int(rng.integers(len(_REFUSED)))](rng, start, mine)
    order = [first, second] if rng.integers(2) else [second, first]
    wishes = " ".join(text for text, _, _ in order)
    return {
        "id": f"airline/{seed}",
        # By what is asked and not by the seed: two seeds may ask the same, in this order or the other.
        "split": split_of(digest("\n".join([user_id, *sorted(text for text, _, _ in order)]))),
        "user_id": user_id,
        "instruction": f"Your user id is {user_id}. {wishes} If something is against the rules, you let it be.",
        "actions": [action for _, actions, _ in order for action in actions],
        "outputs": [told for _, _, outputs in order for told in outputs],
    }


def _cancel_business(_: np.random.Generator, __: Start, mine: Mapping[str, Any]) -> Wish:
    key = mine["business"]["reservation_id"]
    return f"You want to cancel your reservation {key}.", [_call("cancel_reservation", reservation_id=key)], []


def _add_bags(rng: np.random.Generator, start: Start, mine: Mapping[str, Any]) -> Wish:
    one = mine["economy"]
    more = int(rng.integers(1, 4))
    total = one["total_baggages"] + more
    # With what was paid before: the prices of one to three bags alone could all be recited.
    cost = sum(paid["amount"] for paid in one["payment_history"]) + more * BAG_PRICE
    action = _call("update_reservation_baggages", reservation_id=one["reservation_id"], total_baggages=total,
                   nonfree_baggages=more, payment_id=_card(start, one))  # fmt: skip
    text = f"You want {total} checked bags in all in your reservation {one['reservation_id']}, paid by credit card."
    return f"{text} You want to know what you have paid for it in all then, flights and bags.", [action], [str(cost)]


def _later_flight(rng: np.random.Generator, start: Start, mine: Mapping[str, Any]) -> Wish:
    one = mine["economy"]
    leg = {"flight_number": one["flights"][0]["flight_number"], "date": str(rng.choice(_DAYS[4:]))}
    action = _call("update_reservation_flights", reservation_id=one["reservation_id"], cabin="economy", flights=[leg],
                   payment_id=_card(start, one))  # fmt: skip
    text = f"You want to move your reservation {one['reservation_id']} to the same flight on {leg['date']}"
    return f"{text}; your credit card is for what it costs or refunds.", [action], []


def _other_passenger(rng: np.random.Generator, _: Start, mine: Mapping[str, Any]) -> Wish:
    one = mine["basic_economy"]
    first, *rest = one["passengers"]
    new = {**first, "first_name": str(rng.choice([name for name in FIRST_NAMES if name != first["first_name"]]))}
    action = _call("update_reservation_passengers", reservation_id=one["reservation_id"], passengers=[new, *rest])
    text = f"In your reservation {one['reservation_id']} the first passenger's first name must be {new['first_name']}"
    return f"{text}; nothing else changes there.", [action], []


def _cancel_economy(rng: np.random.Generator, _: Start, mine: Mapping[str, Any]) -> Wish:
    key = mine[str(rng.choice(_CABINS[:2]))]["reservation_id"]
    return f"You changed your plans and want to cancel your reservation {key} too.", [], []


def _move_basic_economy(rng: np.random.Generator, _: Start, mine: Mapping[str, Any]) -> Wish:
    key, day = mine["basic_economy"]["reservation_id"], str(rng.choice(_DAYS[4:]))
    return f"You want to move your reservation {key} to the same flight on {day}, by your credit card.", [], []


def _one_more(_: np.random.Generator, __: Start, mine: Mapping[str, Any]) -> Wish:
    key = mine["economy"]["reservation_id"]
    return f"You want your friend Zoe Quinn, born 1990-01-01, to come along in your reservation {key}.", [], []


def _call(name: str, **arguments: Any) -> Action:
    return {"name": name, "kwargs": arguments}


def _card(start: Start, reservation: Mapping[str, Any]) -> str:
    return str(next(iter(start["users"][reservation["user_id"]]["payment_methods"])))


_Maker = Callable[[np.random.Generator, Start, Mapping[str, Any]], Wish]
_ALLOWED: tuple[_Maker, ...] = (_cancel_business, _add_bags, _later_flight, _other_passenger)
_REFUSED: tuple[_Maker, ...] = (_cancel_economy, _move_basic_economy, _one_more)
