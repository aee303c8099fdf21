"""Keep the head and the tail of a stream of any length, and count what lies between."""

from collections import deque


class BoundedBytes:
    r"""Collects a stream in at most `limit` bytes, however much is fed.

    >>> stream = BoundedBytes(8)
    >>> for chunk in (b"0123", b"45", b"6789"):
    ...     stream.feed(chunk)
    >>> stream.value()
    b'0123\n[... 2 bytes dropped ...]\n6789'
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"output_limit must be at least 0, not {limit}")
        self._head_room = limit - limit // 2
        self._tail_room = limit // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self.total = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the stream."""
        self.total += len(chunk)
        room = self._head_room - len(self._head)
        if room:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if chunk and self._tail_room:
            self._tail.append(bytes(chunk))
            self._tail_size += len(chunk)
            while self._tail_size - len(self._tail[0]) >= self._tail_room:
                self._tail_size -= len(self._tail.popleft())

    @property
    def dropped(self) -> int:
        """How many bytes were not kept."""
        return max(0, self.total - self._head_room - self._tail_room)

    def value(self) -> bytes:
        """Return what was kept, with a line in the middle that counts the rest."""
        tail = b"".join(self._tail)
        tail = tail[max(0, len(tail) - self._tail_room) :]
        if not self.dropped:
            return bytes(self._head) + tail
        return bytes(self._head) + b"\n[... %d bytes dropped ...]\n" % self.dropped + tail
