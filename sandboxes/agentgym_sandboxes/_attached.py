"""The supervisor's streams as Docker's attach gives them: one connection on which both outputs come in frames."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from docker import APIClient

from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._stream import Frames

_CHUNK = 1 << 18
_ROUNDS = 8
_COMPLAINTS_BYTES = 4096


class AttachedWire:
    """Attaches to a container that has been created with an open input; see `_link.Wire`."""

    def __init__(self, api: APIClient, container: str) -> None:
        wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._stream: Any = api.attach_socket(container, params=wanted)
        self._response = self._stream._response
        self._socket: socket.socket = self._stream._sock
        self._socket.setblocking(False)
        self._received = _Received()
        self.complaints = BoundedBytes(_COMPLAINTS_BYTES)
        self._frames = Frames({1: self._received, 2: self.complaints})
        self._frames.feed(self._response.raw._fp.fp.peek())  # what arrived in one packet with the headers
        self._number: int = self._socket.fileno()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._number

    def output(self) -> int:
        """Return the socket's descriptor."""
        return self._number

    def receive(self) -> bytes | bytearray | None:
        """Return what the supervisor has said."""
        is_over = False
        for _ in range(_ROUNDS):
            try:
                data = self._socket.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except ConnectionResetError:
                data = b""
            self._frames.feed(data)
            if is_over := not data:
                break
            if len(data) < _CHUNK and not isinstance(self._socket, ssl.SSLSocket):
                break
        said = self._received.take()
        return said or (b"" if is_over else None)

    def send(self, data: memoryview) -> int:
        """Say something to the supervisor."""
        try:
            return self._socket.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
            raise BlockingIOError from error

    def close(self) -> None:
        """Hang up, at which the daemon closes the supervisor's input."""
        self._response.close()
        self._stream.close()
        self._socket.close()


class _Received:
    """What came and was not yet taken."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, chunk: memoryview) -> None:
        self._data += chunk

    def take(self) -> bytearray:
        taken, self._data = self._data, bytearray()
        return taken
