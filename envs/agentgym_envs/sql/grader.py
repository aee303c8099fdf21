"""Judge a query by what it gives: on the task's database, and on hidden copies with other data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.function import clean
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Record, Submission, Trust, Verdict
from agentgym_envs.sql.compare import Wanted, same
from agentgym_envs.sql.database import Answer, Database, Replies, RunnerEndedError, ask, install
from agentgym_envs.sql.partial import jaccard, ngrams, with_ties_broken

_CANDIDATES = 8
_HIDDEN_COPIES = 3


class SqlSpec(Record):
    """What the grader needs, kept in `hidden.data`."""

    golds: Annotated[tuple[str, ...], Field(min_length=1)]
    """Right queries; being like any one of them is right."""
    ordered: bool = False
    """Whether the question asks for an order of the rows."""
    columns: Literal["any", "as_written"] = "any"
    """Whether the order of columns matters; their names never do."""


@dataclass(frozen=True, slots=True)
class _Gold:
    sql: str
    wanted: tuple[Wanted, ...]
    reads: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Key:
    seeds: tuple[int, ...]
    golds: tuple[_Gold, ...]


class SqlGrader:
    """Execution equality on several databases; queries run in sandboxes and can only read.

    The copies are made by moving the data of the given database about. Of several candidates those count on which the
    gold gives something else than on the given one, so that an answer known by heart fails.
    """

    trust = Trust.RPC
    levels = ("no_submission", "empty", "refused", "broken", "slow", "failed", "passed")

    def check(self, task: Task) -> None:
        """Refuse a task that could not be judged.

        Raises:
            VerifierError: the task is malformed, or its database is gone.
        """
        read_spec(task)
        Database.of(task).data()

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on the query in `submission.answer`.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed, or its gold fails.
        """
        spec, database = read_spec(task), Database.of(task)
        sql = (submission.answer or "").strip()
        key = _key(task, spec, database, sandboxes)
        if not sql:
            return _verdict("empty", {}, "nothing was submitted")
        try:
            with sandboxes.start(clean(task.sandbox)) as box:
                before = install(box, database)
                replies = ask(box, database, [sql], seeds=key.seeds, stops=True)
        except RunnerEndedError:
            _require_working(task, database, sandboxes)
            return _verdict("slow", _partial(sql, None, key), "it takes too long, or too much memory")
        if {before, replies.before, replies.after} != {before}:
            return _verdict("refused", _partial(sql, None, key), "the database was changed")
        return self._compared(sql, spec, key, replies.answers)

    def _compared(self, sql: str, spec: SqlSpec, key: _Key, answers: Sequence[Answer]) -> Verdict:
        given = answers[0]
        partial = _partial(sql, given, key)
        bad = next((one for one in answers if one.end != "rows"), None)
        if bad is not None:
            told = bad.problem if bad is given else "it fails on a hidden copy of the database"
            return _verdict(bad.end, partial, told)
        found = [one.table for one in answers]
        for gold in key.golds:
            if same(gold.wanted, found, ordered=spec.ordered, any_columns=spec.columns == "any"):
                return _verdict("passed", partial, "")
        right_here = any(
            same(gold.wanted[:1], found[:1], ordered=spec.ordered, any_columns=spec.columns == "any")
            for gold in key.golds
        )
        where = "on a hidden copy of the database" if right_here else "on the given database"
        return _verdict("failed", partial, f"another result is wanted {where}")


def read_spec(task: Task) -> SqlSpec:
    """Read what an SQL task's grader needs.

    Raises:
        VerifierError: the task is malformed.
    """
    try:
        return SqlSpec.model_validate(task.hidden.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"the SQL task {task.id!r} is malformed: {where}: {first['msg']}") from error


def _key(task: Task, spec: SqlSpec, database: Database, sandboxes: SandboxBackend) -> _Key:
    """Run the golds, once for each task and process."""
    name = (database.key, database.limits.model_dump_json(), spec.golds, task.sandbox.model_dump_json())
    key = _KEYS.get(name)
    if key is None:
        key = _make_key(task, spec, database, sandboxes)
        if len(_KEYS) >= _MOST_KEYS:
            _KEYS.pop(next(iter(_KEYS)), None)
        _KEYS[name] = key
    return key


_KEYS: dict[tuple[str, str, tuple[str, ...], str], _Key] = {}
_MOST_KEYS = 512


def _make_key(task: Task, spec: SqlSpec, database: Database, sandboxes: SandboxBackend) -> _Key:
    seeds = _seeds(database.key, spec.golds)
    try:
        with sandboxes.start(clean(task.sandbox)) as box:
            install(box, database)
            here = ask(box, database, spec.golds).answers
            bad = next((one for one in here if one.end != "rows"), None)
            if bad is not None:
                raise VerifierError(f"a gold query of task {task.id!r} fails: {bad.problem}")
            # SQL leaves the order of rows that tie open, and which of them a limit keeps.
            widths = [len(one.table.columns) for one in here]
            ways = [
                with_ties_broken(sql, width, direction)
                for direction in ("ASC", "DESC")
                for sql, width in zip(spec.golds, widths, strict=True)
            ]
            every = [*spec.golds, *ways]
            replies = ask(box, database, every, seeds=(0, *seeds), backwards=(False, True))
    except RunnerEndedError as error:
        raise VerifierError(f"the gold query of task {task.id!r} cannot be run: {error}") from error
    chosen = (0, *_telling(seeds, len(spec.golds), replies))
    golds = []
    for number, sql in enumerate(spec.golds):
        wanted = tuple(_wanted(replies, seed, number, len(spec.golds)) for seed in chosen)
        golds.append(_Gold(sql, wanted, here[number].reads))
    return _Key(chosen, tuple(golds))


def _wanted(replies: Replies, seed: int, number: int, golds: int) -> Wanted:
    """Return what gold `number` gives on a copy; a way of breaking ties that SQLite does not take is as the gold is."""
    found = {(one.query, one.backwards): one for one in replies.answers if one.seed == seed}
    given = found[number, False]
    first, last = found[number + golds, False], found[number + 2 * golds, True]
    return Wanted(*(one.table if one.end == "rows" else given.table for one in (given, first, last)))


def _telling(seeds: Sequence[int], golds: int, replies: Replies) -> list[int]:
    """Return the copies on which the golds give something else than on the given database, and something at all."""
    tables = {(one.seed, one.query): one for one in replies.answers if not one.backwards}
    broken = {one.seed for one in replies.answers if one.end != "rows" and one.query < golds}
    usable = [seed for seed in seeds if seed not in broken]

    def rank(seed: int) -> tuple[bool, bool]:
        other = all(tables[seed, number].table.rows != tables[0, number].table.rows for number in range(golds))
        filled = all(any(map(_says_something, tables[seed, number].table.rows)) for number in range(golds))
        return not other, not filled

    return sorted(usable, key=rank)[:_HIDDEN_COPIES]


def _says_something(row: Sequence[object]) -> bool:
    return any(cell not in (None, 0) for cell in row)


def _seeds(database: str, golds: Sequence[str]) -> tuple[int, ...]:
    digest = hashlib.sha256("\0".join((database, *golds)).encode("utf-8", "surrogatepass")).digest()
    return tuple(1 + int.from_bytes(digest[at : at + 3], "big") for at in range(0, 3 * _CANDIDATES, 3))


def _partial(sql: str, given: Answer | None, key: _Key) -> dict[str, float | None]:
    """Return Reasoning-SQL's partial signals, the best over the golds."""
    reads = given.reads if given is not None else frozenset()
    return {
        "parses": float(given is not None and given.end not in ("broken", "refused")),
        "executes": float(given is not None and given.end == "rows"),
        "schema": max(jaccard(reads, gold.reads) for gold in key.golds),
        "ngrams": max(ngrams(sql[:20_000], gold.sql) for gold in key.golds),
    }


def _require_working(task: Task, database: Database, sandboxes: SandboxBackend) -> None:
    """Find out by a harmless query whether the machinery works.

    Raises:
        SandboxError: it does not.
    """
    try:
        with sandboxes.start(clean(task.sandbox)) as box:
            install(box, database)
            ask(box, database, ["SELECT 1"])
    except RunnerEndedError as error:
        raise SandboxError(f"no query can be run: {error}") from error


def _verdict(level: str, components: dict[str, float | None], feedback: str) -> Verdict:
    value = 1.0 if level == "passed" else 0.0
    return Verdict(value=value, level=level, trust=Trust.RPC, components=components, feedback=feedback)
