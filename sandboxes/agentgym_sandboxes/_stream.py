"""Talk to a command over Docker's hijacked connection, where both streams come in frames."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Mapping
from typing import Protocol

_CHUNK = 1 << 16
_HEADER = 8


class Sink(Protocol):
    """Whatever takes a stream piece by piece."""

    def feed(self, chunk: memoryview) -> None:
        """Take the next bytes."""
        ...


class Frames:
    """Sorts a multiplexed stream into one sink per stream number.

    >>> from agentgym_sandboxes._output import BoundedBytes
    >>> out = BoundedBytes(10)
    >>> frames = Frames({1: out})
    >>> frames.feed(bytes([1, 0, 0, 0, 0, 0, 0, 3]) + b"ab")
    >>> frames.feed(b"c")
    >>> out.value()
    b'abc'
    """

    def __init__(self, sinks: Mapping[int, Sink]) -> None:
        self._sinks = sinks
        self._header = b""
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the connection."""
        left = memoryview(data)
        while left:
            if not self._left:
                missing = _HEADER - len(self._header)
                self._header, left = self._header + left[:missing], left[missing:]
                if len(self._header) < _HEADER:
                    return
                self._left = int.from_bytes(self._header[4:], "big")
            piece, left = left[: self._left], left[self._left :]
            self._left -= len(piece)
            if sink := self._sinks.get(self._header[0]):
                sink.feed(piece)
            if not self._left:
                self._header = b""


def talk(connection: socket.socket, data: bytes, frames: Frames, deadline: float) -> bool:
    """Send `data` and the end of input, and receive until the other side ends; False if the deadline came first."""
    connection.setblocking(False)
    pending = memoryview(data)
    with selectors.PollSelector() as selector:
        selector.register(connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if pending else 0))
        while (left := deadline - time.monotonic()) > 0:
            for _, events in selector.select(left):
                if events & selectors.EVENT_WRITE:
                    pending = _send(connection, pending)
                    if not pending:
                        selector.modify(connection, selectors.EVENT_READ)
                if events & selectors.EVENT_READ:
                    chunk = _receive(connection)
                    if chunk == b"":
                        return True
                    frames.feed(chunk or b"")
    return False


def _send(connection: socket.socket, pending: memoryview) -> memoryview:
    try:
        pending = pending[connection.send(pending[:_CHUNK]) :]
        if not pending:
            connection.shutdown(socket.SHUT_WR)
    except BlockingIOError:
        return pending
    except (BrokenPipeError, ConnectionResetError):  # the command does not read its input: its own business
        return pending[:0]
    return pending


def _receive(connection: socket.socket) -> bytes | None:
    try:
        return connection.recv(_CHUNK)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""
