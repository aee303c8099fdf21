"""One command: what it gets, its output as it arrives, and how it ended."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping, Sequence

from agentgym.sandbox import ExecResult
from agentgym_sandboxes._link import Link, Waiting
from agentgym_sandboxes._messages import WINDOW, Ask, End, Exit, Say, Stage, head_of, number_of


class RunOptions:
    """What a command gets beside its words."""

    def __init__(self, stdin: bytes, cwd: str, env: Mapping[str, str], output_limit: int) -> None:
        self.stdin, self.cwd, self.env, self.output_limit = stdin, cwd, env, output_limit


class Running(Waiting):
    """A command whose output arrives."""

    def __init__(self, link: Link, stdin: bytes) -> None:
        super().__init__()
        self.channel = 0
        self.out = bytearray()
        self.err = bytearray()
        self._link = link
        self._left = memoryview(stdin)
        self._room = WINDOW
        self._lock = threading.Lock()

    def send_more(self) -> None:
        """Send as much of the input as the window allows, and then its end."""
        with self._lock:
            if not self._left:
                return
            piece, self._left = self._left[: self._room], self._left[self._room :]
            self._room -= len(piece)
            is_last = not self._left
            if piece:
                self._link.send(Ask.INPUT, self.channel, bytes(piece))
            if is_last:
                self._link.send(Ask.INPUT_END, self.channel)

    def hear(self, kind: int, payload: bytes) -> None:
        if kind == Say.OUT:
            self.out += payload
        elif kind == Say.ERR:
            self.err += payload
        elif kind == Say.WRITTEN:
            self._room += number_of(payload)
            self.send_more()
        elif kind == Say.EXIT:
            super().hear(kind, payload)


def finished(
    ended: Exit, running: Running, options: RunOptions, argv: Sequence[str], seconds: float
) -> ExecResult | None:
    """Return how a command ended; None if there was no room for its processes."""
    stderr = _whole(running.err, ended.dropped_err, options.output_limit)
    code: int | None = ended.value
    if ended.end is End.NOT_STARTED:
        stage, reason = ended.failure
        if stage is Stage.FORK or reason in (errno.EAGAIN, errno.ENOMEM):
            return None
        if reason == errno.E2BIG:
            raise ValueError("the command and its environment are too long together: pass data by stdin or in a file")
        code = 127 if stage is Stage.START and reason in (errno.ENOENT, errno.ENOTDIR) else 126
        if stage is Stage.ENTER:
            stderr += f"cannot enter the folder {options.cwd}\n".encode()
        else:
            stderr += f"{argv[0]}: {'not found' if code == 127 else 'cannot be run'}\n".encode()
    elif ended.end is End.SIGNALLED:
        code = 128 + ended.value
    elif ended.end is End.TIMED_OUT:
        code = None
    return ExecResult(
        exit_code=code,
        stdout=_whole(running.out, ended.dropped_out, options.output_limit),
        stderr=stderr,
        timed_out=ended.end is End.TIMED_OUT,
        truncated=bool(ended.dropped_out or ended.dropped_err),
        oom=ended.oom and code != 0,
        duration_s=seconds,
        signal=ended.value if ended.end is End.SIGNALLED else None,
        dropped=ended.dropped_out + ended.dropped_err,
        pids=ended.pids,
    )


def _whole(kept: bytearray, dropped: int, limit: int) -> bytes:
    if not dropped:
        return bytes(kept)
    return bytes(kept[: head_of(limit)]) + b"\n[... %d bytes dropped ...]\n" % dropped + kept[head_of(limit) :]
