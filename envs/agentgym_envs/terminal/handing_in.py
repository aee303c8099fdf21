"""What an agent changed in the folders that count, as data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from agentgym.errors import AgentFault
from agentgym.sandbox import Sandbox
from agentgym_envs.terminal.spec import encoded
from agentgym_envs.terminal.verify import MOST_BYTES, MOST_FILES, is_handed_in

_FIND_S = 60.0


class Folder:
    """Remembers what was there, and tells later what is new, changed or gone; links and devices are left out."""

    def __init__(self, box: Sandbox, roots: tuple[str, ...]) -> None:
        self._box = box
        self._roots = roots
        self._before = {name: _digest(data) for name, data in self._files().items()}
        self._ran = self._executable()

    def changes(self) -> dict[str, Any]:
        """Return `contents` in base64, `deleted` and `executable`, by absolute path; nothing if nothing changed.

        Raises:
            AgentFault: the agent left more than can be handed in.
        """
        try:
            now = self._files()
        except ValueError as error:
            raise AgentFault(f"there is too much to hand in: {error}") from error
        changed = {name: data for name, data in now.items() if self._before.get(name) != _digest(data)}
        runs = self._executable()
        changed |= {name: now[name] for name in runs - self._ran if name in now}
        found: dict[str, Any] = {}
        if changed:
            found["contents"] = encoded(changed)
        if deleted := sorted(self._before.keys() - now.keys()):
            found["deleted"] = deleted
        if executable := sorted(runs & changed.keys()):
            found["executable"] = executable
        return found

    def _files(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for root in self._roots:
            found |= self._below(root)
        return {name: data for name, data in found.items() if is_handed_in(name, self._roots)}

    def _below(self, root: str) -> Mapping[str, bytes]:
        if self._box.exec(("test", "-d", root)).ok:
            kept = self._box.download(root, max_files=MOST_FILES, max_bytes=MOST_BYTES)
            return {f"{root}/{name}": data for name, data in kept.items()}
        try:
            return {root: self._box.read(root, limit=MOST_BYTES)}
        except FileNotFoundError:
            return {}

    def _executable(self) -> frozenset[str]:
        if not self._roots:
            return frozenset()
        done = self._box.exec(
            ("find", *self._roots, "-type", "f", "-perm", "-u+x", "-print0"), timeout=_FIND_S, output_limit=1 << 20
        )
        return frozenset(filter(None, done.stdout.decode("utf-8", "replace").split("\0")))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
