"""One client on a server: what it holds, until when, and its numbered calls, each of which runs at most once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from agentgym.errors import SandboxError
from agentgym_sandboxes.remote_wire import describe, pack
from agentgym_sandboxes.serving.calls import Call
from agentgym_sandboxes.serving.limits import Limits
from agentgym_sandboxes.serving.tenant import Tenant

logger = logging.getLogger(__name__)


class GoneError(SandboxError):
    """The client's lease is over, and with it all that it held."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The threads in which backends work."""

    calls: ThreadPoolExecutor
    closers: ThreadPoolExecutor
    """Apart from the others: what ends a command must not wait until it has ended."""


class Operation:
    """One call, from its arrival until its answer was fetched."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.is_abandoned = False
        self.task: asyncio.Task[None] | None = None
        self.has_begun = False
        self.made: Any = None
        self.succeeded = False


class Lease:
    """Lives on the event loop; what its calls do happens in threads.

    A number that was answered, or given up, is never run again, however late a repeated request arrives. Answered
    numbers are remembered as all below a floor, and the few above it.
    """

    def __init__(self, tenant: Tenant, pools: Pools, limits: Limits) -> None:
        self.tenant = tenant
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Why the lease ended."""
        self._pools = pools
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.calls_per_client)
        self._operations: dict[int, Operation] = {}
        self._floor = 0
        self._settled: set[int] = set()
        self._watchers = 0
        self._ends = 0.0
        self.renew()

    def renew(self) -> None:
        """Learn that the client lives."""
        self._ends = time.monotonic() + self._limits.lease_s

    @property
    def expired(self) -> bool:
        """Whether the client was silent for too long."""
        return time.monotonic() >= self._ends

    def watch(self) -> None:
        """Learn that the client keeps a connection open for nothing else than to show that it lives."""
        self._watchers += 1

    def unwatch(self, *, broken: bool) -> None:
        """Learn that such a connection ended; without another one, the client has little time to come back."""
        self._watchers -= 1
        if broken and not self._watchers:
            self._ends = min(self._ends, time.monotonic() + self._limits.grace_s)

    def find(self, number: int) -> Operation | None:
        """Return the operation of a number, or None if it never came.

        Raises:
            SandboxError: it was settled.
        """
        if number < self._floor or number in self._settled:
            raise SandboxError(f"call {number} was settled before; it will not run again")
        return self._operations.get(number)

    def submit(self, number: int, call: Call) -> Operation:
        """Let a call wait for its turn; one that is known already is only returned.

        Raises:
            SandboxError: the number was settled, too many calls wait, or the lease is over (`GoneError`).
        """
        if self.over.done():
            raise GoneError(f"the lease on the sandbox server is over: {self.over.result()}")
        known = self.find(number)
        if known is not None:
            return known
        if len(self._operations) >= self._limits.waiting:
            raise SandboxError(
                f"{len(self._operations)} calls of this client wait on the sandbox server, as many as it allows; use "
                "fewer threads, or serve with a larger limit waiting"
            )
        operation = self._operations[number] = Operation(call)
        operation.task = asyncio.create_task(self._run(operation))
        operation.task.add_done_callback(lambda _: operation.answer.cancel())  # does nothing to one that is there
        return operation

    def settle(self, done: Iterable[int], abandoned: Iterable[int]) -> None:
        """Forget calls whose answers arrived, and undo those that nobody waits for."""
        for number in done:
            self._forget(number)
        for number in abandoned:
            operation = self._forget(number)
            if operation is None:
                continue
            operation.is_abandoned = True
            if not operation.has_begun and operation.task is not None:
                operation.task.cancel()
            elif operation.answer.done():
                self._undo(operation)

    def end(self, why: str) -> None:
        """Wake who waits, and start no call that has not begun; the tenant's things are for the caller to end."""
        if self.over.done():
            return
        self.over.set_result(why)
        for operation in self._operations.values():
            if operation.task is not None and not operation.has_begun:
                operation.task.cancel()

    def _forget(self, number: int) -> Operation | None:
        if number < self._floor or number in self._settled:
            return None
        self._settled.add(number)
        while self._floor in self._settled:
            self._settled.remove(self._floor)
            self._floor += 1
        return self._operations.pop(number, None)

    async def _run(self, operation: Operation) -> None:
        loop = asyncio.get_running_loop()
        if operation.call.is_closing:
            operation.has_begun = True
            packed = await loop.run_in_executor(self._pools.closers, self._work, operation)
        else:
            async with self._turns:
                operation.has_begun = True
                packed = await loop.run_in_executor(self._pools.calls, self._work, operation)
        operation.answer.set_result(packed)
        if operation.is_abandoned:
            self._undo(operation)

    def _work(self, operation: Operation) -> bytes:
        try:
            operation.made = operation.call.run(self.tenant)
            packed = pack({"value": operation.made})
            operation.succeeded = True
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is the caller's answer
            return pack({"error": describe(error)})
        return packed

    def _undo(self, operation: Operation) -> None:
        if operation.succeeded:
            self._pools.closers.submit(self._try_undo, operation)

    def _try_undo(self, operation: Operation) -> None:
        try:
            operation.call.undo(self.tenant, operation.made)
        except Exception:  # the lease's end tries again
            logger.warning("what an abandoned %s began cannot be ended yet", operation.call.call, exc_info=True)
