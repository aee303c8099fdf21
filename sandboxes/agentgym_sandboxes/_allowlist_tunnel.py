"""A connection that a program in the sandbox made to its proxy, carried by the supervisor, as a stream for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from agentgym_sandboxes._link import Link
from agentgym_sandboxes._messages import WINDOW, Ask, Say, number, number_of


class Tunnel:
    """Hears on the reading thread (see `_link.Listener`); everything else belongs to one event loop.

    No more than `WINDOW` bytes are under way in each direction: the program waits for us, and we for it.
    """

    def __init__(self, link: Link, channel: int, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._channel = channel
        self._loop = loop
        self._arrived = bytearray()
        self._room = WINDOW
        self._has_ended = False
        self._is_over = False
        self._is_closed = False
        self._heard = asyncio.Event()
        self._taken = asyncio.Event()

    def hear(self, kind: int, payload: bytes) -> None:
        """Take what the supervisor says (called on the reading thread)."""
        self._post(lambda: self._take(kind, payload))

    def lost(self) -> None:
        """Learn that the sandbox is gone (called on the reading thread)."""
        self._post(self._end)

    async def read(self) -> bytes:
        """Return what the program has sent, or b"" once it sends no more.

        Raises:
            ConnectionResetError: the connection broke.
        """
        while not (self._arrived or self._has_ended or self._is_over):
            self._heard.clear()
            await self._heard.wait()
        if self._arrived:
            data = bytes(self._arrived)
            self._arrived.clear()
            self._link.send(Ask.CREDIT, self._channel, number(len(data)))
            return data
        if self._is_over and not self._has_ended:
            raise ConnectionResetError("the program in the sandbox hung up")
        return b""

    async def write(self, data: bytes) -> None:
        """Send all of it, waiting while the program takes nothing.

        Raises:
            ConnectionResetError: the connection broke.
        """
        left = memoryview(data)
        while left:
            await self._until(lambda: self._room > 0)
            piece, left = left[: self._room], left[self._room :]
            self._room -= len(piece)
            self._link.send(Ask.INPUT, self._channel, bytes(piece))

    def write_eof(self) -> None:
        """Send no more."""
        self._link.send(Ask.INPUT_END, self._channel)

    async def finish(self, patience: float) -> None:
        """End both directions: what was sent is delivered, what still comes is not wanted.

        Closing at once could reset the connection, and with it the last bytes of an answer that nobody has read yet.
        """
        self.write_eof()
        with suppress(TimeoutError, ConnectionResetError):
            async with asyncio.timeout(patience):
                await self._until(lambda: self._room == WINDOW)
                while await self.read():
                    pass

    def close(self) -> None:
        """Hang up at once."""
        if not self._is_closed:
            self._is_closed = True
            self._link.send(Ask.KILL, self._channel)
            self._link.close_channel(self._channel)

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            if self._is_over:
                raise ConnectionResetError("the program in the sandbox hung up")
            self._taken.clear()
            await self._taken.wait()

    def _post(self, job: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(job)

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == Say.OUT:
            self._arrived += payload
        elif kind == Say.WRITTEN:
            self._room += number_of(payload)
            self._taken.set()
        elif kind == Say.END:
            self._has_ended = True
        elif kind == Say.DONE:
            self._end()
        self._heard.set()

    def _end(self) -> None:
        self._is_over = True
        self._heard.set()
        self._taken.set()
