"""What sandboxes cost this machine in memory while nothing happens, by what the kernel says of each process."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_SHIM = re.compile(rb"-id\x00([0-9a-f]{64})\x00")
_IN_CONTAINER = re.compile(r"([0-9a-f]{64})")
_DAEMONS = ("dockerd", "containerd")


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional set sizes in MB: pages that several processes share count once in all."""

    inside: float
    """The containers' own processes."""
    shims: float
    """One helper of containerd for each container."""
    client: float
    """The system's process here, and what it started."""
    daemons: float
    """dockerd and containerd: everybody's, so only growth says something."""

    @property
    def all(self) -> float:
        """The sum."""
        return self.inside + self.shims + self.client + self.daemons


def measure(client: int, containers: Iterable[str]) -> Memory:
    """Look at every process on this machine; containers by their id or its first 12 digits.

    Raises:
        PermissionError: the kernel tells others' memory to root alone.
    """
    wanted = tuple(containers)
    ours = _tree(client)
    sums = dict.fromkeys(("inside", "shims", "client", "daemons"), 0)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            place = _place(folder, ours, wanted)
            if place is not None:
                sums[place] += _kilobytes(folder)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Memory(**{name: kilobytes / 1024 for name, kilobytes in sums.items()})


def _place(folder: Path, ours: Collection[int], wanted: tuple[str, ...]) -> str | None:
    if int(folder.name) in ours:
        return "client"
    shim = _SHIM.search((folder / "cmdline").read_bytes())
    if shim is not None:
        return "shims" if wanted and shim[1].decode().startswith(wanted) else None
    name = (folder / "comm").read_text().strip()
    if name in _DAEMONS:
        return "daemons"
    container = _IN_CONTAINER.search((folder / "cgroup").read_text())
    return "inside" if wanted and container is not None and container[1].startswith(wanted) else None


def _kilobytes(folder: Path) -> int:
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _tree(root: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found
