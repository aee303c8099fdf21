"""Frozen files of sandboxes, until somebody frees them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes._messages import Entries


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a fork needs."""

    spec: SandboxSpec
    folders: Mapping[str, Entries]
    free: Callable[[], None]


class Snapshots:
    """Snapshots by name, in this process's memory; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Snapshot] = {}

    def add(self, spec: SandboxSpec, folders: Mapping[str, Entries], free: Callable[[], None] = lambda: None) -> str:
        """Keep one and return its name; `free` is called when it is dropped."""
        name = f"snapshot-{secrets.token_hex(8)}"
        with self._lock:
            self._kept[name] = Snapshot(spec, folders, free)
        return name

    def __getitem__(self, name: str) -> Snapshot:
        with self._lock:
            if name not in self._kept:
                raise KeyError(f"there is no snapshot {name!r}: it was dropped, or belongs to another backend")
            return self._kept[name]

    def drop(self, name: str) -> None:
        """Free one."""
        dropped = self[name]
        with self._lock:
            self._kept.pop(name, None)
        dropped.free()

    def close(self) -> None:
        """Free all."""
        with self._lock:
            names = list(self._kept)
        for name in names:
            self.drop(name)
