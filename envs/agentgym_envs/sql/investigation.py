"""Follow an incident through log tables, step by step, and report the entity at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, ValidationError

from agentgym.env import Submit, tool
from agentgym.errors import TaskError, VerifierError
from agentgym.task import Task, TaskSet
from agentgym.types import Record, Submission, Trust, Verdict
from agentgym_envs.sql import incidents
from agentgym_envs.sql.env import LOOKING, DatabaseEnv, call
from agentgym_envs.sql.incidents import fingerprint, incident

DECAY = 0.4
"""What a step is worth for each step that it is short of the end, as in ExCyTIn-Bench."""
_SPARE_LINES = 1
EXPLANATION = f"""Investigate an incident in a log database. Each message is one fenced block named after a tool.
{LOOKING}
```report
<each entity that you found, in order, one to a line; the last line is the answer>
```
ends the episode. More lines than steps are worth nothing."""


class Path(Record):
    """What the grader needs, kept in `hidden.data`: the hashes of the entities along the path."""

    salt: str
    path: Annotated[tuple[str, ...], Field(min_length=1)]


class InvestigationEnv(DatabaseEnv):
    """Reward 1 for the entity at the end of the path; how far a wrong report came is a component of the verdict."""

    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "malformed", "failed", "on_path", "passed")
    explanation = EXPLANATION

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        count: int = 500,
        difficulty: float = 2.0,
        task_seed: int = 0,
        explain: bool = True,
        max_turns: int = 12,
        **options: Any,
    ) -> None:
        """Choose the tasks.

        Args:
            tasks: a task set; without one, incidents are generated.
            count: how many to generate.
            difficulty: the number of steps, 1 to 6; the logs grow with it.
            task_seed: which to generate.
            explain: open with a system message that explains the tools.
            max_turns: how many messages an episode may take.
            **options: those of `AgentEnv`.
        """
        made = tasks or TaskSet(
            "incidents", partial(incidents.tasks, count=count, difficulty=difficulty, seed=task_seed)
        )
        super().__init__(made, explain=explain, max_turns=max_turns, **options)

    @tool
    def report(self, findings: str) -> Submit:
        """Report the entities along the path, one to a line; the last line is the answer. The episode ends."""
        return Submit(findings)

    def check_task(self, task: Task) -> None:
        """Refuse a task without a path."""
        _read(task)

    def grade(self, task: Task, submission: Submission) -> Verdict:
        """Compare the last line with the end of the path, and the others with what lies on it."""
        known = _read(task)
        lines = [line.strip() for line in (submission.answer or "").splitlines() if line.strip()]
        if not lines:
            return _verdict("empty", 0.0, "nothing was reported")
        if len(lines) > len(known.path) + _SPARE_LINES:
            return _verdict("malformed", 0.0, f"{len(lines)} lines are more than there are steps")
        found = [fingerprint(known.salt, line) for line in lines]
        if found[-1] == known.path[-1]:
            return _verdict("passed", 1.0, "")
        credit = path_credit([one in found for one in known.path[:-1]])
        return _verdict("on_path" if credit > 0.0 else "failed", credit, "the last line is not what was to be found")

    def oracle(self, task: Task) -> Sequence[str]:
        """Ask for each step by a query that knows the one before, and report."""
        known = task.hidden.reference
        if not {"seed", "hops", "noise"} <= known.keys():
            raise TaskError(f"task {task.id!r} was not generated here, so nothing knows its path")
        seed, hops, noise = (cast(int, known[name]) for name in ("seed", "hops", "noise"))
        found = incident(seed, hops, noise)
        steps = [
            call("run", f"SELECT DISTINCT {edge.target} FROM {edge.table} WHERE {edge.source} = '{at}'")
            for edge, at in zip(found.edges, found.path, strict=False)
        ]
        return [call("schema", "*"), *steps, call("report", "\n".join(found.path[1:]))]

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Return reports that name too much, or the beginning."""
        return {
            "reports the beginning": Submission(answer=_beginning(task)),
            "reports everything": Submission(answer="\n".join(f"10.{i % 250}.{i // 250}.1" for i in range(5000))),
            "reports the tables": Submission(answer="detections\nprocesses\nlogons"),
            "reports a pattern": Submission(answer="%"),
        }


def path_credit(found: Sequence[bool]) -> float:
    """Return what entities before the last are worth, given whether each was found, in the path's order.

    A step that is k steps short of the end is worth `DECAY ** k`; all together are worth less than the end.

    >>> round(path_credit([True, True]), 2), path_credit([])
    (0.56, 0.0)
    """
    return sum((DECAY ** (len(found) - at) for at, one in enumerate(found) if one), start=0.0)


def _beginning(task: Task) -> str:
    """Return the entity that the question names."""
    return next((word for word in task.public.prompt.split() if word.startswith("A-")), "A-0")


def _read(task: Task) -> Path:
    try:
        return Path.model_validate(task.hidden.data)
    except ValidationError as error:
        raise VerifierError(f"the investigation {task.id!r} is malformed: {error.errors()[0]['msg']}") from error


def _verdict(level: str, credit: float, feedback: str) -> Verdict:
    value = 1.0 if level == "passed" else 0.0
    return Verdict(value=value, level=level, trust=Trust.RPC, components={"path": credit}, feedback=feedback)
