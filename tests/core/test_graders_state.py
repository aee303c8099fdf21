"""The state grader: what a state means decides, types included; feedback tells nothing that was hidden."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import registry
from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.state import StateGrader
from agentgym.graders.state_forms import Equality, differences, form, semantic_hash
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Verdict

START = {"orders": {"7": {"status": "open", "items": ["a", "b"]}}, "users": []}
GOLD = {"orders": {"7": {"status": "cancelled", "items": ["a", "b"]}}, "users": []}
SQL = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT, total REAL);
INSERT INTO orders VALUES (1, 'open', 9.5), (2, 'open', 10);
"""
SQL_GOLD = SQL.replace("2, 'open'", "2, 'paid'")


@pytest.fixture(scope="module")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def task(**data: Any) -> Task:
    return Task(id="shop", split="train", public=Public(prompt="Cancel order 7."), hidden=Hidden(data=data))


def judged(backend: SandboxBackend, shop: Task, answer: str | None = None, **data: Any) -> Verdict:
    return StateGrader().grade(shop, Submission(answer=answer, data=data), backend)


def json_task(**part: Any) -> Task:
    return task(parts={"db": {"kind": "json", "gold": GOLD, "start": START, **part}})


def sqlite_task(**part: Any) -> Task:
    return task(parts={"db": {"kind": "sqlite", "gold": SQL_GOLD, "start": SQL, **part}})


def database(folder: Path, script: str) -> str:
    file = folder / "made.db"
    file.unlink(missing_ok=True)
    with sqlite3.connect(file) as made:
        made.executescript(script)
    made.close()
    return base64.b64encode(file.read_bytes()).decode()


def test_the_wanted_json_passes_whatever_the_order_of_its_keys(backend: SandboxBackend) -> None:
    shuffled = json.loads(json.dumps(dict(reversed(GOLD.items()))))
    verdict = judged(backend, json_task(), db=shuffled)
    assert (verdict.value, verdict.level, verdict.components) == (1.0, "passed", {"state": 1.0})


@pytest.mark.parametrize(
    ("state", "level", "feedback"),
    [
        (START, "unchanged", "nothing has changed"),
        ({**GOLD, "more": 1}, "failed", "db: more should not be there"),
        ({"orders": GOLD["orders"]}, "failed", "db: users is missing"),
        ({**GOLD, "users": ["x"]}, "failed", "db: users: 1 too many (a changed one counts as both)"),
        ({**GOLD, "users": {}}, "failed", "db: users has another type than it should"),
        (
            {**GOLD, "orders": {"7": {"status": "gone", "items": ["b", "a"]}}},
            "failed",
            "db: orders.7.items is in another order than it should be; "
            "db: orders.7.status has another value than it should",
        ),
        ({}, "failed", "db: orders is missing; db: users is missing"),
        (None, "failed", "db: the state has another type than it should"),
    ],
)
def test_every_difference_is_told_without_the_wanted_value(
    backend: SandboxBackend, state: Any, level: str, feedback: str
) -> None:
    verdict = judged(backend, json_task(), db=state)
    assert (verdict.value, verdict.level) == (0.0, level)
    assert sorted(verdict.feedback.split("; ")) == sorted(feedback.split("; "))


def test_nothing_handed_in_is_empty_and_the_wrong_thing_is_malformed(backend: SandboxBackend) -> None:
    assert judged(backend, json_task()).level == "empty"
    assert judged(backend, json_task(), other=1).feedback == "wanted the state of 'db', found other"
    assert judged(backend, sqlite_task(), db="not base64").level == "malformed"
    assert judged(backend, sqlite_task(), db=base64.b64encode(b"text").decode()).level == "malformed"


def test_a_database_passes_by_its_rows_and_not_by_its_bytes(backend: SandboxBackend, tmp_path: Path) -> None:
    other = (
        "CREATE TABLE orders (total REAL, id INTEGER PRIMARY KEY, status TEXT); CREATE INDEX i ON orders (status);"
        "INSERT INTO orders (id, status, total) VALUES (2, 'paid', 10.0); INSERT INTO orders VALUES (9.50, 1, 'open');"
    )
    assert judged(backend, sqlite_task(), db=database(tmp_path, SQL_GOLD)).passed
    assert judged(backend, sqlite_task(), db=database(tmp_path, other)).passed
    assert judged(backend, sqlite_task(), db=database(tmp_path, SQL)).level == "unchanged"


@pytest.mark.parametrize(
    ("script", "feedback"),
    [
        (SQL_GOLD.replace("(2, 'paid', 10)", "(2, 'paid', 11)"), "db: orders: 1 missing, 1 too many"),
        (SQL_GOLD + "DELETE FROM orders WHERE id = 1;", "db: orders: 1 missing"),
        (SQL_GOLD + "CREATE TABLE extra (x);", "db: extra should not be there"),
        ("CREATE TABLE t (x);", "db: t should not be there; db: orders is missing"),
        (SQL_GOLD.replace("status TEXT", "status BLOB").replace("'paid'", "x'70616964'"), "db: orders: 1 missing, 1"),
    ],
)
def test_rows_that_differ_are_counted(backend: SandboxBackend, tmp_path: Path, script: str, feedback: str) -> None:
    verdict = judged(backend, sqlite_task(), db=database(tmp_path, script))
    assert verdict.value == 0.0
    assert verdict.feedback.startswith(feedback)


def test_the_order_of_rows_matters_unless_it_is_declared_not_to(backend: SandboxBackend, tmp_path: Path) -> None:
    script = "CREATE TABLE log (line TEXT); INSERT INTO log VALUES ('a'), ('b');"
    reverse = script.replace("('a'), ('b')", "('b'), ('a')")
    data = database(tmp_path, reverse)
    start = "CREATE TABLE log (line TEXT);"
    assert not judged(backend, sqlite_task(gold=script, start=start), db=data).passed
    declared = sqlite_task(gold=script, start=start, equality={"unordered": ["log"]})
    assert judged(backend, declared, db=data).passed


def test_what_is_declared_not_to_matter_does_not(backend: SandboxBackend) -> None:
    how = {"unordered": ["*.*.items"], "ignored": ["orders.*.at"], "float_digits": 3, "trailing_space": False}
    gold = {"orders": {"7": {"items": [1, 2], "at": "now", "price": 1.0001, "note": "a\n"}}}
    found = {"orders": {"7": {"items": [2, 1], "price": 1.0002, "note": "a  \n\n"}}}
    assert judged(backend, json_task(gold=gold, equality=how), db=found).passed
    for name in how:
        less = {key: value for key, value in how.items() if key != name}
        assert not judged(backend, json_task(gold=gold, equality=less), db=found).passed


def test_files_are_compared_by_path_and_text(backend: SandboxBackend) -> None:
    shop = task(parts={"home": {"kind": "files", "gold": {"a.txt": "1", "b/c.txt": "2"}, "start": {"a.txt": "1"}}})
    assert StateGrader().grade(shop, Submission(files={"a.txt": "1", "b/c.txt": "2"}), backend).passed
    verdict = StateGrader().grade(shop, Submission(files={"a.txt": "0"}), backend)
    assert verdict.feedback == "home: a.txt has another value than it should; home: 1 entry is missing"


def test_a_hash_is_enough_of_a_gold_state(backend: SandboxBackend) -> None:
    wanted: Any = GOLD
    shop = task(parts={"db": {"kind": "json", "gold_hash": semantic_hash(form(wanted, Equality())), "start": START}})
    assert judged(backend, shop, db=GOLD).passed
    assert judged(backend, shop, db={**GOLD, "x": 1}).feedback == "db is not as it should be"


def test_what_is_to_be_said_counts_as_whole_words(backend: SandboxBackend) -> None:
    part = {"kind": "json", "gold": START, "start": START}
    shop = task(parts={"db": part}, communicate=["1,234.50", "order seven"])
    assert judged(backend, shop, "It costs $1234.50 for Order  seven.", db=START).passed
    wrong = judged(backend, shop, "It costs 11234.50 for order seventy", db=START)
    assert (wrong.value, wrong.feedback) == (0.0, "2 of 2 things to tell were not told")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"parts": {}}, "parts"),
        ({"parts": {"db": {"kind": "json", "gold": GOLD}}}, "add start or start_hash, or communicate"),
        ({"parts": {"db": {"kind": "json", "gold": START, "start": START}}}, "doing nothing would solve"),
        ({"parts": {"db": {"kind": "json", "start": START}}}, "wanted gold or gold_hash"),
        ({"parts": {"db": {"kind": "json", "gold": 1, "gold_hash": "x"}}}, "found both"),
        ({"parts": {"db": {"kind": "files", "gold": {"a": 1}}}}, "texts by path"),
        ({"parts": {"db": {"kind": "sqlite", "gold": {}}}}, "an SQL script"),
        ({"parts": {"db": {"kind": "sqlite", "gold": "CREATE", "start": ""}}}, "cannot be made"),
        ({"parts": {"db": {"kind": "json", "gold": 1}}, "communicate": [" . "]}, "wanted words"),
        ({"parts": {"a b": {"kind": "json", "gold": 1}}, "communicate": ["x"]}, "names a part 'a b'"),
        ({"parts": {"db": {"kind": "json", "gold": 1}}, "answer": "x"}, "Extra inputs"),
    ],
)
def test_a_malformed_task_is_refused_in_a_sentence(
    backend: SandboxBackend, data: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(VerifierError, match=sentence):
        judged(backend, task(**data), "x", db=1)


@pytest.mark.parametrize("kind", ["json", "sqlite"])
def test_an_idle_task_is_refused_before_anything_runs(kind: str) -> None:
    states = (SQL, SQL_GOLD) if kind == "sqlite" else (START, GOLD)
    StateGrader().check(task(parts={"db": {"kind": kind, "start": states[0], "gold": states[1]}}))
    with pytest.raises(VerifierError, match="doing nothing would solve"):
        StateGrader().check(task(parts={"db": {"kind": kind, "start": states[0], "gold": states[0]}}))


FLOATS = st.floats(allow_nan=False).map(lambda value: value + 0.0)  # no negative zero: it equals zero


def values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | FLOATS | text
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner))


VALUES = values(st.text(max_size=3))


@given(value=VALUES)
def test_a_value_written_and_read_again_is_the_same(value: Any) -> None:
    again = json.loads(json.dumps(value))
    assert semantic_hash(form(value, Equality())) == semantic_hash(form(again, Equality()))


@given(one=VALUES, other=VALUES)
def test_equal_hashes_mean_equal_values_of_equal_types(one: Any, other: Any) -> None:
    same = semantic_hash(form(one, Equality())) == semantic_hash(form(other, Equality()))
    assert same == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


@given(gold=values(st.text("QXZ", min_size=3, max_size=9)), found=values(st.text("abc", max_size=3)))
def test_differences_never_quote_what_only_the_gold_state_holds(gold: Any, found: Any) -> None:
    told = "".join(differences(form(gold, Equality()), form(found, Equality()), frozenset()))
    assert not {*"QXZ"} & {*told}
