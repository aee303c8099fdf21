"""A sandbox whose first process is our supervisor: commands, files, shells and terminals over one connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from agentgym.errors import AgentFault
from agentgym.sandbox import Contact, ExecResult
from agentgym_sandboxes._allowlist import Session
from agentgym_sandboxes._answers import Answers
from agentgym_sandboxes._command import AGENT, absolute, variables, words
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._link import Link
from agentgym_sandboxes._messages import Ask, Exit, Flag, execution
from agentgym_sandboxes._running import Running, RunOptions, finished
from agentgym_sandboxes._shell import ShellSession
from agentgym_sandboxes._terminal import TerminalSession
from agentgym_sandboxes._transfers import Transfers

_SILENCE_S = 60.0
"""How long the machinery around a sandbox may stand still before a command counts as lost."""
_HEALTHY_S = 5.0
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
        self._lifetime = lifetime
        self._owner = owner
        self._answers = Answers(link, lifetime, place.failure)
        self.files = Transfers(self._answers, workdir, folders)
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
        return self.files.read(path, limit)

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file."""
        self.files.upload({path: data})

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Write many files in one call."""
        self.files.upload(files)

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        """Return the regular files below a folder."""
        return self.files.download(path, max_files, max_bytes)

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
        running = Running(self.link, options.stdin)
        channel = running.channel = self.link.open(running)
        flags = Flag.INPUT if options.stdin else Flag(0)
        asked = execution(
            argv, cwd=options.cwd, env=options.env, flags=flags, timeout=timeout, limit=options.output_limit
        )
        self.link.send(Ask.EXEC, channel, asked)
        running.send_more()
        self._answers.wait(running, timeout + _SILENCE_S, channel)
        return finished(Exit.parse(running.payload), running, options, argv, time.monotonic() - began)
