"""What one client holds on a server: nobody else can name it, and all of it ends together."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from agentgym.errors import CapabilityError, SandboxError
from agentgym.image import BUILD
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec, Shell, Terminal
from agentgym_sandboxes.serving.limits import Limits

logger = logging.getLogger(__name__)

_CLOSERS = 8


class Room(Protocol):
    """Places for sandboxes that several tenants share; safe to use from many threads."""

    def take(self) -> None:
        """Take a place.

        Raises:
            NoRoomError: there is none now.
        """
        ...

    def give_back(self) -> None:
        """Free a place."""
        ...


class _Boundless:
    def take(self) -> None:
        """There is always another place."""

    def give_back(self) -> None:
        """Nobody counts."""


class Tenant:
    """A client's sandboxes, sessions and snapshots; safe to use from many threads."""

    def __init__(
        self, backend: SandboxBackend, limits: Limits, room: Room | None = None, *, builds: bool = False
    ) -> None:
        """Begin with nothing.

        Args:
            backend: where everything runs.
            limits: how much a client may have.
            room: shared with other tenants; None bounds each by its limits alone.
            builds: whether images are built for clients.
        """
        self.limits = limits
        self._backend = backend
        self._room: Room = room or _Boundless()
        self._builds = builds
        self._lock = threading.Lock()
        self._starting = 0
        self._sandboxes: dict[str, Sandbox] = {}
        self._sessions: dict[str, tuple[str, Shell | Terminal]] = {}
        self._snapshots: set[str] = set()
        self._ended = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left that could hold resources."""
        with self._lock:
            return not (self._sandboxes or self._snapshots or self._starting)

    def accept(self, spec: SandboxSpec) -> None:
        """Refuse what `start` would refuse."""
        self._refuse_builds(spec)
        self._backend.accept(spec)

    def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox."""
        self._refuse_builds(spec)
        return self._begin(lambda: self._backend.start(spec))

    def fork(self, snapshot: str) -> Sandbox:
        """Start a sandbox from one of this client's snapshots."""
        self._require_snapshot(snapshot)
        return self._begin(lambda: self._backend.fork(snapshot))

    def sandbox(self, name: str) -> Sandbox:
        """Return one of this client's sandboxes.

        Raises:
            SandboxError: there is none of that name.
        """
        with self._lock:
            found = self._sandboxes.get(name)
        if found is None:
            raise SandboxError(f"sandbox {name} is closed, or not one of this client's")
        return found

    def close(self, name: str) -> None:
        """End a sandbox and forget its sessions; one that is closed already is no error."""
        with self._lock:
            found = self._sandboxes.get(name)
        if found is None:
            return
        found.close()
        with self._lock:
            if self._sandboxes.pop(name, None) is not None:
                self._room.give_back()
            for handle in [handle for handle, (owner, _) in self._sessions.items() if owner == name]:
                del self._sessions[handle]

    def snapshot(self, name: str) -> str:
        """Freeze one of this client's sandboxes."""
        with self._lock:
            if len(self._snapshots) >= self.limits.snapshots:
                raise SandboxError(
                    f"this client keeps {len(self._snapshots)} snapshots, as many as the sandbox server allows; drop "
                    "some, or serve with a larger limit snapshots"
                )
        made = self.sandbox(name).snapshot()
        with self._lock:
            if not self._ended:
                self._snapshots.add(made)
                return made
        self._backend.drop(made)
        raise SandboxError("the client's lease ended while a snapshot was made")

    def drop(self, snapshot: str) -> None:
        """Free one of this client's snapshots."""
        self._require_snapshot(snapshot)
        self._backend.drop(snapshot)
        with self._lock:
            self._snapshots.discard(snapshot)

    def open(self, name: str, begin: Callable[[Sandbox], Shell | Terminal]) -> str:
        """Start a session in a sandbox and return the word by which it is named from now on."""
        session = begin(self.sandbox(name))
        handle = secrets.token_hex(16)
        with self._lock:
            if name in self._sandboxes:
                self._sessions[handle] = (name, session)
                return handle
        session.close()
        raise SandboxError(f"sandbox {name} was closed while a session began in it")

    def session(self, handle: str) -> Shell | Terminal:
        """Return one of this client's sessions.

        Raises:
            SandboxError: there is none of that name.
        """
        with self._lock:
            found = self._sessions.get(handle)
        if found is None:
            raise SandboxError("the session is closed, or its sandbox is")
        return found[1]

    def close_session(self, handle: str) -> None:
        """End a session; one that is closed already is no error."""
        with self._lock:
            found = self._sessions.pop(handle, None)
        if found is not None:
            found[1].close()

    def end(self) -> None:
        """Close everything, and refuse what would begin; call it again as long as not `is_empty`."""
        with self._lock:
            self._ended = True
            names, snapshots = list(self._sandboxes), list(self._snapshots)
        with ThreadPoolExecutor(_CLOSERS, "agentgym-closer") as pool:
            for name in names:
                pool.submit(self._attempt, f"sandbox {name}", self.close, name)
            for snapshot in snapshots:
                pool.submit(self._attempt, snapshot, self.drop, snapshot)

    def _begin(self, begin: Callable[[], Sandbox]) -> Sandbox:
        with self._lock:
            held = len(self._sandboxes) + self._starting
            if self._ended:
                raise SandboxError("the client's lease has ended")
            if held >= self.limits.sandboxes:
                raise SandboxError(
                    f"this client has {held} sandboxes, as many as the sandbox server allows; close some, or serve "
                    "with a larger limit sandboxes"
                )
            self._room.take()
            self._starting += 1
        try:
            box = begin()
            with self._lock:
                self._sandboxes[box.id] = box
                ended = self._ended
        except BaseException:
            self._room.give_back()
            raise
        finally:
            with self._lock:
                self._starting -= 1
        if ended:
            self.close(box.id)
            raise SandboxError("the client's lease ended while its sandbox started")
        return box

    def _require_snapshot(self, name: str) -> None:
        with self._lock:
            # A backend without snapshots says so itself.
            if name not in self._snapshots and "snapshot" in self._backend.capabilities:
                raise KeyError(f"there is no snapshot {name!r}: it was dropped, or is not this client's")

    def _refuse_builds(self, spec: SandboxSpec) -> None:
        # The lines of a build run as root in a container with a network: that is more than a sandbox is lent for.
        if not self._builds and (spec.image or "").startswith(BUILD):
            raise CapabilityError(
                "this server builds no images for its clients: have the image built where the server runs, and name it"
            )

    def _attempt(self, what: str, end: Callable[[str], None], name: str) -> None:
        try:
            end(name)
        except Exception:  # one that resists must not keep the others alive; it is tried again
            logger.warning("%s cannot be ended yet", what, exc_info=True)
