"""A sandbox whose first process is our supervisor: commands, files, shells and terminals over one connection."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from agentgym.errors import AgentFault
from agentgym.sandbox import Contact, ExecResult
from agentgym_sandboxes._allowlist import Session
from agentgym_sandboxes._command import AGENT, absolute, variables, words
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._link import Link, Waiting
from agentgym_sandboxes._messages import (
    WINDOW,
    Ask,
    Code,
    End,
    Entries,
    Entry,
    Exit,
    Flag,
    Say,
    Stage,
    Want,
    execution,
    head_of,
    number_of,
    outcome,
    wanted_files,
)
from agentgym_sandboxes._shell import ShellSession
from agentgym_sandboxes._terminal import TerminalSession

_SILENCE_S = 60.0
"""How long the machinery around a sandbox may stand still before a command counts as lost."""
_FILES_S = 120.0
_HEALTHY_S = 5.0
_PIECE = 1 << 18
ROOMS = (0, 32)
"""By how much the process limit may be exceeded, attempt by attempt, until a command starts."""


class Place(Protocol):
    """What only the backend knows of one sandbox."""

    def failure(self, error: str) -> Exception:
        """Say by the host's evidence alone why the sandbox does not answer, and whose fault that is."""
        ...

    def room_for(self, extra: int) -> AbstractContextManager[None]:
        """Allow some more processes for a while."""
        ...

    def run_as(self, user: str, argv: list[str], timeout: float, options: RunOptions) -> ExecResult:
        """Run a command as somebody else, or refuse."""
        ...

    def remove(self) -> None:
        """End the sandbox and remove every trace."""
        ...


class Owner(Protocol):
    """The backend that started a sandbox."""

    def freeze(self, sandbox: SupervisedSandbox) -> str:
        """Keep its files and return the name for them."""
        ...

    def dispose(self, sandbox: SupervisedSandbox, remove: Callable[[], None]) -> None:
        """Forget one that is closed, and remove what is left of it, now or soon."""
        ...


class RunOptions:
    """What a command gets beside its words."""

    def __init__(self, stdin: bytes, cwd: str, env: Mapping[str, str], output_limit: int) -> None:
        self.stdin, self.cwd, self.env, self.output_limit = stdin, cwd, env, output_limit


class SupervisedSandbox:
    """See `agentgym.sandbox.Sandbox`.

    A timeout kills the processes of that command, wherever they went; what other commands left in the background lives
    on, unless a bomb leaves no way but to kill everything.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        place: Place,
        *,
        workdir: str,
        folders: tuple[str, ...],
        lifetime: Lifetime,
        owner: Owner,
    ) -> None:
        """Take a connection whose supervisor has said hello; `folders` are those that hold the agent's files."""
        self.id = name
        self.workdir = workdir
        self.link = link
        self._place = place
        self._folders = folders
        self._lifetime = lifetime
        self._owner = owner
        self._writing = threading.Lock()
        self.proxy: Session | None = None

    def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes = b"",
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        output_limit: int = 65536,
    ) -> ExecResult:
        """Run a command; see `agentgym.sandbox.Sandbox`."""
        left = min(timeout, self._lifetime.left())
        options = RunOptions(stdin, absolute(cwd or self.workdir, self.workdir), variables(env), output_limit)
        if output_limit < 0:
            raise ValueError(f"output_limit must be at least 0, not {output_limit}")
        argv = words(command)
        if user not in (None, AGENT):
            return self._place.run_as(str(user), argv, left, options)
        deadline = time.monotonic() + left
        for extra in ROOMS:
            with self._place.room_for(extra):
                result = self._attempt(argv, max(0.001, deadline - time.monotonic()), options)
            if result is not None:
                return result
        raise AgentFault(f"the processes in sandbox {self.id} leave no room for another: no command can start")

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """Return a regular file's bytes."""
        whole = absolute(path, self.workdir)
        if whole in self._folders:
            raise ValueError(f"the path {path!r} is the sandbox's folder itself, not a plain file")
        code, entries = self._get(whole, Want.ONE_FILE, max_entries=1, max_bytes=limit)
        if code == Code.TOO_BIG:
            raise ValueError(f"{path!r} has more than the {limit} bytes that may be read")
        _check(code, path)
        return next(entries.all()).data

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file."""
        self.upload({path: data})

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Write many files in one call."""
        whole = {absolute(path, self.workdir): data for path, data in files.items()}
        for path in whole:
            self._require_inside(path)
        self.put("", (Entry("f", path.encode(), data=data).packed() for path, data in whole.items()))

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        """Return the regular files below a folder."""
        code, entries = self._get(absolute(path, self.workdir), Want(0), max_entries=max_files, max_bytes=max_bytes)
        if code == Code.TOO_MANY:
            raise ValueError(f"{path!r} has more than {max_files} entries")
        if code == Code.TOO_BIG:
            raise ValueError(f"{path!r} has more than {max_bytes} bytes")
        if code == Code.TOO_DEEP:
            raise ValueError(f"{path!r} is too deep")
        _check(code, path)
        found = {_name(one.path): one.data for one in entries.all() if one.kind == "f"}
        if "" in found:
            _check(Code.NOT_PLAIN, path)
        return found

    def shell(self) -> ShellSession:
        """Start a shell that remembers; see `agentgym.sandbox.Shell`."""
        self._lifetime.left()
        return ShellSession(self.link, self.workdir, self._lifetime, self._place.failure)

    def terminal(
        self, command: str | Sequence[str] = ("/bin/sh",), *, rows: int = 24, columns: int = 80
    ) -> TerminalSession:
        """Start a program on a terminal of its own; see `agentgym.sandbox.Terminal`."""
        self._lifetime.left()
        return TerminalSession(self.link, words(command), self.workdir, (rows, columns), self._place.failure)

    def contacts(self) -> tuple[Contact, ...]:
        """Return what programs have asked of the allowlist's proxy."""
        return self.proxy.contacts if self.proxy else ()

    def snapshot(self) -> str:
        """Freeze the files' present state; see `agentgym.sandbox.Sandbox`."""
        self._lifetime.left()
        return self._owner.freeze(self)

    def frozen(self, folders: Sequence[str]) -> dict[str, Entries]:
        """Return everything that some folders hold, as it can be put into another sandbox."""
        found = {}
        for folder in folders:
            code, found[folder] = self._get(folder, Want.METADATA, max_entries=1 << 31, max_bytes=1 << 40)
            _check(code, folder)
        return found

    def thaw(self, found: Mapping[str, Entries]) -> None:
        """Take over what `frozen` of another sandbox returned."""
        for folder, entries in found.items():
            self.put(folder, [bytes(entries.data)])

    def put(self, folder: str, pieces: Iterable[bytes]) -> None:
        """Write entries below a folder; pieces may be cut anywhere."""
        waiting = Waiting()
        with self._writing:
            channel = self.link.open(waiting)
            self.link.send(Ask.PUT, channel, folder.encode() + b"\0")
            for batch in _batched(pieces):
                self.link.send(Ask.PUT_DATA, channel, batch)
            self.link.send(Ask.PUT_END, channel)
            self._wait(waiting, _FILES_S, channel)
        code, about = outcome(waiting.payload)
        _check(code, about)

    def close(self) -> None:
        """Kill everything inside and remove every trace."""
        self._lifetime.closed = True
        self.link.hang_up()  # at which the supervisor ends, and with it every process
        if self.proxy is not None:
            self.proxy.close()
        self._owner.dispose(self, self._place.remove)

    def is_well(self) -> bool:
        """Whether the supervisor answers now."""
        return not self.link.is_lost and self.link.answers(_HEALTHY_S)

    def renew(self, ttl_s: float) -> None:
        """Count the time to live from now on; the supervisor must have been given enough of it."""
        self._lifetime.renew(ttl_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _attempt(self, argv: list[str], timeout: float, options: RunOptions) -> ExecResult | None:
        """Run a command; None if there was no room to start it."""
        began = time.monotonic()
        running = _Running(self.link, options.stdin)
        channel = running.channel = self.link.open(running)
        flags = Flag.INPUT if options.stdin else Flag(0)
        asked = execution(
            argv, cwd=options.cwd, env=options.env, flags=flags, timeout=timeout, limit=options.output_limit
        )
        self.link.send(Ask.EXEC, channel, asked)
        running.send_more()
        self._wait(running, timeout + _SILENCE_S, channel)
        return finished(Exit.parse(running.payload), running, options, argv, time.monotonic() - began)

    def _get(self, path: str, want: Want, *, max_entries: int, max_bytes: int) -> tuple[int, Entries]:
        self._lifetime.left()
        collecting = _Collecting()
        channel = self.link.open(collecting)
        asked = wanted_files(path, want, max_entries=max_entries, max_bytes=max_bytes)
        self.link.send(Ask.GET, channel, asked)
        self._wait(collecting, _FILES_S, channel)
        return outcome(collecting.payload)[0], collecting.entries

    def _wait(self, waiting: Waiting, seconds: float, channel: int) -> None:
        self._lifetime.left()
        try:
            if not waiting.ended.wait(seconds):
                raise self._place.failure(f"its supervisor has not answered for {seconds:.0f} s")
        finally:
            self.link.close_channel(channel)
        if waiting.gone:
            raise self._place.failure("its connection ended")

    def _require_inside(self, path: str) -> None:
        if path in self._folders:
            raise ValueError(f"the path {path!r} is the sandbox's folder itself, not a file in it")
        if not path.startswith(tuple(f"{top}/" for top in self._folders)):
            raise ValueError(f"{path!r} is outside of {' and '.join(self._folders)}, where this sandbox keeps files")


class _Running(Waiting):
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


class _Collecting(Waiting):
    """Files that arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = Entries()

    def hear(self, kind: int, payload: bytes) -> None:
        if kind == Say.ENTRIES:
            self.entries.feed(payload)
        else:
            super().hear(kind, payload)


def finished(
    ended: Exit, running: _Running, options: RunOptions, argv: Sequence[str], seconds: float
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


def _check(code: int, path: str) -> None:
    if code == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
    if code == Code.NOT_PLAIN:
        raise ValueError(f"the path {path!r} cannot be opened as a plain file or folder: something else is there")
    if code:
        raise ValueError(f"the path {path!r} cannot be used: {Code(code).name if code > 1000 else os.strerror(code)}")


def _name(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the name {path!r} is not valid UTF-8") from None


def _batched(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what is to be sent in frames of a good size."""
    batch = bytearray()
    for piece in pieces:
        if len(batch) + len(piece) <= _PIECE:
            batch += piece
            continue
        if batch:
            yield bytes(batch)
            batch = bytearray()
        for start in range(0, len(piece), _PIECE):
            yield piece[start : start + _PIECE]
    if batch:
        yield bytes(batch)
