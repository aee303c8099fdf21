"""The filtering proxy behind `network="allowlist"`: sandboxes have no network, only a tunnel to this."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from agentgym.errors import SandboxError
from agentgym.sandbox import Contact
from agentgym_sandboxes import _allowlist_http
from agentgym_sandboxes._allowlist_dial import Refused, Resolve, SystemResolver, dial
from agentgym_sandboxes._allowlist_rules import Rules
from agentgym_sandboxes._allowlist_tunnel import Tunnel
from agentgym_sandboxes._link import Link, Listener, Waiting
from agentgym_sandboxes._messages import Ask, number, outcome

logger = logging.getLogger(__name__)

PORT = 3128
"""Where programs in a sandbox find the proxy, on their own loopback."""
_URL = f"http://127.0.0.1:{PORT}"
_NAMES = {"HTTP_PROXY": _URL, "HTTPS_PROXY": _URL, "ALL_PROXY": _URL, "NO_PROXY": "localhost,127.0.0.1,::1"}
VARIABLES = {**_NAMES, **{name.lower(): value for name, value in _NAMES.items()}}
"""How programs learn of the proxy."""
_ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use of the proxy."""

    open: int = 64
    """Connections to servers at a time; more must wait, for `dial_s` at most."""
    total: int = 10_000
    """Connections in all; then the proxy hangs up for good. Every one of them is remembered."""
    traffic_bytes: int = 4 << 30
    """Bytes in both directions in all."""
    head_bytes: int = 1 << 15
    """The longest head of a request or an answer."""
    head_s: float = 10.0
    """How long a request's head may take."""
    dial_s: float = 15.0
    """How long resolving a name and connecting may take."""
    idle_s: float = 120.0
    """How long a connection may stand still."""


class Proxy:
    """One thread that serves the connections of all sandboxes of a backend."""

    def __init__(self, limits: Limits | None = None, resolve: Resolve | None = None) -> None:
        self.limits = limits or Limits()
        self._own_resolver = SystemResolver() if resolve is None else None
        self.resolve: Resolve = resolve or self._own_resolver  # type: ignore[assignment]
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(self, link: Link, rules: Rules, sandbox: str, port: int = PORT) -> Session:
        """Let the programs of a sandbox reach the proxy.

        Raises:
            SandboxError: the port is taken, or the sandbox does not answer.
        """
        session = Session(self, self._running(), link, rules, sandbox)
        session.listen(port)
        return session

    def close(self) -> None:
        """End every connection and the thread."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
        if self._own_resolver is not None:
            self._own_resolver.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="agentgym-proxy", daemon=True)
                self._thread.start()
            return self._loop


class Session:
    """One sandbox's share: its list, its limits, and what its programs asked for."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop, link: Link, rules: Rules, sandbox: str) -> None:
        self.limits = proxy.limits
        self.rules = rules
        self.resolve = proxy.resolve
        self._loop = loop
        self._link = link
        self._sandbox = sandbox
        self._door = 0
        self._accepted = 0
        self._left = self.limits.traffic_bytes
        self._tallies: list[Tally] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.places = asyncio.Semaphore(self.limits.open)
        self._is_closed = False

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """What programs asked for, in the order in which it was decided."""
        return tuple(
            Contact(one.host, one.port, allowed=one.is_allowed, bytes=one.bytes, reason=one.reason)
            for one in self._tallies.copy()
        )

    def listen(self, port: int) -> None:
        """Open the port in the sandbox."""
        waiting = Waiting()
        self._link.accept = self._accept
        self._door = self._link.open(waiting)
        self._link.send(Ask.LISTEN, self._door, number(port))
        if not waiting.ended.wait(_ANSWER_S) or waiting.gone:
            raise SandboxError(f"sandbox {self._sandbox} does not answer to the request for its proxy's port")
        code, reason = outcome(waiting.payload)
        if code:
            raise SandboxError(f"sandbox {self._sandbox} cannot have its proxy on port {port}: {reason}")

    def close(self) -> None:
        """End every connection; returns when they have ended."""
        self._is_closed = True
        ended: Future[None] = Future()
        with suppress(RuntimeError):  # the proxy is closed, and all of this with it
            self._loop.call_soon_threadsafe(self._end, ended)
            ended.result(_ANSWER_S)

    def spend(self, size: int) -> None:
        """Count bytes against the whole sandbox's."""
        self._left -= size
        if self._left < 0:
            allowed = self.limits.traffic_bytes
            raise Refused(HTTPStatus.FORBIDDEN, f"this sandbox has used up the {allowed} bytes that it may transfer")

    def add(self, tally: Tally) -> None:
        """Remember a decision."""
        self._tallies.append(tally)
        said = "allowed" if tally.is_allowed else "refused"
        logger.info("sandbox=%s host=%s port=%d %s %s", self._sandbox, tally.host, tally.port, said, tally.reason)

    def _accept(self, channel: int, _listener: int) -> Listener | None:
        """Take a new connection (called on the reading thread)."""
        self._accepted += 1
        if self._is_closed or self._accepted > self.limits.total:
            if self._accepted == self.limits.total + 1:
                logger.warning("sandbox=%s made more than %d connections", self._sandbox, self.limits.total)
            self._link.send(Ask.KILL, self._door)
            return None
        tunnel = Tunnel(self._link, channel, self._loop)
        try:
            self._loop.call_soon_threadsafe(self._begin, tunnel)
        except RuntimeError:  # the proxy is closed
            return None
        return tunnel

    def _begin(self, tunnel: Tunnel) -> None:
        if self._is_closed:
            tunnel.close()
            return
        task = self._loop.create_task(_allowlist_http.serve(tunnel, _Way(self)))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a connection of sandbox %s failed", self._sandbox, exc_info=error)

    def _end(self, ended: Future[None]) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        rest: asyncio.Future[list[object]] = asyncio.gather(*tasks, return_exceptions=True)
        rest.add_done_callback(lambda _: ended.set_result(None))


@dataclass(slots=True)
class Tally:
    """One decision, and what came of it."""

    host: str
    port: int
    is_allowed: bool
    reason: str = ""
    bytes: int = 0


class _Way:
    """One connection's way out; see `_allowlist_http.Upstream`."""

    def __init__(self, session: Session) -> None:
        limits = session.limits
        self.head_bytes, self.head_s, self.idle_s = limits.head_bytes, limits.head_s, limits.idle_s
        self._session = session
        self._tally = Tally("", 0, is_allowed=False)

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect if the list permits it."""
        self._tally = Tally(host, port, is_allowed=True)
        session, limits = self._session, self._session.limits
        try:
            rule = session.rules.find(host, port)
            if rule is None:
                allowed = ", ".join(session.rules.names)
                raise Refused(HTTPStatus.FORBIDDEN, f"{host}:{port} is not among the allowed hosts: {allowed}")
            session.spend(0)
            await self._take_place()
            try:
                return await dial(rule, host, port, session.resolve, limits.dial_s)
            except BaseException:
                self.release()
                raise
        except Refused as refused:
            self._tally.is_allowed = refused.status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
            self._tally.reason = str(refused)
            raise
        finally:
            session.add(self._tally)

    async def _take_place(self) -> None:
        limits = self._session.limits
        try:
            async with asyncio.timeout(limits.dial_s):
                await self._session.places.acquire()
        except TimeoutError:
            why = f"{limits.open} connections are open already, as many as this sandbox may have at a time"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, why) from None

    def release(self) -> None:
        """Let another connection have this one's place."""
        self._session.places.release()

    def refuse(self, host: str, port: int, why: str) -> None:
        """Count a request that is not even one."""
        self._session.add(Tally(host, port, is_allowed=False, reason=why))

    def spend(self, size: int) -> None:
        """Count bytes that go either way."""
        self._tally.bytes += size
        self._session.spend(size)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
