"""Records by table and key, over a shared start that no episode can change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

Start = Mapping[str, Mapping[str, Any]]
"""Tables by name, records by key."""


class Tables:
    """The state of one world. Only what an episode touches is copied, so hundreds may share one large start.

    >>> tables = Tables({"orders": {"1": {"status": "pending"}}})
    >>> tables.edit("orders", "1")["status"] = "cancelled"
    >>> tables.changes()
    {'orders': {'1': {'status': 'cancelled'}}}
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._own: dict[str, dict[str, Any]] = {}

    def get(self, table: str, key: str) -> Any | None:
        """Return a record to read, or None. It may be shared: change it through `edit`."""
        own = self._own.get(table, {})
        return own[key] if key in own else self._start.get(table, {}).get(key)

    def edit(self, table: str, key: str) -> Any:
        """Return a record of this episode's own, to change.

        Raises:
            KeyError: there is no such record.
        """
        own = self._own.setdefault(table, {})
        if own.get(key) is None:
            if key in own:
                raise KeyError(key)
            own[key] = copy.deepcopy(self._start[table][key])
        return own[key]

    def put(self, table: str, key: str, record: Any) -> None:
        """Add a record, or replace one."""
        self._own.setdefault(table, {})[key] = copy.deepcopy(record)

    def remove(self, table: str, key: str) -> None:
        """Take a record away.

        Raises:
            KeyError: there is no such record.
        """
        if self.get(table, key) is None:
            raise KeyError(key)
        self._own.setdefault(table, {})[key] = None

    def items(self, table: str) -> Iterator[tuple[str, Any]]:
        """Yield a table's records by key: those of the start first, in its order."""
        start, own = self._start.get(table, {}), self._own.get(table, {})
        for key in [*start, *(key for key in own if key not in start)]:
            record = own.get(key) if key in own else start[key]
            if record is not None:
                yield key, record

    def changes(self) -> dict[str, dict[str, Any]]:
        """Return the records that are not as at the start; those that are gone are None."""
        found: dict[str, dict[str, Any]] = {}
        for table, own in sorted(self._own.items()):
            start = self._start.get(table, {})
            changed = {key: copy.deepcopy(one) for key, one in sorted(own.items()) if one != start.get(key)}
            if changed:
                found[table] = changed
        return found

    def touched(self) -> dict[str, dict[str, Any]]:
        """Return the records of this episode's own, to read, even those that are as at the start again."""
        return self._own

    def whole(self) -> dict[str, dict[str, Any]]:
        """Return all tables, to read."""
        return {table: dict(self.items(table)) for table in sorted({*self._start, *self._own})}
