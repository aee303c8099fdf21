"""Who started a sandbox: leftovers are removed only when their owner is provably dead."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from agentgym.upkeep import Life


@dataclass(frozen=True, slots=True)
class Owner:
    """One process, named so that a reused pid, another container, boot or machine cannot be mistaken for it."""

    host: str
    boot: str
    pidns: str
    pid: int
    started: int
    """Start time of the process in clock ticks since boot."""

    @classmethod
    def current(cls) -> Self:
        """Return this process."""
        pid = os.getpid()
        started = _start_time(pid)
        return cls(socket.gethostname(), _boot_id(), _pid_namespace(), pid, started if started is not None else 0)

    @classmethod
    def from_labels(cls, labels: Mapping[str, str]) -> Self | None:
        """Read `labels()` back; None if they are not ours or not whole."""
        return cls.from_tag("~".join(labels.get(f"agentgym.{one.name}", "") for one in fields(cls)))

    @classmethod
    def from_tag(cls, tag: str) -> Self | None:
        """Read `tag()` back; None if it is not ours or not whole."""
        host, boot, pidns, pid, started = (*tag.split("~"), "", "", "", "", "")[:5]
        if not pid.isdecimal() or not started.isdecimal():
            return None
        return cls(host, boot, pidns, int(pid), int(started))

    def labels(self) -> dict[str, str]:
        """Return the owner as flat labels."""
        return {f"agentgym.{name}": str(value) for name, value in asdict(self).items()}

    def tag(self) -> str:
        """Return the owner as one word that can stand in a file name."""
        return "~".join(self.labels().values())

    def is_dead(self) -> bool:
        """Whether the process provably ended."""
        return self.life() == "dead"

    def life(self) -> Life:
        """Return how the process is: only this boot of this machine, seen from its own namespace, can tell."""
        if (self.host, self.boot, self.pidns) != (socket.gethostname(), _boot_id(), _pid_namespace()):
            return "unknown"
        started = _start_time(self.pid)
        is_there = _exists(self.pid) if started is None else started == self.started
        return "living" if is_there else "dead"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _exists(pid: int) -> bool:
    """Ask the kernel itself: a /proc mounted with hidepid shows nothing of other users' processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # the name in parentheses may hold spaces
