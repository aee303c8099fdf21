"""Hashes of states, as tau-bench writes them down beside its tasks."""

from __future__ import annotations

import hashlib
from typing import Any

from agentgym_envs.tools.tables import Start


class StateHash:
    """Hashes a changed state as tau-bench does: SHA-256 of the text of nested, sorted tuples.

    Only the records that changed are written anew, so a hash of a large shop takes a few milliseconds.
    """

    def __init__(self, start: Start) -> None:
        self._texts = {
            name: {key: _pair(key, record) for key, record in sorted(table.items())} for name, table in start.items()
        }

    def __call__(self, touched: Start) -> str:
        """Return the hexadecimal hash of the start with these records in place of its own."""
        tables = []
        for name, texts in sorted(self._texts.items()):
            merged = {**texts, **{key: _pair(key, one) for key, one in touched.get(name, {}).items()}}
            tables.append(f"({name!r}, {_tuple(list(merged.values()))})")
        return hashlib.sha256(_tuple(tables).encode()).hexdigest()


def _pair(key: str, record: Any) -> str:
    return repr((key, _tuples(record)))


def _tuple(texts: list[str]) -> str:
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((name, _tuples(one)) for name, one in sorted(value.items()))
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
