"""A shell that remembers its folder, variables and functions from one command to the next."""

from __future__ import annotations

import secrets
import shlex
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from agentgym.errors import AgentFault, SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._link import Link
from agentgym_sandboxes._messages import Ask, End, Exit, Flag, Say, execution, number
from agentgym_sandboxes._output import BoundedBytes

_SILENCE_S = 60.0
# `command` keeps a syntax error from ending the shell. The word that proves that the command is over is new each time,
# goes over a descriptor that the command does not have, and is in no variable.
_COMMAND = """\
{{ command eval {script}; }} </dev/null 3>&-
{{ printf '{word} %s\\n' "$?"; pwd; export -p; printf '{word}\\n'; }} >&3
"""


class ShellSession:
    """See `agentgym.sandbox.Shell`.

    `exit`, `exec` and a timeout end the shell behind it and not the session: the next command gets a new shell in the
    folder, and with the exported variables, that were last seen.
    """

    def __init__(self, link: Link, workdir: str, lifetime: Lifetime, failure: Callable[[str], Exception]) -> None:
        self._link = link
        self._lifetime = lifetime
        self._failure = failure
        self._busy = threading.Lock()
        self._folder = workdir
        self._exports = ""
        self._shell: _Shell | None = None
        self._closed = False

    def run(self, script: str, *, timeout: float = 30.0, output_limit: int = 65536) -> ExecResult:
        """Run a script in the shell as it is now."""
        if "\0" in script:
            raise ValueError("the script holds a NUL character, which no shell can read")
        with self._busy:
            if self._closed:
                raise SandboxError("the shell session is closed")
            began = time.monotonic()
            left = min(timeout, self._lifetime.left())
            shell = self._shell or self._started()
            word = secrets.token_hex(16)
            shell.expect(word, output_limit)
            shell.send(_COMMAND.format(script=shlex.quote(script), word=word).encode())
            in_time = shell.over.wait(left)
            if not in_time:
                shell.kill()
                if not shell.over.wait(_SILENCE_S):
                    raise self._failure(f"its supervisor has not answered for {_SILENCE_S:.0f} s")
            if shell.is_lost:
                raise self._failure("its connection ended")
            if shell.ended is not None:
                shell.forget()
                self._shell = None
                if shell.ended.end is End.NOT_STARTED:
                    raise AgentFault("the processes in the sandbox leave no room for a shell")
            return self._result(shell, timed_out=not in_time, seconds=time.monotonic() - began)

    def close(self) -> None:
        """Kill the shell and what it started."""
        with self._busy:
            self._closed = True
            if self._shell is not None:
                self._shell.kill()
                self._shell.over.wait(_SILENCE_S)
                self._shell.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> _Shell:
        self._shell = _Shell(self._link, self._folder)
        if self._exports:
            self._shell.send(f"{self._exports}\n".encode())
        return self._shell

    def _result(self, shell: _Shell, *, timed_out: bool, seconds: float) -> ExecResult:
        code: int | None = None
        signal = None
        if shell.ended is None:
            status, self._folder, self._exports = shell.state()
            code = status
        elif not timed_out:
            signal = shell.ended.value if shell.ended.end is End.SIGNALLED else None
            code = 128 + signal if signal is not None else shell.ended.value
        return ExecResult(
            exit_code=code,
            stdout=shell.out.value(),
            stderr=shell.err.value(),
            timed_out=timed_out and code is None,
            truncated=bool(shell.out.dropped or shell.err.dropped),
            oom=shell.ended is not None and shell.ended.oom and code != 0,
            pids=shell.ended is not None and shell.ended.pids,
            duration_s=seconds,
            signal=signal,
            dropped=shell.out.dropped + shell.err.dropped,
        )


class _Shell:
    """One shell process; hears on the reading thread, is used by one command at a time."""

    def __init__(self, link: Link, folder: str) -> None:
        self._link = link
        self.over = threading.Event()
        self.ended: Exit | None = None
        self.is_lost = False
        self.expect("", 0)
        self._channel = link.open(self)
        flags = Flag.INPUT | Flag.STREAMED | Flag.CONTROL
        link.send(Ask.EXEC, self._channel, execution(["/bin/sh"], cwd=folder, env={}, flags=flags, timeout=None))

    def expect(self, word: str, output_limit: int) -> None:
        """Collect the output of the next command, until `word` is said twice."""
        if self.ended is None:
            self.over.clear()
        self._word = word.encode()
        self._said = bytearray()
        self.out, self.err = BoundedBytes(output_limit), BoundedBytes(output_limit)

    def send(self, data: bytes) -> None:
        """Let the shell read."""
        self._link.send(Ask.INPUT, self._channel, data)

    def kill(self) -> None:
        """Kill the shell and its processes."""
        self._link.send(Ask.KILL, self._channel)

    def forget(self) -> None:
        """Hear no more of it."""
        self._link.close_channel(self._channel)

    def hear(self, kind: int, payload: bytes) -> None:
        """Take what the supervisor says."""
        if kind in (Say.OUT, Say.ERR):
            (self.out if kind == Say.OUT else self.err).feed(payload)
            self._link.send(Ask.CREDIT, self._channel, number(len(payload)))
        elif kind == Say.CONTROL:
            self._said += payload
            if self._word and self._said.endswith(self._word + b"\n") and self._said.count(self._word) >= 2:
                self.over.set()
        elif kind == Say.EXIT:
            self.ended = Exit.parse(payload)
            self.over.set()

    def lost(self) -> None:
        """Learn that nothing more will come."""
        self.is_lost = True
        self.over.set()

    def state(self) -> tuple[int, str, str]:
        """Return the last exit code, the folder, and the exported variables as a script."""
        whole = self._said[self._said.index(self._word) :].decode(errors="surrogateescape")
        first, folder, exports = whole.removesuffix(f"{self._word.decode()}\n").split("\n", 2)
        return int(first.split()[1]), folder, exports.encode(errors="replace").decode()
