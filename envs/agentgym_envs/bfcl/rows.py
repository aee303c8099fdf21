"""BFCL's multi-turn rows, from files that the user points at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from agentgym.errors import TaskError
from agentgym.task import Hidden, Public, Task
from agentgym_envs.bfcl.judge import Judge
from agentgym_envs.bfcl.world import APIS, Call, Scenario, read_call
from agentgym_envs.code.splits import digest, split_of
from agentgym_envs.rows import Placed, Refused, RowTasks, json_lines

PADDING = 6000
"""Characters of noise after every answer in rows of a long context."""
_MORE_TOOLS = "There are more tools now. Please try again."


class MultiTurnTasks(RowTasks):
    """The rows of a file, or of every file `*.jsonl` and `*.json` in a folder, in BFCL's multi-turn format.

    A row is refused, with the reason, if it names a class that is not here, if its reference cannot be replayed, or if
    it calls nothing (doing nothing would solve it). All variants of one conversation are in one split.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__("bfcl", partial(_lines, Path(path)), to_task, lambda row: str(row["id"]))


def to_task(row: Mapping[str, Any]) -> Task:
    """Return a row as a task.

    Raises:
        Refused: it cannot be judged.
    """
    unknown = sorted(set(row["involved_classes"]) - APIS.keys())
    if unknown:
        raise Refused(f"it needs the tools of {', '.join(unknown)}; those here are of {', '.join(APIS)}")
    scenario = _scenario(row)
    gold = _gold(row, scenario)
    first, data = scenario.questions[0], scenario.model_dump(mode="json")
    return Task(
        id=row["id"],
        split=split_of(digest(re.sub(r"\D", "", row["id"]) or row["id"])),
        public=Public(prompt=first, data={"scenario": cast(JsonValue, data)}),
        # Each call is one text: what may not be shown is the call, and not the name of a tool that is offered.
        hidden=Hidden(data={"gold": [[one.model_dump_json() for one in calls] for calls in gold]}),
        hints=(
            "Look around before you change anything, and call in every turn what that turn asks for.",
            "Tools, turn by turn: " + "; ".join(", ".join(one.name for one in calls) or "none" for calls in gold),
        ),
        difficulty=float(sum(map(len, gold))),
    )


def _scenario(row: Mapping[str, Any]) -> Scenario:
    missed = row.get("missed_function", {}).items()
    appearing = {int(turn): tuple(map(_name, tools)) for turn, tools in missed}
    questions = []
    for turn, messages in enumerate(row["question"]):
        said = "\n".join(one["content"] for one in messages)
        if not said and turn not in appearing:
            raise Refused(f"its user says nothing in turn {turn}")
        questions.append(said or _MORE_TOOLS)
    return Scenario(
        classes=tuple(row["involved_classes"]),
        config=row.get("initial_config", {}),
        questions=tuple(questions),
        excluded=frozenset(row.get("excluded_function", [])),
        appearing=appearing,
        padding=PADDING if "long_context" in row["id"] or "composite" in row["id"] else 0,
    )


def _name(tool: Any) -> str:
    """Return the name of a tool that is told by name, or by its documentation."""
    return str(tool["name"] if isinstance(tool, Mapping) else tool)


def _gold(row: Mapping[str, Any], scenario: Scenario) -> list[list[Call]]:
    """Read the reference, and replay it as an agent; calls that a tool refuses are left out, for they do nothing."""
    turns: Sequence[Sequence[str]] = row["ground_truth"]
    if len(turns) != len(scenario.questions):
        raise Refused(f"it has {len(scenario.questions)} user turns and a reference for {len(turns)}")
    try:
        gold = [[read_call(one, scenario.tools_at(at)) for one in calls] for at, calls in enumerate(turns)]
        judge = Judge(scenario, gold)
        found = [judge.close(calls) for calls in gold]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"its reference cannot be replayed: {error}") from error
    kept = [
        [call for call, refused in zip(calls, one.refused, strict=True) if not refused]
        for calls, one in zip(gold, found, strict=True)
    ]
    if not any(kept):
        raise Refused("its reference calls nothing that works, so doing nothing would solve it")
    return kept


def _lines(path: Path) -> Iterator[Placed]:
    files = sorted(one for one in path.iterdir() if one.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    if not files:
        raise TaskError(f"no task file in {path}; wanted files with one row of BFCL's multi-turn format per line")
    for file in files:
        for place, line in json_lines(file):
            yield place, json.loads(line)
