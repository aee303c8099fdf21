"""Attacks on verdicts about states: each fools a naive comparison, and scores nothing."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import VerifierError
from agentgym.graders.state import StateGrader
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Verdict

SQL = "CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT); INSERT INTO orders VALUES (1, 'open');"
GOLD = SQL.replace("'open'", "'paid'")
BASE = "CREATE TABLE base (id INTEGER PRIMARY KEY, status TEXT); INSERT INTO base VALUES (1, 'open');"
ROWS = [(1, "paid")]


@pytest.fixture
def backend(anywhere: SandboxBackend) -> SandboxBackend:
    return anywhere


def made(folder: Path, script: str) -> bytes:
    file = folder / "made.db"
    file.unlink(missing_ok=True)
    database = sqlite3.connect(file)
    database.executescript(script)
    database.close()
    return file.read_bytes()


def shop(**data: Any) -> Task:
    return Task(id="shop", split="train", public=Public(prompt=""), hidden=Hidden(data=data))


def judged(backend: SandboxBackend, data: bytes) -> Verdict:
    part = {"kind": "sqlite", "gold": GOLD, "start": SQL}
    task = shop(parts={"db": part})
    return StateGrader().grade(task, Submission(data={"db": base64.b64encode(data).decode()}), backend)


def by_select(folder: Path, data: bytes) -> bool:
    (folder / "given.db").write_bytes(data)
    database = sqlite3.connect(folder / "given.db")
    try:
        return sorted(database.execute("SELECT id, status FROM orders")) == ROWS
    finally:
        database.close()


def by_text(folder: Path, data: bytes) -> bool:
    (folder / "given.db").write_bytes(data)
    database = sqlite3.connect(folder / "given.db")
    try:
        return [[str(cell) for cell in row] for row in database.execute("SELECT * FROM orders")] == [["1", "paid"]]
    finally:
        database.close()


def by_count(folder: Path, data: bytes) -> bool:
    (folder / "given.db").write_bytes(data)
    database = sqlite3.connect(folder / "given.db")
    try:
        return bool(database.execute("SELECT count(*) FROM orders WHERE status = 'paid'").fetchone() == (1,))
    finally:
        database.close()


ATTACKS = [
    pytest.param(
        by_select,
        BASE
        + "CREATE VIEW orders AS SELECT id, CASE status WHEN 'open' THEN 'paid' ELSE status END AS status FROM base;",
        id="a view that says what is wanted",
    ),
    pytest.param(
        by_select,
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, stored TEXT, status TEXT GENERATED ALWAYS AS (lower('PAID')));"
        "INSERT INTO orders (id, stored) VALUES (1, 'open');",
        id="a column that is computed when it is read",
    ),
    pytest.param(
        by_select,
        "CREATE VIRTUAL TABLE orders USING fts5 (id, status); INSERT INTO orders VALUES (1, 'paid');",
        id="a table that is a program",
    ),
    pytest.param(
        by_text,
        "CREATE TABLE orders (id TEXT, status TEXT); INSERT INTO orders VALUES ('1', 'paid');",
        id="text where a number is wanted",
    ),
    pytest.param(
        by_text,
        "CREATE TABLE orders (other INTEGER, name TEXT); INSERT INTO orders VALUES (1, 'paid');",
        id="columns of other names",
    ),
    pytest.param(by_count, GOLD + "INSERT INTO orders VALUES (2, 'open'), (3, 'open');", id="more than was asked for"),
    pytest.param(by_select, GOLD + "CREATE TABLE loot (x);", id="a table left behind"),
]


@pytest.mark.parametrize(("naive", "script"), ATTACKS)
def test_a_database_that_fools_a_naive_comparison_scores_nothing(
    backend: SandboxBackend, tmp_path: Path, naive: Callable[[Path, bytes], bool], script: str
) -> None:
    data = made(tmp_path, script)
    assert naive(tmp_path, data)
    assert judged(backend, data).value == 0.0


@pytest.mark.parametrize("naive", [by_select, by_text, by_count])
def test_naive_comparisons_tell_right_from_plainly_wrong(
    backend: SandboxBackend, tmp_path: Path, naive: Callable[[Path, bytes], bool]
) -> None:
    assert naive(tmp_path, made(tmp_path, GOLD))
    assert not naive(tmp_path, made(tmp_path, SQL))
    assert judged(backend, made(tmp_path, GOLD)).passed


BOMB = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {}) INSERT INTO t SELECT x FROM n;"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut"),
        pytest.param(lambda data: data[:100] + b"\xff" * (len(data) - 100), id="overwritten"),
        pytest.param(lambda data: data[:4096] + data[4096:].replace(b"\x0d", b"\x05"), id="wrong page types"),
        pytest.param(lambda data: data[:16], id="a header alone"),
        pytest.param(lambda data: data.replace(b"CREATE TABLE", b"CREATE TABLF"), id="a schema that is no SQL"),
    ],
)
def test_a_damaged_database_is_the_submissions_fault(
    backend: SandboxBackend, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    verdict = judged(backend, spoil(made(tmp_path, GOLD)))
    assert (verdict.value, verdict.level) == (0.0, "malformed")


def test_a_database_of_too_many_rows_is_refused_and_not_read_to_its_end(
    backend: SandboxBackend, tmp_path: Path
) -> None:
    verdict = judged(backend, made(tmp_path, "CREATE TABLE t (x);" + BOMB.format(250_000)))
    assert (verdict.value, verdict.level) == (0.0, "malformed")
    assert "200000 rows" in verdict.feedback


def test_a_cell_that_grows_when_it_is_read_is_refused(backend: SandboxBackend, tmp_path: Path) -> None:
    script = "CREATE TABLE t (id INTEGER, x BLOB GENERATED ALWAYS AS (zeroblob(900000000))); INSERT INTO t VALUES (1);"
    assert judged(backend, made(tmp_path, script)).level == "malformed"


WANTED: dict[str, Any] = {"paid": True, "total": 30, "note": None}


def by_equality(found: Any) -> bool:
    return bool(found == WANTED)


def by_subset(found: Any) -> bool:
    return all(found.get(name) == value for name, value in WANTED.items())


@pytest.mark.parametrize(
    ("naive", "found"),
    [
        pytest.param(by_equality, {"paid": 1, "total": 30, "note": None}, id="1 for true"),
        pytest.param(by_equality, {"paid": True, "total": 30.0, "note": None}, id="30.0 for 30"),
        pytest.param(by_subset, {"paid": True, "total": 30}, id="missing for null"),
        pytest.param(by_subset, {**WANTED, "admin": True}, id="more than was asked for"),
    ],
)
def test_json_of_other_types_is_another_state(
    backend: SandboxBackend, naive: Callable[[Any], bool], found: dict[str, Any]
) -> None:
    part = {"kind": "json", "gold": WANTED, "start": {}}
    task = shop(parts={"db": part})
    assert naive(found)
    assert StateGrader().grade(task, Submission(data={"db": found}), backend).value == 0.0


def test_a_task_that_doing_nothing_solves_is_refused(backend: SandboxBackend) -> None:
    part = {"kind": "json", "gold": WANTED, "start": WANTED}
    task = shop(parts={"db": part})
    assert by_equality(WANTED)
    with pytest.raises(VerifierError, match="doing nothing would solve"):
        StateGrader().grade(task, Submission(data={"db": WANTED}), backend)


def by_substring(answer: str) -> bool:
    return "42.50" in answer and "paid" in answer


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("nothing was repaid; 142.50", id="inside other words"),
        pytest.param(" ".join(f"{n / 100:.2f}" for n in range(10_000)) + " open paid", id="everything at once"),
    ],
)
def test_what_is_not_plainly_said_is_not_said(backend: SandboxBackend, answer: str) -> None:
    task = shop(parts={"db": {"kind": "json", "gold": WANTED, "start": WANTED}}, communicate=["42.50", "paid"])
    said = Submission(answer="It was paid: 42.50.", data={"db": WANTED})
    assert StateGrader().grade(task, said, backend).passed
    assert by_substring(answer)
    attack = Submission(answer=answer, data={"db": json.loads(json.dumps(WANTED))})
    assert StateGrader().grade(task, attack, backend).value == 0.0
