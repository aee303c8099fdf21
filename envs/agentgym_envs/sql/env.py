"""Answer a question by one SQL query, after looking at the database over several turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import AgentFault, SandboxError, TaskError
from agentgym.task import Task, TaskSet
from agentgym.types import Message, Submission
from agentgym_envs.sql.attacks import QUERIES
from agentgym_envs.sql.database import Answer, Database, Replies, RunnerEndedError, ask, install
from agentgym_envs.sql.tasks import family_tasks

_SHOWN_ROWS, _SHOWN_CELL = 20, 80
_CONTROL = ("SELECT 1",)
LOOKING = """```schema
*
```
shows the tables (or the one that is named instead of `*`).
```sample
<table>
```
shows some of a table's rows.
```run
<one SELECT statement>
```
runs it. The database cannot be changed."""
EXPLANATION = f"""Answer the question with one query to an SQLite database. Each message is one fenced block named
after a tool.
{LOOKING}
```submit
<one SELECT statement>
```
hands in your query and ends the episode. It is judged by its rows, on this database and on others like it."""


class DatabaseEnv(AgentEnv):
    """Look at an SQLite database through tools that can only read; queries run in the agent's sandbox."""

    sandboxed = True
    signals: ClassVar[tuple[str, ...]] = ("looked", "executes", "rows_found")
    explanation: ClassVar[str] = LOOKING

    def __init__(self, tasks: TaskSet | None = None, *, explain: bool = True, **options: Any) -> None:
        """Take a task set, whether to open with a system message that explains the tools, and `AgentEnv`'s options."""
        super().__init__(tasks, **options)
        self.explain = explain
        self._hash = ""

    def prompt(self) -> Sequence[Message]:
        """The question, after an explanation of the tools if wanted."""
        opening = (Message(role="system", content=self.explanation),) if self.explain else ()
        return (*opening, *super().prompt())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """Start an episode with the task's database in the sandbox; see `AgentEnv.reset`."""
        found = super().reset(seed=seed, options=options)
        self._database = Database.of(self._full_task)
        self._hash = install(self.sandbox, self._database)
        return found

    @tool
    def schema(self, table: str) -> str:
        """Show how the tables are made, or one of them by its name; `*` is all."""
        known = self._ask(schema=True).schema
        chosen = [one for one in known if table.strip().lower() in ("*", "", one[0].lower())]
        if not chosen:
            raise ValueError(
                f"there is no table {table.strip()[:80]!r}; there are {', '.join(one[0] for one in known)}"
            )
        self.emit("looked", 1.0)
        return "\n".join(f"{sql.strip()}; -- {count} rows" for _, sql, count in chosen)

    @tool
    def sample(self, table: str, rows: int = 3) -> str:
        """Show the first rows of a table."""
        if not 1 <= rows <= _SHOWN_ROWS:
            raise ValueError(f"wanted rows from 1 to {_SHOWN_ROWS}, found {rows}")
        quoted = table.strip().replace('"', '""')
        found = self._ask([f'SELECT * FROM "{quoted}" LIMIT {rows}']).answers[0]
        if found.end != "rows":
            raise ValueError(found.problem)
        self.emit("looked", 1.0)
        return told(found)

    @tool
    def run(self, sql: str) -> str:
        """Run one SELECT statement and show its first rows."""
        found = self._ask([sql]).answers[0]
        self.emit("executes", float(found.end == "rows"))
        if found.end != "rows":
            raise ValueError(found.problem)
        self.emit("rows_found", float(bool(found.table.rows)))
        return told(found)

    def _ask(self, queries: Sequence[str] = (), *, schema: bool = False) -> Replies:
        try:
            replies = ask(self.sandbox, self._database, queries, schema=schema)
        except RunnerEndedError as error:
            if queries == _CONTROL:
                # A query only reads, and ends with its own runner: what fails now is not of its making.
                raise SandboxError(f"no query can be run: {error}") from error
            self._ask(_CONTROL)
            raise ValueError("it takes too long, or too much memory") from error
        if not self._hash == replies.before == replies.after:
            raise AgentFault("the database was changed")
        return replies


class SqlEnv(DatabaseEnv):
    """Text-to-SQL: rows decide, on the given database and on hidden copies with other data."""

    grader = "sql"
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "refused", "broken", "slow", "failed", "passed")
    explanation = EXPLANATION

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        family: str = "questions",
        path: str | None = None,
        count: int = 500,
        difficulty: float = 2.0,
        task_seed: int = 0,
        explain: bool = True,
        **options: Any,
    ) -> None:
        """Choose the tasks.

        Args:
            tasks: a task set; without one, `family` makes it.
            family: `questions` (generated), or `spider`, `defog` (read from `path`).
            path: the file of questions; its databases lie beside it, in `databases/` or `database/`.
            count: how many tasks to generate.
            difficulty: of generated questions, 1 (one table) to 6 (queries inside queries).
            task_seed: which tasks to generate.
            explain: open with a system message that explains the tools.
            **options: those of `AgentEnv`.
        """
        made = tasks or family_tasks(family, path=path, count=count, difficulty=difficulty, seed=task_seed)
        super().__init__(made, explain=explain, **options)

    @tool
    def submit(self, sql: str) -> Submit:
        """Hand in one SELECT statement that answers the question; the episode ends."""
        return Submit(sql)

    def oracle(self, task: Task) -> Sequence[str]:
        """Look at the schema, try the gold, and hand it in."""
        gold = cast(list[str], task.hidden.data.get("golds") or [])
        if not gold:
            raise TaskError(f"task {task.id!r} has no gold query; put it in hidden.data['golds']")
        return [call("schema", "*"), call("run", gold[0]), call("submit", gold[0])]

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Return queries that change, escape or exhaust the database, or know the answer by heart."""
        found: dict[str, Submission | Sequence[str]] = {
            f"hands in a query that {name}": Submission(answer=sql) for name, sql in QUERIES.items()
        }
        by_heart = task.hidden.reference.get("by_heart")
        if isinstance(by_heart, str):
            found["knows the answer by heart"] = Submission(answer=by_heart)
        found["changes the database first"] = [
            call("run", "PRAGMA writable_schema = ON"),
            call("run", "DELETE FROM sqlite_master"),
            call("submit", "SELECT 1"),
        ]
        return found


def told(found: Answer) -> str:
    """Return a result as text: names, rows, and how many more there are."""
    rows = found.table.rows
    lines = [" | ".join(found.table.columns), *(" | ".join(map(_text, row)) for row in rows[:_SHOWN_ROWS])]
    more = len(rows) - _SHOWN_ROWS
    return "\n".join([*lines, *([f"… {more} more rows"] if more > 0 else []), *(["no rows"] if not rows else [])])


def call(name: str, text: str) -> str:
    """Return the message that calls a tool."""
    return f"```{name}\n{text}\n```"


def _text(cell: object) -> str:
    if cell is None:
        return "NULL"
    text = f"x'{cell.hex()}'" if isinstance(cell, bytes) else str(cell).replace("\n", "\\n")
    return text if len(text) <= _SHOWN_CELL else f"{text[:_SHOWN_CELL]}…"
