"""One client's claim on a place that lends sandboxes: kept up by a thread, used for calls that run at most once."""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from agentgym.errors import SandboxError
from agentgym_sandboxes.remote_wire import LeaseLostError, pack, raised, unpack

logger = logging.getLogger(__name__)

_WAIT_S = 20.0
"""For how long an answer is waited for in one request: short enough for the proxies between."""
_SETTLED_AT_ONCE = 200
_JOIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Settled:
    """Numbers of calls that the other side may forget."""

    done: tuple[int, ...]
    """Their answers arrived."""
    abandoned: tuple[int, ...]
    """Nobody waits for their answers: what they started must end."""


class Line(Protocol):
    """The way to a place that lends sandboxes; every request is repeated as long as that may help.

    Raises:
        LeaseLostError: the other side holds nothing of this client (from any method).
        SandboxError: it is out of reach, or refuses (from any method).
    """

    where: str
    """The other side, for people."""

    def begin(self, key: str) -> None:
        """Begin a lease, or renew it."""
        ...

    def call(self, key: str, number: int, body: bytes | None, wait: float, settled: Settled) -> bytes | None:
        """Return the packed answer to a call, or None if there is none after `wait` seconds.

        `body` is the packed call; None asks again for the answer to one that was sent.
        """
        ...

    def keep(self, key: str, wait: float, settled: Settled) -> None:
        """Show for about `wait` seconds that this process lives."""
        ...

    def end(self, key: str) -> None:
        """End the lease and all that it holds."""
        ...


class Lease:
    """Begins at once; safe to use from many threads.

    A call has a number. Its request may be repeated, because the server runs a number once and keeps the answer until
    it hears, with a later request, that the answer arrived or that nobody wants it any more.
    """

    def __init__(self, line: Line, lease_s: float, body_bytes: int) -> None:
        """Begin.

        Args:
            line: leads to the other side.
            lease_s: after how many seconds of silence that ends a lease.
            body_bytes: how many bytes it takes in one request.

        Raises:
            SandboxError: it refuses, or is out of reach.
        """
        self.lost: str | None = None
        """Why nothing of it is there any more."""
        self._line = line
        self._rhythm_s = lease_s / 3
        self._body_bytes = body_bytes
        self._key = secrets.token_hex(32)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._done: list[int] = []
        self._abandoned: list[int] = []
        self._over = threading.Event()
        line.begin(self._key)
        self._keeper = threading.Thread(target=self._keep, name="agentgym-lease", daemon=True)
        self._keeper.start()

    def call(self, name: str, **arguments: Any) -> Any:
        """Let the other side do something once, and return its answer.

        Raises:
            LeaseLostError: it holds nothing of this client any more.
            ValueError: the arguments are larger than what it takes.
            Exception: what the call raised there.
        """
        if self.lost is not None:
            raise LeaseLostError(self.lost)
        body = pack({"call": name, **arguments})
        if len(body) > self._body_bytes:
            raise ValueError(
                f"{name} would send {len(body)} bytes, more than the {self._body_bytes} that {self._line.where} takes "
                "at once; send less, or let it have a larger limit body_mb"
            )
        with self._lock:
            number = next(self._numbers)
        try:
            sent: bytes | None = body
            while (packed := self._send(number, sent)) is None:
                sent = None
            answer = unpack(packed)
        except BaseException:
            with self._lock:
                self._abandoned.append(number)
            raise
        with self._lock:
            self._done.append(number)
        if "error" in answer:
            raise raised(answer["error"])
        return answer["value"]

    def end(self, why: str) -> None:
        """Let the other side end all that it holds of this client.

        Raises:
            SandboxError: it is out of reach.
        """
        if self.lost is None:
            self.lost = why
            try:
                self._line.end(self._key)
            except LeaseLostError as error:
                logger.info("the lease was over before it was ended: %s", error)
        self._over.set()
        self._keeper.join(_JOIN_S)

    def _send(self, number: int, body: bytes | None) -> bytes | None:
        with self._settling() as settled:
            return self._line.call(self._key, number, body, _WAIT_S, settled)

    @contextmanager
    def _settling(self) -> Iterator[Settled]:
        """Give what may be told with a request, and forget it once the request went through."""
        with self._lock:
            settled = Settled(tuple(self._done[:_SETTLED_AT_ONCE]), tuple(self._abandoned[:_SETTLED_AT_ONCE]))
        try:
            yield settled
        except LeaseLostError as error:
            self.lost = self.lost or str(error)
            self._over.set()
            raise
        if settled.done or settled.abandoned:
            told = {*settled.done, *settled.abandoned}
            with self._lock:
                self._done = [number for number in self._done if number not in told]
                self._abandoned = [number for number in self._abandoned if number not in told]

    def _keep(self) -> None:
        """Show the other side that this process lives."""
        while not self._over.is_set():
            try:
                with self._settling() as settled:
                    self._line.keep(self._key, self._rhythm_s, settled)
            except LeaseLostError as error:
                if self.lost == str(error):
                    logger.warning("the sandboxes on %s are gone: %s", self._line.where, error)
                return
            except SandboxError as error:
                logger.info("the lease on %s could not be renewed yet: %s", self._line.where, error)
                self._over.wait(1.0)
