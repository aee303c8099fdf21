"""Read SQLite databases in a sandbox; no database that others wrote is opened on this side."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.calls import ask_python
from agentgym.graders.patches import PatchError
from agentgym.sandbox import Sandbox

MAX_BYTES = 32_000_000
_TABLE_LIMITS = {"rows": 200_000, "cell_bytes": 1_000_000, "seconds": 20}
_OUTPUT_BYTES = 128_000_000


def decode(text: object) -> bytes:
    """Return a database handed in as base64.

    Raises:
        PatchError: it is not one, or too large; the sentence is safe to show.
    """
    if not isinstance(text, str) or len(text) > MAX_BYTES * 4 // 3 + 4:
        raise PatchError(f"wanted a database as base64 text of at most {MAX_BYTES} bytes, found {type(text).__name__}")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PatchError("wanted a database as base64 text, found something else") from error
    if not data.startswith(b"SQLite format 3\0"):
        raise PatchError("wanted an SQLite 3 database, found another file")
    return data


def read_database(box: Sandbox, data: bytes) -> dict[str, Any]:
    """Return the rows of an untrusted database: by table, each row by column.

    Raises:
        PatchError: it cannot be read as nothing but tables.
        SandboxError: the sandbox failed.
    """
    box.write("state.db", data)
    found, problem = _ask(box, {"path": f"{box.workdir}/state.db"})
    if problem:
        raise PatchError(f"the database cannot be read: {problem}")
    return found


def read_script(box: Sandbox, sql: str) -> dict[str, Any]:
    """Return the rows that a task's own SQL leads to.

    Raises:
        VerifierError: the SQL fails.
        SandboxError: the sandbox failed.
    """
    found, problem = _ask(box, {"sql": sql})
    if problem:
        raise VerifierError(f"the task's database cannot be made: {problem}")
    return found


def _ask(box: Sandbox, request: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    timeout = 3.0 * _TABLE_LIMITS["seconds"]
    result = ask_python(
        box, "_state_reader.py", {**request, "limits": _TABLE_LIMITS}, timeout=timeout, output_limit=_OUTPUT_BYTES
    )
    if b"No module named" in result.stderr and b"sqlite3" in result.stderr:
        raise SandboxError("python3 in the sandbox has no sqlite3: use an image whose Python has it")
    if result.timed_out or result.truncated or result.exit_code != 0:
        return {}, "it is too large, or ended its reader"
    try:
        return _tables([json.loads(line) for line in result.stdout.splitlines()])
    except (ValueError, RecursionError):
        return {}, "it confused its reader"


def _tables(lines: Sequence[Any]) -> tuple[dict[str, Any], str]:
    tables: dict[str, Any] = {}
    columns: list[str] = []
    rows: list[Any] = []
    for line in lines:
        match line:
            case ["table", str(name), [*names]]:
                columns, rows = [str(one) for one in names], []
                tables[name] = rows
            case ["row", [*cells]] if len(cells) == len(columns) and tables:
                rows.append({name: _cell(*one) for name, one in zip(columns, cells, strict=True)})
            case ["end"]:
                return tables, ""
            case ["error", str(text)]:
                return {}, text.replace("\n", " ")
            case _:
                break
    return {}, "it confused its reader"


def _cell(tag: str, text: str) -> object:
    match tag:
        case "n":
            return None
        case "i":
            return int(text)
        case "f":
            return float.fromhex(text)
        case "s":
            return bytes.fromhex(text).decode("utf-8", "surrogateescape")
        case "b":
            return bytes.fromhex(text)
    raise ValueError(f"a cell of no known kind: {tag!r}")
