"""A shell that remembers its folder, variables and functions from one command to the next."""

from __future__ import annotations

import secrets
import shlex
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from agentgym.errors import AgentFault, SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._link import Link
from agentgym_sandboxes._messages import WINDOW, Ask, End, Exit, Flag, Say, Stage, execution, number
from agentgym_sandboxes._output import BoundedBytes

_SILENCE_S = 60.0
_LONGEST_SCRIPT = 1 << 20
_MOST_REPORTED = 4 << 20
_MOST_UNHEARD = 64 << 20
"""How much background jobs may print while no command runs, until they must wait for the next."""
# One line, so that the shell has read all of it before any of it runs. `command` keeps a syntax error from ending the
# shell. The word that proves that the command is over is new each time, goes over a descriptor that the command lacks,
# and is in no variable. The first line ends what a syntax error before has left in a parser.
_COMMAND = (
    "\n{{ command eval {script}; }} </dev/null 3>&-; "
    "{{ \\command printf '{word}%s\\n' \"$?\"; \\command pwd || :; \\command printf {word}; export -p; "
    "\\command printf '{word}\\n'; }} >&3 2>/dev/null\n"
)
_RESTORE = "command eval {exports} >/dev/null 2>&1 </dev/null\n"


class ShellSession:
    """See `agentgym.sandbox.Shell`.

    `exit`, `exec` and a timeout end the shell behind it and not the session: the next command gets a new shell in the
    folder, and with the exported variables, that were last seen. Background jobs live on; what they print while no
    command runs is dropped.
    """

    def __init__(self, link: Link, workdir: str, lifetime: Lifetime, failure: Callable[[str], Exception]) -> None:
        self._link = link
        self._workdir = workdir
        self._lifetime = lifetime
        self._failure = failure
        self._busy = threading.Lock()
        self._folder = workdir
        self._exports = ""
        self._shell: _Shell | None = None
        self._earlier: list[int] = []
        self._closed = False

    def run(self, script: str, *, timeout: float = 30.0, output_limit: int = 65536) -> ExecResult:
        """Run a script in the shell as it is now."""
        _refuse_unreadable(script)
        with self._busy:
            if self._closed:
                raise SandboxError("the shell session is closed")
            deadline = time.monotonic() + min(timeout, self._lifetime.left())
            result = self._attempt(script, deadline, output_limit)
            while result is None:  # the folder where the last shell was is no more
                self._folder = self._workdir if self._folder != self._workdir else "/"
                result = self._attempt(script, deadline, output_limit)
            return result

    def close(self) -> None:
        """Kill the shell and what it started."""
        with self._busy:
            if not self._closed:
                self._closed = True
                if self._shell is not None:
                    self._shell.kill()
                    self._shell.dead.wait(_SILENCE_S)
                    self._bury(self._shell)
                for channel in self._earlier:
                    self._link.send(Ask.KILL, channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, script: str, deadline: float, output_limit: int) -> ExecResult | None:
        """Run a script; None if no shell can start in the folder."""
        began = time.monotonic()
        shell = self._living()
        shell.begin(word := secrets.token_hex(16), output_limit)
        shell.send(_COMMAND.format(script=shlex.quote(script), word=word))
        in_time = shell.over.wait(max(0.0, deadline - time.monotonic()))
        report = shell.report()
        if report is None and not shell.dead.is_set():  # its time is over, or what it says makes no sense
            shell.kill()
            if not shell.dead.wait(_SILENCE_S):
                raise self._failure(f"its supervisor has not answered for {_SILENCE_S:.0f} s")
        if shell.is_lost:
            raise self._failure("its connection ended")
        out, err = shell.finish()
        ended = shell.ended
        if ended is not None:
            self._bury(shell)
        if report is not None:
            self._folder, self._exports = report.folder or self._folder, report.exports
        elif ended is not None and ended.end is End.NOT_STARTED:
            stage, _ = ended.failure
            if stage is Stage.FORK:
                raise AgentFault("the processes in the sandbox leave no room for a shell")
            if stage is Stage.ENTER and self._folder != "/":
                return None
            return ExecResult(127, b"", b"/bin/sh: cannot be run\n", duration_s=time.monotonic() - began)
        is_signalled = report is None and in_time and ended is not None and ended.end is not End.ENDED
        signal = (ended.value if ended.end is End.SIGNALLED else 9) if is_signalled and ended else None
        code = report.status if report else None if not in_time or ended is None else ended.value
        return ExecResult(
            exit_code=128 + signal if signal is not None else code,
            stdout=out.value(),
            stderr=err.value(),
            timed_out=report is None and not in_time,
            truncated=bool(out.dropped or err.dropped),
            oom=report is None and ended is not None and ended.oom,
            pids=ended is not None and ended.pids,
            duration_s=time.monotonic() - began,
            signal=signal,
            dropped=out.dropped + err.dropped,
        )

    def _living(self) -> _Shell:
        """Return the shell, or a new one if that has ended since."""
        if self._shell is not None and self._shell.dead.is_set() and not self._shell.is_lost:
            self._bury(self._shell)
        if self._shell is None:
            self._shell = _Shell(self._link, self._folder)
            if self._exports:
                self._shell.send(_RESTORE.format(exports=shlex.quote(self._exports)))
        return self._shell

    def _bury(self, shell: _Shell) -> None:
        self._link.close_channel(shell.channel)
        self._earlier.append(shell.channel)  # its background jobs may live on
        self._shell = None


class _Report(NamedTuple):
    """What a shell says after each script."""

    status: int
    folder: str
    exports: str


class _Shell:
    """One shell process; hears on the reading thread, is used by one command at a time."""

    def __init__(self, link: Link, folder: str) -> None:
        self._link = link
        self._lock = threading.Lock()
        self.over = threading.Event()
        """The script has ended, or the shell has."""
        self.dead = threading.Event()
        self.ended: Exit | None = None
        self.is_lost = False
        self._word = b""
        self._said = bytearray()
        self._sinks: tuple[BoundedBytes, BoundedBytes] | None = None
        self._unheard = 0
        self._owed = 0
        self.channel = link.open(self)
        flags = Flag.INPUT | Flag.STREAMED | Flag.CONTROL
        link.send(Ask.EXEC, self.channel, execution(["/bin/sh"], cwd=folder, env={}, flags=flags, timeout=None))

    def begin(self, word: str, output_limit: int) -> None:
        """Collect the output of the next script, until its report is there."""
        with self._lock:
            self._word = word.encode()
            self._said.clear()
            self._sinks = BoundedBytes(output_limit), BoundedBytes(output_limit)
            self._unheard = 0
            self._pay()
            if not self.dead.is_set():
                self.over.clear()

    def finish(self) -> tuple[BoundedBytes, BoundedBytes]:
        """Return the output, and collect no more."""
        with self._lock:
            sinks, self._sinks = self._sinks, None
        return sinks or (BoundedBytes(0), BoundedBytes(0))

    def send(self, text: str) -> None:
        """Let the shell read."""
        data = text.encode(errors="surrogateescape")
        for start in range(0, len(data), WINDOW):
            self._link.send(Ask.INPUT, self.channel, data[start : start + WINDOW])

    def kill(self) -> None:
        """Kill the shell and its processes."""
        self._link.send(Ask.KILL, self.channel)

    def hear(self, kind: int, payload: bytes) -> None:
        """Take what the supervisor says."""
        with self._lock:
            if kind in (Say.OUT, Say.ERR):
                self._owed += len(payload)
                if self._sinks is None:
                    self._unheard += len(payload)
                else:
                    self._sinks[kind == Say.ERR].feed(payload)
                if self._unheard < _MOST_UNHEARD:
                    self._pay()
            elif kind == Say.CONTROL:
                self._said += payload
                if self._is_whole() or len(self._said) > _MOST_REPORTED:
                    self.over.set()
            elif kind == Say.EXIT:
                self.ended = Exit.parse(payload)
                self.dead.set()
                self.over.set()

    def lost(self) -> None:
        """Learn that nothing more will come."""
        self.is_lost = True
        self.dead.set()
        self.over.set()

    def report(self) -> _Report | None:
        """Return what the shell said after the script; None if it said nothing, or nothing that makes sense."""
        with self._lock:
            if not self._is_whole():
                return None
            said = bytes(self._said)
        _, first, exports, _ = said[said.index(self._word) :].split(self._word, 3)
        status, _, folder = first.partition(b"\n")
        if not status.isdigit() or len(status) > 3:
            return None
        text = exports.decode(errors="surrogateescape")
        return _Report(int(status), folder.removesuffix(b"\n").decode(errors="surrogateescape"), text)

    def _is_whole(self) -> bool:
        return bool(self._word) and self._said.endswith(self._word + b"\n") and self._said.count(self._word) >= 3

    def _pay(self) -> None:
        if self._owed:
            self._link.send(Ask.CREDIT, self.channel, number(self._owed))
            self._owed = 0


def _refuse_unreadable(script: str) -> None:
    if "\0" in script:
        raise ValueError("the script holds a NUL character, which no shell can read")
    try:
        size = len(script.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the script is not valid Unicode: {script[:80]!r}") from None
    if size > _LONGEST_SCRIPT:
        raise ValueError(f"the script has {size} bytes of at most {_LONGEST_SCRIPT}: write it to a file and run that")
