"""How the SQL grader judges every gold query of a file, its rows shuffled, its answer by heart, and nonsense."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from agentgym import registry
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission, Verdict
from agentgym_envs.sql.database import Database, ask, install
from agentgym_envs.sql.grader import SqlGrader, read_spec
from agentgym_envs.sql.tasks import family_tasks

app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@app.command()
def main(
    family: Annotated[str, typer.Argument(help="`spider`, `defog` or `questions`.")],
    path: Annotated[Path | None, typer.Argument(help="The file of questions, for `spider` and `defog`.")] = None,
    sandbox: Annotated[str, typer.Option(help="Where queries run.")] = "process",
    jobs: Annotated[int, typer.Option(min=1, help="Tasks at once.")] = 2,
    count: Annotated[int | None, typer.Option(min=1, help="The first so many tasks; all by default.")] = None,
    difficulty: Annotated[float, typer.Option(help="Of generated questions.")] = 3.0,
) -> None:
    """Count how golds fare, and what should not.

    For example:

        python -m benchmarks.sql_golds spider spider_dev/questions.jsonl

        python -m benchmarks.sql_golds questions --count 100 --difficulty 5
    """
    console = Console(stderr=True)
    tasks = family_tasks(family, path=str(path) if path else None, count=count or 100, difficulty=difficulty, seed=0)
    chosen = list(tasks.take(count))
    backend: SandboxBackend = registry.create("sandboxes", sandbox)
    backend.check()
    counts: Counter[str] = Counter()
    failures: list[str] = []
    began = time.perf_counter()
    with Progress(console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        row = bar.add_task("judging", total=len(chosen))
        for task, found in zip(chosen, pool.map(lambda one: judged(one, backend), chosen), strict=True):
            for what, verdict in found:
                counts[f"{what}: {verdict.level}"] += 1
                if what.startswith("gold") and verdict.value != 1.0:
                    failures.append(f"{task.id}: {what}: {verdict.feedback}")
            bar.advance(row)
    backend.close()
    out = Console()
    for name, number in sorted(counts.items()):
        out.print(f"{number:6d}  {name}", highlight=False)
    for one in failures:
        out.print(one, markup=False, highlight=False)
    out.print(f"{len(chosen)} tasks in {time.perf_counter() - began:.0f} s", highlight=False)
    raise typer.Exit(bool(failures))


def judged(task: Task, backend: SandboxBackend) -> list[tuple[str, Verdict]]:
    """Return what became of each gold, of its rows in another order, of its answer by heart, and of nonsense."""
    spec, grader = read_spec(task), SqlGrader()

    def judge(sql: str) -> Verdict:
        return grader.grade(task, Submission(answer=sql), backend)

    found = [("gold", judge(sql)) for sql in spec.golds]
    if not spec.ordered:
        shuffled = f"SELECT * FROM ({spec.golds[0]}) ORDER BY random()"
        found.append(("gold, rows shuffled", judge(shuffled)))
    found.append(("answer by heart", judge(by_heart(task, spec.golds[0], backend))))
    found.append(("SELECT 1", judge("SELECT 1")))
    return found


def by_heart(task: Task, gold: str, backend: SandboxBackend) -> str:
    """Return a query that says what the gold gives on the given database, without asking it."""
    database = Database.of(task)
    with backend.start(task.sandbox) as box:
        install(box, database)
        table = ask(box, database, [gold]).answers[0].table
    if not table.rows:
        return "SELECT " + ", ".join("1" for _ in table.columns) + " WHERE 0"
    return " UNION ALL ".join(f"SELECT {', '.join(map(literal, row))}" for row in table.rows[:90])


def literal(value: object) -> str:
    """Write a value as SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    app()
