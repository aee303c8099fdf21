"""Generate incidents: a chain of entities through the tables of a log database, and a question about its end.

The chain is a path in a graph whose nodes are kinds of entities and whose edges are tables that hold both; a question
names the path's beginning and the kinds along it, in the manner of ExCyTIn-Bench
(ExCyTIn-Bench: Evaluating LLM agents on Cyber Threat Investigation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.splits import digest_of, split_of

MOST_HOPS = 6


@dataclass(frozen=True, slots=True)
class Edge:
    """A table that leads from one kind of entity to another."""

    table: str
    source: str
    target: str
    told: str
    """The next step in words."""


EDGES = (
    Edge("detections", "alert", "file", "the file that the alert is about"),
    Edge("detections", "alert", "host", "the host that raised the alert"),
    Edge("processes", "file", "account", "the account that ran this file"),
    Edge("attachments", "file", "sender", "the sender who mailed this file"),
    Edge("inventory", "host", "account", "the account that owns this host"),
    Edge("logons", "account", "address", "the address from which this account logged on"),
    Edge("deliveries", "sender", "address", "the address from which this sender delivers mail"),
    Edge("resolutions", "address", "domain", "the domain that resolves to this address"),
    Edge("registrations", "domain", "registrant", "the registrant of this domain"),
    Edge("payments", "registrant", "wallet", "the wallet from which this registrant paid"),
)


@dataclass(frozen=True, slots=True)
class Incident:
    """What happened."""

    edges: tuple[Edge, ...]
    path: tuple[str, ...]
    """The entities, the first of which the question names."""
    script: str


def incident(seed: int, hops: int, noise: int) -> Incident:
    """Return the incident of a seed: `hops` steps, among `noise` other rows in every table."""
    rng = np.random.default_rng((seed, hops, noise))
    edges = _walk(rng, hops)
    kinds = ["alert", *(one.target for one in edges)]
    path = tuple(_entity(kind, rng) for kind in kinds)
    rows: dict[str, list[tuple[str, str, str]]] = {table: [] for table in _tables()}
    for table, (source, *targets) in _tables().items():
        for _ in range(noise):
            time = _time(rng)
            rows[table] += [(time, _entity(source, rng), _entity(target, rng)) for target in targets[:1]]
    for edge, one, other in zip(edges, path, path[1:], strict=False):
        for _ in range(int(rng.integers(1, 4))):
            rows[edge.table].append((_time(rng), one, other))
    return Incident(edges, path, _script(edges, path, rows, rng))


def generate(seed: int, difficulty: float = 2.0) -> Task:
    """Return one task; the difficulty, 1 to 6, is the number of steps, and the logs grow with it."""
    if not 1 <= difficulty <= MOST_HOPS:
        raise ValueError(f"wanted a difficulty from 1 to {MOST_HOPS}, found {difficulty}")
    hops = round(difficulty)
    noise = 20 + 20 * hops
    found = incident(seed, hops, noise)
    steps = "; then ".join(one.told for one in found.edges)
    prompt = f"Alert {found.path[0]} was raised. Find {steps}. Report what you found last."
    public = Public(prompt=prompt, data={"database": {"script": found.script}})
    name = digest_of(public)
    return Task(
        id=f"incidents/{name}",
        split=split_of(name),
        public=public,
        # The logs hold the entities themselves, and so the agent's sandbox does: here they are hashed.
        hidden=Hidden(
            data={"salt": name[:6], "path": [fingerprint(name[:6], one) for one in found.path[1:]]},
            reference={"seed": seed, "hops": hops, "noise": noise},
        ),
        hints=(f"The tables lead on in this order: {', '.join(one.table for one in found.edges)}.",),
        difficulty=difficulty,
    )


def fingerprint(salt: str, entity: str) -> str:
    """Return the hash under which an entity is known to the grader."""
    return hashlib.sha256(f"{salt}:{' '.join(entity.split()).casefold()}".encode("utf-8", "surrogatepass")).hexdigest()


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


def _walk(rng: np.random.Generator, hops: int) -> tuple[Edge, ...]:
    """Return a path from an alert, of those that are long enough."""
    paths: list[tuple[Edge, ...]] = [()]
    for _ in range(hops):
        paths = [
            (*path, one) for path in paths for one in EDGES if one.source == (path[-1].target if path else "alert")
        ]
    return paths[int(rng.integers(len(paths)))]


def _tables() -> dict[str, list[str]]:
    """Return the kinds of entities in each table: its source, and its targets."""
    found: dict[str, list[str]] = {}
    for one in EDGES:
        found.setdefault(one.table, [one.source]).append(one.target)
    return found


def _script(
    edges: tuple[Edge, ...],
    path: tuple[str, ...],
    rows: dict[str, list[tuple[str, str, str]]],
    rng: np.random.Generator,
) -> str:
    lines = []
    for table, (source, *targets) in _tables().items():
        columns = ["time", source, *targets]
        lines.append(f"CREATE TABLE {table} ({', '.join(f'{one} TEXT' for one in columns)});")
        given = rows[table]
        for index in rng.permutation(len(given)):
            time, one, other = given[int(index)]
            leads_to = next(
                (e.target for e, at in zip(edges, path, strict=False) if (e.table, at) == (table, one)), targets[0]
            )
            cells = [time, one, *(other if target == leads_to else _entity(target, rng) for target in targets)]
            lines.append(f"INSERT INTO {table} VALUES ({', '.join(repr(cell) for cell in cells)});")
    return "\n".join(lines)


def _time(rng: np.random.Generator) -> str:
    day, hour, minute = int(rng.integers(1, 29)), int(rng.integers(24)), int(rng.integers(60))
    return f"2025-03-{day:02} {hour:02}:{minute:02}"


def _entity(kind: str, rng: np.random.Generator) -> str:
    word = "".join("bcdfghklmnprst"[int(one)] + "aeiou"[int(other)] for one, other in zip(
        rng.integers(14, size=3), rng.integers(5, size=3), strict=True))  # fmt: skip
    number = int(rng.integers(10_000, 100_000))
    match kind:
        case "alert":
            return f"A-{number}"
        case "file":
            return f"{word}{number % 100:02}.exe"
        case "host":
            return f"HOST-{number}"
        case "account":
            return f"{word}{number % 1000:03}"
        case "sender":
            return f"{word}@{number % 1000:03}.test"
        case "address":
            return f"10.{number % 250}.{int(rng.integers(1, 250))}.{int(rng.integers(1, 250))}"
        case "domain":
            return f"{word}{number % 1000:03}.test"
        case "registrant":
            return f"{word.title()} {number % 1000:03} Ltd"
    return f"w{number}{word}"
