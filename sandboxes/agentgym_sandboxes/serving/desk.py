"""All clients of one backend: leases begin, are kept up, and end with everything that they held."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxBackend
from agentgym_sandboxes.serving.leases import GoneError, Lease, Pools
from agentgym_sandboxes.serving.limits import Limits
from agentgym_sandboxes.serving.tenant import Room, Tenant

logger = logging.getLogger(__name__)

_SWEEP_S = 0.2
_RETRY_S = 2.0


class Desk:
    """Lives on the event loop, from the server's start until `close`."""

    def __init__(
        self, backend: SandboxBackend, limits: Limits, room: Room | None = None, *, builds: bool = False
    ) -> None:
        """Begin without clients.

        Args:
            backend: what is lent; closed with the desk.
            limits: how much of it clients may have.
            room: places for sandboxes, if not only the limits of each client bound them.
            builds: whether images are built for clients.
        """
        self.backend = backend
        self.limits = limits
        self._room = room
        self._builds = builds
        self.pools = Pools(
            ThreadPoolExecutor(limits.calls, "agentgym-call"), ThreadPoolExecutor(16, "agentgym-closing")
        )
        self._leases: dict[str, Lease] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._pending_bytes = 0

    def begin(self, key: str) -> Lease:
        """Give a client a lease; one that it has already is renewed.

        Raises:
            SandboxError: there are too many clients, or the server is about to end.
        """
        self._require_open()
        if key not in self._leases:
            if len(self._leases) >= self.limits.clients:
                raise SandboxError(
                    f"the sandbox server has {len(self._leases)} clients, as many as it allows; end one, or serve with "
                    "a larger limit clients"
                )
            tenant = Tenant(self.backend, self.limits, self._room, builds=self._builds)
            self._leases[key] = Lease(tenant, self.pools, self.limits)
        return self.find(key)

    def find(self, key: str) -> Lease:
        """Return a client's lease, renewed.

        Raises:
            GoneError: it has none.
        """
        self._require_open()
        lease = self._leases.get(key)
        if lease is None or lease.over.done():
            raise GoneError(
                f"the sandbox server does not know this client: it restarted, or heard nothing for "
                f"{self.limits.lease_s:g} s, and all that the client held there is gone"
            )
        lease.renew()
        return lease

    def knows(self, key: str) -> bool:
        """Whether a client has a lease, or had one that has not quite ended."""
        return key in self._leases

    async def end(self, key: str, why: str) -> None:
        """End a lease and all that it holds; one that is over already is no error."""
        lease = self._leases.get(key)
        if lease is None:
            return
        lease.end(why)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.pools.closers, lease.tenant.end)
        while not lease.tenant.is_empty:
            await asyncio.sleep(_RETRY_S)
            await loop.run_in_executor(self.pools.closers, lease.tenant.end)
        self._leases.pop(key, None)

    def reserve(self, size: int) -> bool:
        """Take room for a request's body; False if there is none now."""
        if self._pending_bytes + size > self.limits.pending_mb << 20:
            return False
        self._pending_bytes += size
        return True

    def release(self, size: int) -> None:
        """Give room back."""
        self._pending_bytes -= size

    async def sweep(self) -> None:
        """End the leases of silent clients, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._end_silent()

    def drain(self) -> None:
        """Wake everybody who waits, and begin nothing more."""
        self._is_draining = True
        for lease in self._leases.values():
            lease.end("the sandbox server is shutting down")

    def close(self) -> None:
        """End everything; the event loop runs no more."""
        for lease in self._leases.values():
            lease.tenant.end()
        self.backend.close()
        for pool in (self.pools.calls, self.pools.closers):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_empty(self) -> bool:
        """Whether it has no client."""
        return not self._leases

    @property
    def is_draining(self) -> bool:
        """Whether the server is about to end."""
        return self._is_draining

    def _end_silent(self) -> None:
        for key, lease in list(self._leases.items()):
            if lease.expired and not lease.over.done():
                logger.info("a client was silent for too long: its sandboxes end")
                task = asyncio.create_task(self.end(key, "its client was silent for too long"))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    def _require_open(self) -> None:
        if self._is_draining:
            raise GoneError("the sandbox server is shutting down")
