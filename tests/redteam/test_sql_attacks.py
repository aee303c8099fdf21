"""Attacks on verdicts about queries: answers known by heart, near misses, and queries that want more than to ask."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission
from agentgym_envs.sql.attacks import QUERIES
from agentgym_envs.sql.env import SqlEnv
from agentgym_envs.sql.grader import SqlGrader

SCRIPT = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, kind TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 'dog', 3), (2, 'Tom', 'cat', 5), (3, 'Kit', 'cat', 5), (4, 'Bo', 'dog', 9);
"""
GOLD = "SELECT age FROM pet WHERE kind = 'cat'"
LIMITS = {"steps": 2_000_000, "seconds": 1, "memory_mb": 32}


@pytest.fixture
def backend(anywhere: SandboxBackend) -> SandboxBackend:
    return anywhere


def pets(gold: str = GOLD) -> Task:
    public = Public.model_validate({"prompt": "", "data": {"database": {"script": SCRIPT, "limits": LIMITS}}})
    return Task(id="pets", split="train", public=public, hidden=Hidden(data={"golds": [gold]}), grader="sql")


def rows(sql: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(":memory:")
    database.executescript(SCRIPT)
    return database.execute(sql).fetchall()


def by_rows_here(sql: str) -> bool:
    return sorted(rows(sql)) == sorted(rows(GOLD))


def by_set(sql: str) -> bool:
    return set(rows(sql)) == set(rows(GOLD))


def by_text(sql: str) -> bool:
    return str(sorted(rows(sql))).replace("'", "") == str(sorted(rows(GOLD)))


def by_truth(sql: str) -> bool:
    return bool(rows(sql))


def by_first_row(sql: str) -> bool:
    return rows(sql)[:1] == rows(GOLD)[:1]


NAIVE = [
    pytest.param(by_rows_here, "SELECT 5 UNION ALL SELECT 5", id="the answer by heart"),
    pytest.param(by_rows_here, "SELECT age FROM pet WHERE id IN (2, 3)", id="the ids by heart"),
    pytest.param(by_rows_here, "SELECT age FROM pet WHERE age = 5", id="the value by heart"),
    pytest.param(by_set, "SELECT DISTINCT age FROM pet WHERE kind = 'cat'", id="each row once"),
    pytest.param(by_set, "SELECT a.age FROM pet a, pet b WHERE a.kind = 'cat'", id="each row too often"),
    pytest.param(by_text, "SELECT '5' FROM pet WHERE kind = 'cat'", id="numbers as text"),
    pytest.param(by_truth, "SELECT * FROM pet", id="everything there is"),
    pytest.param(by_first_row, "SELECT age FROM pet WHERE kind = 'cat' LIMIT 1", id="the first row"),
]


@pytest.mark.parametrize(("naive", "sql"), NAIVE)
def test_a_query_that_fools_a_naive_comparison_scores_nothing(
    backend: SandboxBackend, naive: Callable[[str], bool], sql: str
) -> None:
    assert naive(sql)
    assert naive(GOLD)
    assert SqlGrader().grade(pets(), Submission(answer=sql), backend).value == 0.0


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_that_wants_more_than_to_ask_is_scored_and_scores_nothing(backend: SandboxBackend, name: str) -> None:
    found = SqlGrader().grade(pets(), Submission(answer=QUERIES[name]), backend)
    assert found.value == 0.0
    assert found.level in {"refused", "broken", "slow", "failed"}


def test_what_an_agent_runs_leaves_its_database_as_it_was(backend: SandboxBackend) -> None:
    env = SqlEnv(sandbox=backend, max_turns=len(QUERIES) + 2)
    env.reset(options={"task": pets()})
    path = f"{env.sandbox.workdir}/database.sqlite"
    before = env.sandbox.read(path)
    for sql in QUERIES.values():
        env.step(f"```run\n{sql}\n```")
    assert env.sandbox.read(path) == before
    assert sorted(env.sandbox.download(env.sandbox.workdir)) == ["database.sqlite"]
    *_, info = env.step(f"```submit\n{GOLD}\n```")
    env.close()
    assert info["verdict"].value == 1.0
