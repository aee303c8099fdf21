"""SQL tasks: right queries score 1 however they are written, others 0, and nothing changes the database."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym import redteam, registry
from agentgym.errors import SandboxError, TaskError, UnknownNameError, VerifierError
from agentgym.rewards import WeightedPartial
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.testing import check_environment
from agentgym.types import Group, Submission, Trajectory, Trust, Verdict
from agentgym.validate.secrets import SHORT, secrets
from agentgym_envs.sql import incidents, questions
from agentgym_envs.sql.compare import Row, Table, Wanted, same
from agentgym_envs.sql.database import FILE
from agentgym_envs.sql.env import DatabaseEnv, SqlEnv, call
from agentgym_envs.sql.files import defog, spider
from agentgym_envs.sql.grader import SqlGrader
from agentgym_envs.sql.investigation import DECAY, InvestigationEnv

SCRIPT = """
CREATE TABLE team (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE match (id INTEGER PRIMARY KEY, team INTEGER REFERENCES team (id), goals INTEGER, share REAL);
INSERT INTO team VALUES (1, 'Reds', 'Rome'), (2, 'Blues', 'Oslo'), (3, 'Greens', 'Rome'), (4, 'Greys', 'Bonn');
INSERT INTO match VALUES (1, 1, 3, 0.1), (2, 1, 0, 0.2), (3, 2, 2, 0.3), (4, 3, 2, 0.4), (5, 3, 5, 0.5), (6, 3, 2, 0.6);
"""
GOLD = "SELECT t.name, sum(m.share) FROM team t JOIN match m ON m.team = t.id GROUP BY t.id"
BY_GOALS = "SELECT id, goals FROM match ORDER BY goals DESC"


def task(gold: str, script: str = SCRIPT, **more: Any) -> Task:
    return Task(
        id="teams",
        split="train",
        public=Public(prompt="", data={"database": {"script": script}}),
        hidden=Hidden(data={"golds": [gold], **more}),
        grader="sql",
    )


def judged(backend: SandboxBackend, one: Task, sql: str) -> Verdict:
    return SqlGrader().grade(one, Submission(answer=sql), backend)


def table(*rows: Row) -> Table:
    return Table(tuple("abcdef"[: len(rows[0])]), rows)


def alike(gold: Table, found: Table, *, ordered: bool = False, any_columns: bool = True) -> bool:
    return same([Wanted(gold, gold, gold)], [found], ordered=ordered, any_columns=any_columns)


@pytest.mark.parametrize(
    ("gold", "found", "agrees"),
    [
        pytest.param(table((1,), (2,)), table((2,), (1,)), True, id="order"),
        pytest.param(table((1,), (1,)), table((1,)), False, id="repetition"),
        pytest.param(table((1, "x")), table(("x", 1)), True, id="columns in another order"),
        pytest.param(table((1, 2), (2, 1)), table((1, 1), (2, 2)), False, id="the same columns, other rows"),
        pytest.param(table((1,)), table((1, 1)), False, id="one column more"),
        pytest.param(table((3,)), table((3.0,)), True, id="an integer as a real number"),
        pytest.param(table((3,)), table(("3",)), False, id="a number as text"),
        pytest.param(table((0.1 + 0.2,)), table((0.3,)), True, id="rounding of binary fractions"),
        pytest.param(table((2 / 3,)), table((0.67,)), False, id="rounding by hand"),
        pytest.param(table((1_700_000_000,)), table((1_700_000_001,)), False, id="large integers"),
        pytest.param(table((None,)), table((0,)), False, id="null and zero"),
        pytest.param(table((None,)), table(("",)), False, id="null and empty"),
        pytest.param(table(("A",)), table(("a",)), False, id="case"),
        pytest.param(table((b"a",)), table(("a",)), False, id="a blob and a text"),
    ],
)
def test_results_agree_by_value(gold: Table, found: Table, agrees: bool) -> None:
    assert alike(gold, found) is agrees


cells = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, 1.25]), st.sampled_from(["a", "b"]))
tables = st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[cells] * width), min_size=1, max_size=8))


@given(tables, st.randoms())
def test_shuffled_rows_and_columns_agree_and_a_changed_cell_does_not(rows: list[Row], draw: random.Random) -> None:
    order = draw.sample(range(len(rows[0])), len(rows[0]))
    mixed = [tuple(row[index] for index in order) for row in draw.sample(rows, len(rows))]
    assert alike(table(*rows), table(*mixed))
    spoiled = [("other", *mixed[0][1:]), *mixed[1:]]
    assert not alike(table(*rows), table(*spoiled))


def test_columns_keep_one_order_on_all_databases() -> None:
    golds = [table((1, 2)), table((3, 4))]
    wanted = [Wanted(one, one, one) for one in golds]
    assert same(wanted, [table((2, 1)), table((4, 3))], ordered=False, any_columns=True)
    assert not same(wanted, [table((2, 1)), table((3, 4))], ordered=False, any_columns=True)
    assert not same(wanted, [table((2, 1)), table((4, 3))], ordered=False, any_columns=False)


def test_rows_that_tie_may_stand_in_any_order_and_others_not() -> None:
    one, other = table((5, "a"), (2, "b"), (2, "c")), table((5, "a"), (2, "c"), (2, "b"))
    wanted = [Wanted(one, one, other)]
    assert same(wanted, [table((5, "a"), (2, "c"), (2, "b"))], ordered=True, any_columns=True)
    assert not same(wanted, [table((2, "b"), (5, "a"), (2, "c"))], ordered=True, any_columns=True)


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        pytest.param(GOLD, "passed", id="the gold"),
        pytest.param(f"SELECT * FROM ({GOLD}) ORDER BY random()", "passed", id="shuffled"),
        pytest.param(
            "SELECT total, name FROM team JOIN (SELECT team, sum(share) AS total FROM match GROUP BY 1) ON team = id",
            "passed",
            id="written otherwise",
        ),
        pytest.param(f"{GOLD} LIMIT 2", "failed", id="too few rows"),
        pytest.param(GOLD.replace("GROUP BY t.id", "GROUP BY t.name"), "passed", id="alike wherever names differ"),
        pytest.param("SELECT name, total FROM team", "broken", id="no such column"),
        pytest.param("SELEC 1", "broken", id="no SQL"),
        pytest.param("DELETE FROM team", "refused", id="a change"),
        pytest.param("SELECT abs(-9223372036854775808)", "failed", id="an error while it runs"),
        pytest.param("", "empty", id="nothing"),
    ],
)
def test_rows_decide(backend: SandboxBackend, sql: str, level: str) -> None:
    script = SCRIPT.replace("name TEXT", "name TEXT UNIQUE")
    found = judged(backend, task(GOLD, script), sql)
    assert (found.level, found.value) == (level, float(level == "passed"))
    assert found.trust is Trust.RPC


def test_order_counts_where_it_is_asked_for(backend: SandboxBackend) -> None:
    one = task(BY_GOALS, ordered=True)
    assert judged(backend, one, "SELECT id, goals FROM match ORDER BY goals DESC, id DESC").value == 1.0
    assert judged(backend, one, "SELECT id, goals FROM match ORDER BY goals").value == 0.0
    assert judged(backend, task(BY_GOALS), "SELECT id, goals FROM match ORDER BY goals").value == 1.0


def test_a_wrong_query_that_is_right_by_chance_fails_on_a_hidden_copy(backend: SandboxBackend) -> None:
    one = task("SELECT count(*) FROM match WHERE goals > 2")
    for sql in ("SELECT 2", "SELECT count(DISTINCT city) - 1 FROM team", "SELECT max(id) - 2 FROM team"):
        found = judged(backend, one, sql)
        assert (found.value, found.feedback) == (0.0, "another result is wanted on a hidden copy of the database")


def test_partial_signals_say_how_near_a_query_is(backend: SandboxBackend) -> None:
    near = judged(backend, task(GOLD), GOLD.replace("sum(m.share)", "sum(m.goals)")).components
    far = judged(backend, task(GOLD), "SELECT t.name FROM team t").components
    broken = judged(backend, task(GOLD), "SELECT city FRM team").components
    assert near["executes"] == near["parses"] == far["executes"] == 1.0
    assert broken["executes"] == broken["parses"] == broken["schema"] == 0.0
    for name in ("schema", "ngrams"):
        assert 1.0 > (near[name] or 0) > (far[name] or 0) > 0.0


@given(
    st.lists(st.floats(0, 0.24), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_a_right_query_outranks_every_wrong_one(weights: list[float], right: list[float], wrong: list[float]) -> None:
    names = ("parses", "executes", "schema", "ngrams")
    scheme = WeightedPartial(correct=1.0, weights=dict(zip(names, weights, strict=True)), without_components={})
    attempts = [
        Trajectory("t", "train", (), [], Verdict(value=value, level=level, trust=Trust.RPC,
                                                 components=dict(zip(names, given, strict=True))))
        for value, level, given in ((1.0, "passed", right), (0.0, "failed", wrong))
    ]  # fmt: skip
    better, worse = scheme(Group("t", attempts)).outcome
    assert better > worse


@pytest.mark.parametrize("difficulty", range(1, 7))
def test_generated_questions_are_answered_by_their_gold_and_not_by_heart(
    backend: SandboxBackend, difficulty: int
) -> None:
    for seed in range(2):
        one = questions.generate(seed, difficulty)
        assert one == questions.generate(seed, difficulty)
        gold = one.hidden.data["golds"][0]  # type: ignore[index]
        assert judged(backend, one, str(gold)).value == 1.0
        assert judged(backend, one, str(one.hidden.reference["by_heart"])).value == 0.0


@pytest.mark.parametrize("difficulty", range(1, 7))
def test_no_query_that_is_trained_on_is_held_out(difficulty: int) -> None:
    found: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for one in questions.tasks(count=300, difficulty=difficulty, seed=0):
        gold: Any = one.hidden.data["golds"]
        found[one.split] |= {one.public.prompt, *gold}
    assert all(len(texts) >= 10 for texts in found.values())
    assert sum(map(len, found.values())) == len(set.union(*found.values()))


def test_a_runner_that_ends_at_any_query_is_the_machines_fault(backend: SandboxBackend) -> None:
    env = SqlEnv(TaskSet("teams", lambda: [task(GOLD)]), sandbox=backend)
    env.reset(seed=0)
    assert env.sandbox.exec(["rm", FILE]).exit_code == 0
    with pytest.raises(SandboxError, match="no query can be run"):
        env.step(call("run", "SELECT 1 FROM team"))
    env.close()


@pytest.mark.parametrize(("name", "load", "step"), [("spider_dev", spider, 45), ("defog_sql", defog, 15)])
def test_published_golds_score_1_and_so_do_their_rows_in_another_order(
    backend: SandboxBackend, data: Path, name: str, load: Any, step: int
) -> None:
    for one in list(load(data / name / "questions.jsonl"))[::step]:
        golds = [str(gold) for gold in one.hidden.data["golds"]]
        assert [judged(backend, one, gold).value for gold in golds] == [1.0] * len(golds), one.id
        if not one.hidden.data["ordered"]:
            assert judged(backend, one, f"SELECT * FROM ({golds[0]}) ORDER BY random()").value == 1.0, one.id


def test_files_of_spiders_own_layout_are_read_and_a_changed_database_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "database" / "teams"
    folder.mkdir(parents=True)
    database = sqlite3.connect(folder / "teams.sqlite")
    database.executescript(SCRIPT)
    database.close()
    rows = [{"db_id": "teams", "question": "Which?", "query": f"{BY_GOALS};"}]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    (one,) = spider(tmp_path / "dev.json")
    assert one.hidden.data == {"golds": [BY_GOALS], "ordered": True}
    SqlGrader().check(one)
    (folder / "teams.sqlite").write_bytes(b"another")
    with pytest.raises(VerifierError, match="its hash differs"):
        SqlGrader().check(one)
    (tmp_path / "dev.json").write_text(json.dumps([{"db_id": "teams"}]))
    with pytest.raises(TaskError, match="wants question, db_id, and query or gold_sql"):
        list(spider(tmp_path / "dev.json"))
    with pytest.raises(TaskError, match="no questions can be read"):
        list(defog(tmp_path / "none.json"))
    with pytest.raises(UnknownNameError, match="spider"):
        SqlEnv(family="spyder")


def test_a_task_whose_gold_fails_is_the_tasks_fault(backend: SandboxBackend) -> None:
    with pytest.raises(VerifierError, match="no such table"):
        judged(backend, task("SELECT * FROM nobody"), "SELECT 1")


def test_tools_show_the_database_and_leave_it_as_it_was(backend: SandboxBackend) -> None:
    env = SqlEnv(TaskSet("teams", lambda: [task(GOLD)]), sandbox=backend)
    env.reset(seed=1)
    path = f"{env.sandbox.workdir}/database.sqlite"
    before = hashlib.sha256(env.sandbox.read(path)).hexdigest()
    seen = [env.step(f"```{name}\n{text}\n```")[0][0].content for name, text in (
        ("schema", "team"), ("sample", "team"), ("run", "SELECT city, NULL FROM team WHERE id = 2"),
        ("run", "UPDATE team SET city = 'x'"), ("sample", "team; DROP TABLE team"), ("run", "SELECT * FROM nobody"),
    )]  # fmt: skip
    assert hashlib.sha256(env.sandbox.read(path)).hexdigest() == before
    *_, info = env.step(f"```submit\n{GOLD}\n```")
    env.close()
    assert seen[0] == "CREATE TABLE team (id INTEGER PRIMARY KEY, name TEXT, city TEXT); -- 4 rows"
    assert seen[1].splitlines()[:2] == ["id | name | city", "1 | Reds | Rome"]
    assert seen[2].splitlines()[1] == "Oslo | NULL"
    assert seen[3] == "error: only one SELECT statement is allowed"
    assert seen[4].startswith("error: no such table")
    assert seen[5] == "error: no such table: nobody"
    assert info["verdict"].value == 1.0


@pytest.mark.parametrize("difficulty", [1, 3, 6])
def test_an_incident_has_one_end_that_the_path_leads_to(backend: SandboxBackend, difficulty: int) -> None:
    env = InvestigationEnv(difficulty=difficulty, count=3, sandbox=backend)
    for one in env.tasks:
        env.reset(options={"task": one})
        lines = env.oracle(one)
        for line in lines[:-1]:
            observation, *_ = env.step(line)
        found = observation[0].content.splitlines()
        assert found[1:] == [lines[-1].splitlines()[-2]]
        *_, info = env.step(lines[-1])
        assert info["verdict"].level == "passed"
    env.close()


def test_a_wrong_report_earns_what_it_found_on_the_way() -> None:
    env, one = InvestigationEnv(), incidents.generate(5, 3)
    host, account, end = incidents.incident(5, 3, 80).path[1:]

    def credit(*lines: str) -> tuple[str, float]:
        verdict = env.grade(one, Submission(answer="\n".join(lines)))
        assert verdict.value == float(verdict.level == "passed")
        return verdict.level, round(verdict.components["path"] or 0.0, 9)

    assert credit(f" {end.upper()} ") == ("passed", 1.0)
    assert credit(host, account, "nobody") == ("on_path", round(DECAY + DECAY**2, 9))
    assert credit(host, "nobody") == ("on_path", round(DECAY**2, 9))
    assert credit(end, "nobody") == ("failed", 0.0)
    assert credit(host, account, end, "and", "more") == ("malformed", 0.0)


@pytest.mark.parametrize("name", ["agentgym/Sql-v0", "agentgym/Investigation-v0"])
def test_environments_keep_their_contract(backend: SandboxBackend, name: str) -> None:
    made = registry.lookup("envs", name)
    check_environment(lambda: made(count=4, sandbox=backend))


@pytest.mark.parametrize("name", ["agentgym/Sql-v0", "agentgym/Investigation-v0"])
def test_the_red_team_finds_attacks_that_hold_and_nothing_hidden_is_told(backend: SandboxBackend, name: str) -> None:
    def make() -> DatabaseEnv:
        made: DatabaseEnv = registry.lookup("envs", name)(count=1, sandbox=backend)
        return made

    env = make()
    one = next(iter(env.tasks))
    target = redteam.target_of(make, one)
    attacks = redteam.attacks_on(target, env)
    assert len(attacks) > 20
    for attack in redteam.chosen(attacks, 3, 1):
        assert redteam.run(make, target, attack).held, attack.name
    told = [*(message.content for message in env.reset(options={"task": one})[0]), one.id]
    env.close()
    assert not [secret for secret in secrets(one, SHORT) if secret in "\n".join(told)]


def test_a_query_without_end_costs_its_steps_and_no_more(backend: SandboxBackend) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    public = Public(prompt="", data={"database": {"script": SCRIPT, "limits": {"steps": 1_000_000}}})
    began = time.monotonic()
    found = judged(backend, task(GOLD).model_copy(update={"public": public}), endless)
    assert (found.level, found.components["executes"], found.components["parses"]) == ("slow", 0.0, 1.0)
    assert time.monotonic() - began < 20
