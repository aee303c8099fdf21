"""What a sandbox backend can tell of what it keeps on a machine, and how it tidies up; optional for a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Life = Literal["living", "dead", "unknown"]
"""`unknown`: only the machine, boot and process namespace that a process belongs to can tell whether it lives."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One thing that a backend keeps on this machine."""

    kind: Literal["sandbox", "helper", "snapshot", "volume", "image"]
    name: str
    run: str = ""
    owner: str = ""
    """The process that it belongs to, for people; empty if it belongs to nobody in particular."""
    life: Life = "unknown"
    """Of the owner."""
    state: str = ""
    created: float | None = None
    """In seconds since the epoch."""
    ttl_s: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None

    @property
    def ends(self) -> float | None:
        """When it ends by itself, in seconds since the epoch."""
        return None if self.created is None or self.ttl_s is None else self.created + self.ttl_s


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one thing, or would."""

    kept: Kept
    removed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a backend needs of this machine."""

    subject: str
    level: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""
    """What to do about it; empty if it is well."""


class Upkeep(Protocol):
    """Looks after what one backend keeps on this machine, of every run and not only its own.

    Raises:
        SandboxError: the machinery does not answer (from any method but `diagnose`).
    """

    def inventory(self) -> Sequence[Kept]:
        """Return the sandboxes of every run; changes nothing."""
        ...

    def collect(self, *, images: bool = False, expired: bool = False, dry_run: bool = False) -> Sequence[Decision]:
        """Remove what provably has no living owner.

        Args:
            images: also the images that were built from tasks and that nothing uses now.
            expired: also sandboxes whose time is over, though their owner cannot be seen from here.
            dry_run: decide, and remove nothing.
        """
        ...

    def diagnose(self) -> Sequence[Finding]:
        """Say what is there and what is missing; never raises for what is missing."""
        ...

    def build_base(self, name: str | None, base: str | None, say: Callable[[str], None]) -> str:
        """Build the image of tasks that name none and return its name; `say` hears what happens meanwhile.

        Args:
            name: another name than the backend's default.
            base: a public image to start from; None bootstraps from this machine's own packages.
            say: takes one line at a time.

        Raises:
            CapabilityError: the backend has no images.
        """
        ...


@runtime_checkable
class Maintained(Protocol):
    """A backend that can be looked after."""

    def upkeep(self) -> Upkeep:
        """Return what looks after it; costs nothing and reaches for nothing."""
        ...
