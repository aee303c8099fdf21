"""A program on a terminal of its own inside a sandbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from agentgym.sandbox import TerminalOutput
from agentgym_sandboxes._link import Link
from agentgym_sandboxes._messages import WINDOW, Ask, End, Exit, Flag, Say, execution, number, number_of

_POLL_S = 1.0


class TerminalSession:
    """See `agentgym.sandbox.Terminal`. Output that nobody reads stops the program instead of filling memory."""

    def __init__(
        self,
        link: Link,
        argv: Sequence[str],
        cwd: str,
        shape: tuple[int, int],
        failure: Callable[[str], Exception],
    ) -> None:
        self._link = link
        self._failure = failure
        self._changed = threading.Condition()
        self._unread = bytearray()
        self._ended: Exit | None = None
        self._is_lost = False
        self._room = WINDOW
        self._channel = link.open(self)
        flags = Flag.INPUT | Flag.PTY | Flag.STREAMED
        env = {"TERM": "xterm-256color"}
        link.send(Ask.EXEC, self._channel, execution(argv, cwd=cwd, env=env, flags=flags, timeout=None, shape=shape))

    def hear(self, kind: int, payload: bytes) -> None:
        """Take what the supervisor says (called on the reading thread)."""
        with self._changed:
            if kind == Say.OUT:
                self._unread += payload
            elif kind == Say.WRITTEN:
                self._room += number_of(payload)
            elif kind == Say.EXIT:
                self._ended = Exit.parse(payload)
            self._changed.notify_all()

    def lost(self) -> None:
        """Learn that nothing more will come (called on the reading thread)."""
        with self._changed:
            self._is_lost = True
            self._changed.notify_all()

    def send(self, data: bytes | str, *, timeout: float = 30.0) -> None:
        """Type; waits while the program takes nothing.

        Raises:
            TimeoutError: it took nothing for `timeout` seconds.
        """
        left = memoryview(data.encode() if isinstance(data, str) else data)
        deadline = time.monotonic() + timeout
        with self._changed:
            while left and self._ended is None:
                self._require_alive()
                if self._room == 0 and not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"the program on the terminal has taken no input for {timeout:.0f} s")
                piece, left = left[: self._room], left[self._room :]
                self._room -= len(piece)
                self._link.send(Ask.INPUT, self._channel, bytes(piece))

    def read(self, *, timeout: float = 5.0, quiet: float = 0.2, until: bytes | None = None) -> TerminalOutput:
        """Return what was printed: until it holds `until`, or was quiet for a while, or ended, or time is over."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._ended is None and time.monotonic() < deadline and not (until and until in self._unread):
                self._require_alive()
                before = len(self._unread)
                patience = quiet if before and not until else timeout
                self._changed.wait(max(0.0, min(patience, deadline - time.monotonic())))
                if before and before == len(self._unread) and not until:
                    break
            data = bytes(self._unread)
            self._unread.clear()
            if data:
                self._link.send(Ask.CREDIT, self._channel, number(len(data)))
            return TerminalOutput(data, self.exit_code)

    @property
    def exit_code(self) -> int | None:
        """The program's exit code, 128 + N for signal N, or None while it runs."""
        if self._ended is None:
            return None
        return self._ended.value + (128 if self._ended.end is not End.ENDED else 0)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size and tell the program."""
        self._link.send(Ask.RESIZE, self._channel, number(rows << 16 | columns))

    def close(self) -> None:
        """Kill the program and all that it started."""
        with self._changed:
            if self._ended is None and not self._is_lost:
                self._link.send(Ask.KILL, self._channel)
                self._changed.wait_for(lambda: self._ended is not None or self._is_lost, timeout=10 * _POLL_S)
        self._link.close_channel(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_alive(self) -> None:
        if self._is_lost:
            raise self._failure("its connection ended")
