"""What a sandbox's supervisor and its owner say to each other: frames, requests and answers, as bytes.

`supervisor/supervisor.h` holds the other side.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

PROTOCOL = 2
WINDOW = 1 << 18
"""Bytes of one stream that may be under way before the other side has said that it took some."""
_HEADER = struct.Struct("<III")
_EXEC = struct.Struct("<IQQQIII")
_EXIT = struct.Struct("<IiIIQQ")
_ENTRY = struct.Struct("<cIqIQ")
_LONGEST = 8 << 20
Data = bytes | bytearray | memoryview


class Ask(IntEnum):
    """Requests."""

    PING, EXEC, INPUT, INPUT_END, KILL, RESIZE, GET, PUT, PUT_DATA, PUT_END, CREDIT, LISTEN = range(1, 13)


class Say(IntEnum):
    """Answers."""

    HELLO, OUT, ERR, CONTROL, EXIT, ENTRIES, DONE, ACCEPT, END, WRITTEN = range(64, 74)


class Flag(IntFlag):
    """How a command's streams behave."""

    INPUT = 1
    PTY = 2
    STREAMED = 4
    CONTROL = 8


class End(IntEnum):
    """How a command ended."""

    ENDED, SIGNALLED, TIMED_OUT, NOT_STARTED = range(4)


class Stage(IntEnum):
    """Where starting a command failed."""

    FORK, ENTER, START = range(1, 4)


class Code(IntEnum):
    """Why files cannot be had, beside errno."""

    NOT_PLAIN, TOO_MANY, TOO_BIG, TOO_DEEP = range(1001, 1005)


def frame(kind: Ask, channel: int, payload: Data = b"") -> bytes:
    """Return one request."""
    return b"".join((_HEADER.pack(len(payload), channel, kind), payload))


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: Data) -> Iterator[tuple[int, int, bytes]]:
        """Yield each whole frame as (kind, channel, payload).

        Raises:
            ValueError: this is not the protocol.
        """
        if self._data:
            self._data += data
            data, self._data = self._data, bytearray()
        start, whole = 0, memoryview(data)
        try:
            while len(whole) - start >= _HEADER.size:
                length, channel, kind = _HEADER.unpack_from(whole, start)
                if length > _LONGEST or not Say.HELLO <= kind <= Say.WRITTEN:
                    raise ValueError("what arrived is not the supervisor's")
                if len(whole) - start < _HEADER.size + length:
                    break
                yield kind, channel, bytes(whole[start + _HEADER.size : start + _HEADER.size + length])
                start += _HEADER.size + length
        finally:
            self._data += whole[start:]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended."""

    end: End
    value: int
    """Exit code, signal, or for one that did not start the stage and the reason."""
    oom: bool
    pids: bool
    dropped_out: int
    dropped_err: int

    @classmethod
    def parse(cls, payload: bytes) -> Exit:
        """Read an EXIT's payload."""
        end, value, oom, pids, dropped_out, dropped_err = _EXIT.unpack(payload)
        return cls(End(end), value, bool(oom), bool(pids), dropped_out, dropped_err)

    @property
    def failure(self) -> tuple[Stage, int]:
        """Where starting it failed, and errno."""
        return Stage(self.value >> 16), self.value & 0xFFFF


def execution(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    flags: Flag,
    timeout: float | None,
    limit: int = 0,
    shape: tuple[int, int] = (0, 0),
) -> bytes:
    """Return an EXEC's payload; the head of each stream is the larger half of `limit`."""
    words = [cwd, *argv, *(f"{name}={value}" for name, value in env.items())]
    micros = 0 if timeout is None else max(1, int(timeout * 1e6))
    fixed = _EXEC.pack(flags, micros, head_of(limit), limit // 2, shape[0] << 16 | shape[1], len(argv), len(env))
    return fixed + b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words)


def head_of(limit: int) -> int:
    """Return how many of the bytes that are kept of a stream are its first."""
    return limit - limit // 2


def number(value: int) -> bytes:
    """Return a payload of one number."""
    return struct.pack("<I", value)


def number_of(payload: bytes) -> int:
    """Read a payload of one number."""
    return int(struct.unpack("<I", payload)[0])


class Want(IntFlag):
    """What a GET is about: files of a folder with their contents, or more, or less."""

    METADATA = 1
    """Folders and links too, with modes and times."""
    ONE_FILE = 2


def wanted_files(path: str, want: Want, *, max_entries: int, max_bytes: int) -> bytes:
    """Return a GET's payload."""
    return struct.pack("<IIQ", want, min(max_entries, 0xFFFFFFFF), max_bytes) + path.encode() + b"\0"


def written_files(folder: str, *, is_fresh: bool = False) -> bytes:
    """Return a PUT's payload; where nothing has run yet, files need not appear whole."""
    return struct.pack("<I", is_fresh) + folder.encode() + b"\0"


def outcome(payload: bytes) -> tuple[int, str]:
    """Read a DONE's payload: 0, errno or a `Code`, and what it is about."""
    return number_of(payload[:4]), payload[4:].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or link; the path is as the supervisor said it, or absolute for one to be written."""

    kind: str
    """`f` file, `d` folder, `l` link whose data is the target."""
    path: bytes
    mode: int | None = None
    """None keeps the old file's right to run."""
    time_ns: int = 0
    data: bytes = b""

    def packed(self) -> bytes:
        """Return it as the supervisor wants it."""
        mode = 0xFFFFFFFF if self.mode is None else self.mode
        head = _ENTRY.pack(self.kind.encode(), mode, self.time_ns, len(self.path), len(self.data))
        return head + self.path + self.data


class Entries:
    """Puts entries together from the pieces in which they arrive."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.pieces.append(piece)

    def all(self) -> Iterator[Entry]:
        """Yield every entry; to be called once all is there."""
        start, whole = 0, memoryview(b"".join(self.pieces))
        while start < len(whole):
            kind, mode, time_ns, width, size = _ENTRY.unpack_from(whole, start)
            begin = start + _ENTRY.size + width
            path = bytes(whole[start + _ENTRY.size : begin])
            yield Entry(kind.decode(), path, mode, time_ns, bytes(whole[begin : begin + size]))
            start = begin + size
