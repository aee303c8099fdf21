"""Small worlds to ask about: two kinds of things, and events that connect them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FIRST = (
    "Ada",
    "Boris",
    "Chen",
    "Dora",
    "Emil",
    "Farah",
    "Goran",
    "Hana",
    "Ivo",
    "Jin",
    "Kira",
    "Luis",
    "Mona",
    "Nils",
)
_LAST = ("Adler", "Brandt", "Costa", "Dahl", "Eriksen", "Fontana", "Garcia", "Huber", "Ito", "Jansen", "Kovac", "Lind")


@dataclass(frozen=True, slots=True)
class Kind:
    """A table of things with a name, a group that they belong to, and a number."""

    table: str
    singular: str
    group: str
    groups: tuple[str, ...]
    number: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """What they are called; empty for people."""


@dataclass(frozen=True, slots=True)
class World:
    """Two tables, and one of events that names a row of each."""

    name: str
    actor: Kind
    target: Kind
    events: str
    event: str
    did: str
    """What an actor did to a target, as in: customers who <ordered> a product."""
    amount: str
    high: int

    @property
    def actor_id(self) -> str:
        """The events' column for the actor."""
        return f"{self.actor.singular}_id"

    @property
    def target_id(self) -> str:
        """The events' column for the target."""
        return f"{self.target.singular}_id"


WORLDS = (
    World(
        "shop",
        Kind("customers", "customer", "city", ("Lyon", "Porto", "Graz", "Turku"), "age", 18, 80),
        Kind("products", "product", "category", ("tools", "toys", "garden", "books"), "price", 2, 90,
             ("Hammer", "Kite", "Rake", "Atlas", "Drill", "Puzzle", "Hose", "Novel", "Saw", "Robot", "Spade", "Diary")),
        "orders", "order", "ordered", "quantity", 9,
    ),
    World(
        "school",
        Kind("students", "student", "hometown", ("Riga", "Bergen", "Split", "Cork"), "year", 1, 6),
        Kind("courses", "course", "department", ("science", "history", "music", "sports"), "credits", 1, 12,
             ("Optics", "Rome", "Choir", "Rowing", "Genetics", "Trade", "Piano", "Fencing", "Logic", "Maps")),
        "enrolments", "enrolment", "enrolled in", "points", 100,
    ),
    World(
        "clinic",
        Kind("patients", "patient", "district", ("north", "south", "east", "west"), "age", 1, 95),
        Kind("doctors", "doctor", "speciality", ("heart", "skin", "eyes", "teeth"), "experience", 1, 40),
        "visits", "visit", "visited", "cost", 300,
    ),
    World(
        "library",
        Kind("members", "member", "town", ("Ghent", "Basel", "Linz", "Turin"), "age", 8, 90),
        Kind("books", "book", "genre", ("crime", "travel", "poetry", "cooking"), "pages", 60, 900,
             ("Ashes", "Harbour", "Verses", "Saffron", "Alibi", "Passage", "Sonnet", "Thyme", "Motive", "Atoll")),
        "loans", "loan", "borrowed", "days", 60,
    ),
)  # fmt: skip


def script(world: World, rng: np.random.Generator, size: int) -> str:
    """Return the SQL that makes a world with about `size` things of each kind and three times as many events."""
    lines: list[str] = []
    counts: list[int] = []
    for kind in (world.actor, world.target):
        names = kind.names or _people(rng, size)
        counts.append(len(names))
        lines.append(
            f"CREATE TABLE {kind.table} (id INTEGER PRIMARY KEY, name TEXT NOT NULL, {kind.group} TEXT NOT NULL, "
            f"{kind.number} INTEGER NOT NULL);"
        )
        for number, name in enumerate(names, start=1):
            group = kind.groups[int(rng.integers(len(kind.groups)))]
            lines.append(
                f"INSERT INTO {kind.table} VALUES ({number}, '{name}', '{group}', "
                f"{int(rng.integers(kind.low, kind.high + 1))});"
            )
    lines.append(
        f"CREATE TABLE {world.events} (id INTEGER PRIMARY KEY, {world.actor_id} INTEGER NOT NULL REFERENCES "
        f"{world.actor.table} (id), {world.target_id} INTEGER NOT NULL REFERENCES {world.target.table} (id), "
        f"{world.amount} INTEGER NOT NULL);"
    )
    for number in range(1, 3 * size + 1):
        actor, target = (int(rng.integers(1, 1 + count)) for count in counts)
        amount = int(rng.integers(1, world.high + 1))
        lines.append(f"INSERT INTO {world.events} VALUES ({number}, {actor}, {target}, {amount});")
    return "\n".join(lines)


def _people(rng: np.random.Generator, count: int) -> list[str]:
    every = [f"{first} {last}" for first in _FIRST for last in _LAST]
    return [every[int(index)] for index in rng.permutation(len(every))[:count]]
