"""Trajectories on disk: one Parquet row per attempt, readable without this package; nothing hidden has a column."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from agentgym.errors import AgentgymError, MissingExtraError
from agentgym.rewards import Rewards
from agentgym.tokens import TokenBuffer
from agentgym.types import Group, Message, Signal, ToolCall, Trajectory, Turn, Verdict

Row = dict[str, Any]


def write(path: Path, groups: Sequence[Group], rewards: Sequence[Rewards] | None = None) -> None:
    """Write groups, with what a reward scheme made of them, as one file that is either whole or absent."""
    pa = _pyarrow()
    rows = list(_rows(groups, rewards))
    table = pa.Table.from_pylist(rows, schema=_schema(pa))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _parquet().write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_rows(path: Path) -> list[Row]:
    """Return a file's rows as plain dictionaries, the columns of rewards and groups included.

    Raises:
        AgentgymError: if it is not a file of trajectories.
    """
    pa = _pyarrow()
    try:
        # Threads that read from Python's file object can hang or abort a process that ends soon (apache/arrow#50482).
        with pa.OSFile(str(path)) as file:
            rows: list[Row] = _parquet().ParquetFile(file).read(use_threads=False).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise AgentgymError(f"no trajectories can be read at {path}: {error}") from error
    return rows


def read(path: Path) -> list[Trajectory]:
    """Return the trajectories of a file, equal to those that were written."""
    return [_trajectory(row) for row in read_rows(path)]


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    return pyarrow


def _parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet

    return pyarrow.parquet


def _schema(pa: Any) -> Any:
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    call = pa.struct([("name", text), ("arguments", text), ("id", text), ("problem", text)])
    message = pa.struct(
        [
            ("role", text),
            ("content", text),
            ("tool_calls", pa.list_(call)),
            ("tool_call_id", text),
            ("name", text),
            ("guidance", text),
            ("call_format", text),
        ]
    )
    named = pa.list_(pa.struct([("name", text), ("value", real)]))
    turn = pa.struct(
        [
            ("action", message),
            ("observation", pa.list_(message)),
            ("signals", named),
            ("stop_reason", text),
            ("weight_version", whole),
            ("seconds", real),
        ]
    )
    noise = pa.struct(
        [("rho0", real), ("rho1", real), ("flipped", pa.bool_()), ("clean_value", real), ("clean_level", text)]
    )
    verdict = pa.struct(
        [
            ("value", real),
            ("level", text),
            ("trust", text),
            ("components", named),
            ("feedback", text),
            ("error", text),
            ("grader", text),
            ("noise", noise),
            ("appeal", real),
        ]
    )
    tokens = pa.struct(
        [
            ("ids", pa.list_(pa.int32())),
            ("kinds", pa.list_(pa.int8())),
            ("logprobs", pa.list_(real)),
            ("turns", pa.list_(pa.int32())),
            ("forks", pa.list_(pa.int32())),
        ]
    )
    return pa.schema(
        [
            ("task_id", text),
            ("split", text),
            ("group", whole),
            ("attempt", whole),
            ("guided", pa.bool_()),
            ("seed", whole),
            ("hint", text),
            ("off_policy", text),
            ("prompt", pa.list_(message)),
            ("turns", pa.list_(turn)),
            ("verdict", verdict),
            ("end", text),
            ("error", text),
            ("seconds", real),
            ("tokens", tokens),
            ("reward_outcome", real),
            ("reward_steps", pa.list_(real)),
            ("reward_keep", pa.bool_()),
            ("extra", text),
        ]
    )


def _rows(groups: Sequence[Group], rewards: Sequence[Rewards] | None) -> Iterable[Row]:
    priced: Sequence[Rewards | None] = rewards if rewards is not None else [None] * len(groups)
    for number, (group, price) in enumerate(zip(groups, priced, strict=True)):
        for index, one in enumerate(group.trajectories):
            yield {
                **_row(one),
                "group": number,
                "guided": group.guided,
                "reward_outcome": price.outcome[index] if price else None,
                "reward_steps": price.step[index] if price else None,
                "reward_keep": price.keep[index] if price else None,
            }


def _row(one: Trajectory) -> Row:
    tokens = one.tokens
    return {
        "task_id": one.task_id,
        "split": one.split,
        "attempt": one.attempt,
        "seed": one.seed,
        "hint": one.hint,
        "off_policy": one.off_policy,
        "prompt": [_from_message(message) for message in one.prompt],
        "turns": [_from_turn(turn) for turn in one.turns],
        "verdict": _from_verdict(one.verdict) if one.verdict else None,
        "end": one.end,
        # An exception's text may hold lone surrogates, which no file can.
        "error": one.error.encode("utf-8", "replace").decode() if one.error is not None else None,
        "seconds": one.seconds,
        "tokens": {one.name: getattr(tokens, one.name) for one in fields(tokens)} if tokens is not None else None,
        "extra": json.dumps(dict(one.extra)),
    }


def _from_message(message: Message) -> Row:
    # Arguments are JSON text: one column type holds whatever a tool takes.
    calls = [{**one.model_dump(), "arguments": json.dumps(one.arguments)} for one in message.tool_calls]
    return {**message.model_dump(exclude={"tool_calls"}), "tool_calls": calls}


def _from_turn(turn: Turn) -> Row:
    return {
        "action": _from_message(turn.action),
        "observation": [_from_message(message) for message in turn.observation],
        "signals": [one.model_dump() for one in turn.signals],
        "stop_reason": turn.stop_reason,
        "weight_version": turn.weight_version,
        "seconds": turn.seconds,
    }


def _from_verdict(verdict: Verdict) -> Row:
    components = [{"name": name, "value": value} for name, value in verdict.components.items()]
    return {**verdict.model_dump(mode="json", exclude={"components"}), "components": components}


def _trajectory(row: Row) -> Trajectory:
    known = {name: row[name] for name in ("task_id", "split", "attempt", "seed", "hint", "off_policy", "end", "error")}
    return Trajectory(
        **known,
        prompt=tuple(_message(one) for one in row["prompt"]),
        turns=[_turn(one) for one in row["turns"]],
        verdict=_verdict(row["verdict"]) if row["verdict"] is not None else None,
        tokens=TokenBuffer(**row["tokens"]) if row["tokens"] is not None else None,
        seconds=row["seconds"],
        extra=json.loads(row["extra"]),
    )


def _message(row: Row) -> Message:
    calls = tuple(ToolCall(**{**one, "arguments": json.loads(one["arguments"])}) for one in row["tool_calls"])
    return Message(**{**row, "tool_calls": calls})


def _turn(row: Row) -> Turn:
    return Turn(
        action=_message(row["action"]),
        observation=tuple(_message(one) for one in row["observation"]),
        signals=tuple(Signal(**one) for one in row["signals"]),
        stop_reason=row["stop_reason"],
        weight_version=row["weight_version"],
        seconds=row["seconds"],
    )


def _verdict(row: Row) -> Verdict:
    return Verdict(**{**row, "components": {one["name"]: one["value"] for one in row["components"]}})
