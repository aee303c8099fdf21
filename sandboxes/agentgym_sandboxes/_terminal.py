"""A program on a terminal of its own inside a sandbox."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from agentgym.errors import AgentFault
from agentgym.sandbox import TerminalOutput
from agentgym_sandboxes._link import Link
from agentgym_sandboxes._messages import WINDOW, Ask, End, Exit, Flag, Say, Stage, execution, number, number_of

_CLOSE_S = 10.0
_MOST_UNREAD = 4 << 20
"""How much may be printed while somebody waits for a word in it."""


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
        _require_shape(*shape)
        self._link = link
        self._failure = failure
        self._changed = threading.Condition()
        self._unread = bytearray()
        self._heard_at = 0.0
        self._owed = 0
        self._ended: Exit | None = None
        self._is_lost = False
        self._is_closed = False
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
                self._owed += len(payload)
                self._heard_at = time.monotonic()
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
                if self._room == 0:
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                        raise TimeoutError(f"the program on the terminal has taken no input for {timeout:.0f} s")
                    continue
                piece, left = left[: self._room], left[self._room :]
                self._room -= len(piece)
                self._link.send(Ask.INPUT, self._channel, bytes(piece))

    def read(self, *, timeout: float = 5.0, quiet: float = 0.2, until: bytes | None = None) -> TerminalOutput:
        """Return what was printed: until it holds `until`, or was quiet for a while, or ended, or time is over.

        With `until` and more than 4 MB without it, what is there is returned.
        """
        began = time.monotonic()
        with self._changed:
            searched = 0
            while (now := time.monotonic()) < began + timeout and self._ended is None:
                self._require_alive()
                if until is None:
                    silent_at = max(began, self._heard_at) + quiet if self._unread else began + timeout
                    if now >= silent_at:
                        break
                elif self._unread.find(until, max(0, searched - len(until))) >= 0 or len(self._unread) >= _MOST_UNREAD:
                    break
                else:
                    searched, silent_at = len(self._unread), began + timeout
                    self._pay()
                self._changed.wait(min(silent_at, began + timeout) - now)
            data = bytes(self._unread)
            self._unread.clear()
            self._pay()
            return TerminalOutput(data, self.exit_code)

    @property
    def exit_code(self) -> int | None:
        """The program's exit code, 128 + N for signal N, or None while it runs.

        Raises:
            AgentFault: it could not start, because the sandbox's processes leave no room for it.
        """
        if self._ended is None:
            return None
        if self._ended.end is End.ENDED:
            return self._ended.value
        if self._ended.end is not End.NOT_STARTED:
            return 128 + (self._ended.value if self._ended.end is End.SIGNALLED else 9)
        stage, reason = self._ended.failure
        if stage is Stage.FORK:
            raise AgentFault("the processes in the sandbox leave no room for a program on a terminal")
        return 127 if stage is Stage.START and reason in (errno.ENOENT, errno.ENOTDIR) else 126

    def resize(self, rows: int, columns: int) -> None:
        """Change the size and tell the program."""
        _require_shape(rows, columns)
        self._link.send(Ask.RESIZE, self._channel, number(rows << 16 | columns))

    def close(self) -> None:
        """Kill the program and all that it started."""
        with self._changed:
            if not self._is_lost and not self._is_closed:
                self._is_closed = True
                self._link.send(Ask.KILL, self._channel)  # and if it has ended, what it left behind
                self._changed.wait_for(lambda: self._ended is not None or self._is_lost, timeout=_CLOSE_S)
        self._link.close_channel(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pay(self) -> None:
        if self._owed:
            self._link.send(Ask.CREDIT, self._channel, number(self._owed))
            self._owed = 0

    def _require_alive(self) -> None:
        if self._is_lost:
            raise self._failure("its connection ended")


def _require_shape(rows: int, columns: int) -> None:
    if not (0 < rows < 1 << 16 and 0 < columns < 1 << 16):
        raise ValueError(f"a terminal has 1 to 65535 rows and columns, not {rows} and {columns}")
