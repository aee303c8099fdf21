"""Generate questions to small databases, each with the query that answers it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.splits import digest, digest_of, split_of
from agentgym_envs.sql.worlds import WORLDS, World, script

HARDEST = 6
_FEWEST_ROWS = 12


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how it is answered."""

    text: str
    sql: str
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Draw:
    """The choices of one question."""

    world: World
    group: str
    other_group: str
    number: int
    other_number: int
    amount: int


Template = Callable[[Draw], Question]


def _joined(w: World) -> str:
    a, t = w.actor.table, w.target.table
    return f"{a} a JOIN {w.events} e ON e.{w.actor_id} = a.id JOIN {t} t ON t.id = e.{w.target_id}"


def _large(d: Draw) -> str:
    return f"{d.world.events} with a {d.world.amount} of at least {d.amount}"


def _is_large(d: Draw) -> str:
    return f"{d.world.amount} >= {d.amount}"


def _count(d: Draw) -> Question:
    k = d.world.actor
    return Question(
        f"How many {k.table} are there with {k.group} {d.group} and {k.number} above {d.number}?",
        f"SELECT count(*) FROM {k.table} WHERE {k.group} = '{d.group}' AND {k.number} > {d.number}",
    )


def _names(d: Draw) -> Question:
    k = d.world.actor
    return Question(
        f"What are the names of the {k.table} whose {k.number} is at most {d.number}?",
        f"SELECT name FROM {k.table} WHERE {k.number} <= {d.number}",
    )


def _sorted(d: Draw) -> Question:
    k = d.world.actor
    return Question(
        f"List name and {k.number} of the {k.table} whose {k.group} is {d.group} and whose {k.number} is at most "
        f"{d.number}, ordered by {k.number} from the highest.",
        f"SELECT name, {k.number} FROM {k.table} WHERE {k.group} = '{d.group}' AND {k.number} <= {d.number} "
        f"ORDER BY {k.number} DESC",
        ordered=True,
    )


def _per_group(d: Draw) -> Question:
    k = d.world.target
    return Question(
        f"For each {k.group} of {k.table} whose {k.number} is above {d.other_number}: how many are there, and what is "
        f"their average {k.number}?",
        f"SELECT {k.group}, count(*), avg({k.number}) FROM {k.table} WHERE {k.number} > {d.other_number} "
        f"GROUP BY {k.group}",
    )


def _total(d: Draw) -> Question:
    w = d.world
    return Question(
        f"What is the total {w.amount} of all {_large(d)} by {w.actor.table} whose {w.actor.group} is {d.group}?",
        f"SELECT sum(e.{w.amount}) FROM {w.events} e JOIN {w.actor.table} a ON a.id = e.{w.actor_id} "
        f"WHERE a.{w.actor.group} = '{d.group}' AND e.{_is_large(d)}",
    )


def _who(d: Draw) -> Question:
    w = d.world
    return Question(
        f"Which {w.actor.table} have {w.did} any {w.target.singular} whose {w.target.group} is {d.other_group}? "
        f"Count only {_large(d)}, and give each id once, with the name.",
        f"SELECT DISTINCT a.id, a.name FROM {_joined(w)} WHERE t.{w.target.group} = '{d.other_group}' "
        f"AND e.{_is_large(d)}",
    )


def _busy(d: Draw) -> Question:
    w = d.world
    return Question(
        f"Which {w.actor.table} have more than 2 {_large(d)}? Give the id, the name and the number of these.",
        f"SELECT a.id, a.name, count(*) FROM {w.actor.table} a JOIN {w.events} e ON e.{w.actor_id} = a.id "
        f"WHERE e.{_is_large(d)} GROUP BY a.id, a.name HAVING count(*) > 2",
    )


def _pairs(d: Draw) -> Question:
    w = d.world
    return Question(
        f"For each pair of {w.actor.group} and {w.target.group} that occurs among the {w.events}: "
        f"how many {_large(d)} are there? Leave out pairs without any.",
        f"SELECT a.{w.actor.group}, t.{w.target.group}, count(*) FROM {_joined(w)} WHERE e.{_is_large(d)} "
        f"GROUP BY a.{w.actor.group}, t.{w.target.group}",
    )


def _top(d: Draw) -> Question:
    w = d.world
    return Question(
        f"Which 3 {w.target.table} have the highest total {w.amount} over their {_large(d)}? Give id and total, "
        "ordered from the highest; where totals are equal, the lower id comes first.",
        f"SELECT t.id, sum(e.{w.amount}) AS total FROM {w.target.table} t JOIN {w.events} e ON e.{w.target_id} = t.id "
        f"WHERE e.{_is_large(d)} GROUP BY t.id ORDER BY total DESC, t.id LIMIT 3",
        ordered=True,
    )


def _never(d: Draw) -> Question:
    w = d.world
    return Question(
        f"What are the ids of the {w.actor.table} who have never {w.did} a {w.target.singular} whose {w.target.group} "
        f"is {d.other_group}? Count only {_large(d)}.",
        f"SELECT id FROM {w.actor.table} WHERE id NOT IN (SELECT a.id FROM {_joined(w)} "
        f"WHERE t.{w.target.group} = '{d.other_group}' AND e.{_is_large(d)})",
    )


def _above(d: Draw) -> Question:
    w = d.world
    return Question(
        f"Count only {_large(d)}. Take each of the {w.actor.table} with at least one {w.event}, and the total "
        f"{w.amount} of each. "
        "Which ids have a total above the average of these totals?",
        f"WITH totals AS (SELECT {w.actor_id} AS id, sum({w.amount}) AS total FROM {w.events} "
        f"WHERE {_is_large(d)} GROUP BY 1) "
        "SELECT id FROM totals WHERE total > (SELECT avg(total) FROM totals)",
    )


def _best(d: Draw) -> Question:
    w = d.world
    return Question(
        f"For each {w.target.group}: which {w.target.table} have the highest total {w.amount} over their {_large(d)} "
        f"within the {w.target.group}? Give the {w.target.group}, the id and the total, and several "
        "ids if they are equal.",
        f"WITH totals AS (SELECT t.{w.target.group} AS kind, t.id AS id, sum(e.{w.amount}) AS total "
        f"FROM {w.target.table} t JOIN {w.events} e ON e.{w.target_id} = t.id "
        f"WHERE e.{_is_large(d)} GROUP BY t.id) "
        "SELECT kind, id, total FROM totals o WHERE total = (SELECT max(total) FROM totals WHERE kind = o.kind)",
    )


TEMPLATES: tuple[tuple[Template, ...], ...] = (
    (_count, _names),
    (_sorted, _per_group),
    (_total, _who),
    (_busy, _pairs),
    (_top, _never),
    (_above, _best),
)
"""By difficulty, from 1."""


def generate(seed: int, difficulty: float = 2.0) -> Task:
    """Return one task; difficulty 1 asks one table, 3 joins, 4 groups joins, 5 ranks and excludes, 6 nests queries."""
    if not 1 <= difficulty <= HARDEST:
        raise ValueError(f"wanted a difficulty from 1 to {HARDEST}, found {difficulty}")
    rng = np.random.default_rng((seed, round(difficulty * 1000)))
    choices = TEMPLATES[round(difficulty) - 1]
    while True:
        world = WORLDS[int(rng.integers(len(WORLDS)))]
        made = script(world, rng, int(rng.integers(_FEWEST_ROWS, 2 * _FEWEST_ROWS)))
        question = choices[int(rng.integers(len(choices)))](_draw(world, rng))
        rows = _rows(made, question.sql)
        if rows and any(cell not in (None, 0) for row in rows for cell in row):
            return _task(world, made, question, rows, difficulty)


def _draw(world: World, rng: np.random.Generator) -> Draw:
    actor, target = world.actor, world.target
    return Draw(
        world,
        group=actor.groups[int(rng.integers(len(actor.groups)))],
        other_group=target.groups[int(rng.integers(len(target.groups)))],
        number=int(rng.integers(actor.low + (actor.high - actor.low) // 4, actor.high)),
        other_number=int(rng.integers(target.low, (target.low + target.high) // 2)),
        amount=int(rng.integers(1, 1 + world.high // 2)),
    )


def _rows(made: str, sql: str) -> list[tuple[Any, ...]]:
    """Answer our own question about our own database."""
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(made)
        return database.execute(sql).fetchall()
    finally:
        database.close()


def _task(world: World, made: str, question: Question, rows: list[tuple[Any, ...]], difficulty: float) -> Task:
    public = Public(prompt=question.text, data={"database": {"script": made}})
    name = digest_of(public)
    tables = [one for one in (world.actor.table, world.target.table, world.events) if one in question.sql]
    return Task(
        id=f"questions/{name}",
        split=split_of(digest(question.sql)),  # by the query, so that none that is trained on is held out
        public=public,
        hidden=Hidden(
            data={"golds": [question.sql], "ordered": question.ordered},
            reference={"by_heart": " UNION ALL ".join(f"SELECT {', '.join(map(_literal, row))}" for row in rows)},
        ),
        hints=(f"You need {' and '.join(tables)}.", f"It begins like this: {question.sql[: len(question.sql) // 2]}"),
        difficulty=difficulty,
        grader="sql",
    )


def _literal(value: Any) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def tasks(*, count: int, difficulty: float, seed: int) -> Iterator[Task]:
    """Yield `count` different tasks."""
    seen: set[str] = set()
    attempt = 0
    while len(seen) < count:
        task = generate(seed * 1_000_003 + attempt, difficulty)
        attempt += 1
        if task.id not in seen:
            seen.add(task.id)
            yield task
