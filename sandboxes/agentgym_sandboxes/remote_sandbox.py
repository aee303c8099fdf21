"""A sandbox on another machine, with its shells and terminals, as if it were here."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from agentgym.errors import SandboxError
from agentgym.sandbox import Contact, ExecResult, TerminalOutput
from agentgym_sandboxes.remote_lease import Lease
from agentgym_sandboxes.remote_wire import LeaseLostError


class _Held(ABC):
    """Something that a lease holds on the server; used as a `with` block."""

    def __init__(self, lease: Lease, what: str) -> None:
        self._lease = lease
        self._what = what
        self._closed = False
        self._removed = False
        self._closing = threading.Lock()

    def _call(self, name: str, **arguments: Any) -> Any:
        if self._closed:
            raise SandboxError(f"{self._what} is closed")
        try:
            return self._lease.call(name, **arguments)
        except LeaseLostError as error:
            raise SandboxError(f"{self._what} is gone: {error}") from error

    def _close(self, name: str, **arguments: Any) -> None:
        self._closed = True
        with self._closing:
            if not self._removed:
                try:
                    self._lease.call(name, **arguments)
                except LeaseLostError:
                    self._removed = True  # with all that the lease held
                self._removed = True

    @abstractmethod
    def close(self) -> None:
        """End it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteSandbox(_Held):
    """See `agentgym.sandbox.Sandbox`."""

    def __init__(self, lease: Lease, name: str, workdir: str) -> None:
        super().__init__(lease, f"sandbox {name}")
        self.id = name
        self.workdir = workdir

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
        """Run a command, once, however often its request must be repeated; waiting for its turn is not its time."""
        result = self._call(
            "exec",
            sandbox=self.id,
            command=_plain(command),
            timeout=timeout,
            stdin=stdin,
            user=user,
            cwd=cwd,
            env=None if env is None else dict(env),
            output_limit=output_limit,
        )
        return ExecResult(**result)

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """Return a regular file's bytes."""
        data: bytes = self._call("read", sandbox=self.id, path=path, limit=limit)
        return data

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file."""
        self.upload({path: data})

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Write many files in one call."""
        self._call("upload", sandbox=self.id, files=dict(files))

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        """Return the regular files below a folder."""
        found: dict[str, bytes] = self._call(
            "download", sandbox=self.id, path=path, max_files=max_files, max_bytes=max_bytes
        )
        return found

    def shell(self) -> RemoteShell:
        """Start a shell that remembers."""
        return RemoteShell(self._lease, self._call("shell", sandbox=self.id), self.id)

    def terminal(
        self, command: str | Sequence[str] = ("/bin/sh",), *, rows: int = 24, columns: int = 80
    ) -> RemoteTerminal:
        """Start a program on a terminal of its own."""
        asked = {"command": _plain(command), "rows": rows, "columns": columns}
        return RemoteTerminal(self._lease, self._call("terminal", sandbox=self.id, **asked), self.id)

    def contacts(self) -> tuple[Contact, ...]:
        """Return what programs have asked of the server's proxy."""
        return tuple(Contact(**one) for one in self._call("contacts", sandbox=self.id))

    def snapshot(self) -> str:
        """Freeze the files' present state."""
        name: str = self._call("snapshot", sandbox=self.id)
        return name

    def close(self) -> None:
        """Kill everything inside and remove every trace."""
        self._close("close", sandbox=self.id)


class RemoteShell(_Held):
    """See `agentgym.sandbox.Shell`."""

    def __init__(self, lease: Lease, handle: str, sandbox: str) -> None:
        super().__init__(lease, f"the shell session in sandbox {sandbox}")
        self._handle = handle

    def run(self, script: str, *, timeout: float = 30.0, output_limit: int = 65536) -> ExecResult:
        """Run a script in the shell as it is now."""
        result = self._call("run", session=self._handle, script=script, timeout=timeout, output_limit=output_limit)
        return ExecResult(**result)

    def close(self) -> None:
        """Kill the shell and what it started."""
        self._close("close_session", session=self._handle)


class RemoteTerminal(_Held):
    """See `agentgym.sandbox.Terminal`."""

    def __init__(self, lease: Lease, handle: str, sandbox: str) -> None:
        super().__init__(lease, f"the terminal in sandbox {sandbox}")
        self._handle = handle

    def send(self, data: bytes | str, *, timeout: float = 30.0) -> None:
        """Type; waits while the program takes nothing."""
        typed = data.encode() if isinstance(data, str) else data
        self._call("type", session=self._handle, data=typed, timeout=timeout)

    def read(self, *, timeout: float = 5.0, quiet: float = 0.2, until: bytes | None = None) -> TerminalOutput:
        """Return what was printed since the last look."""
        data, code = self._call("look", session=self._handle, timeout=timeout, quiet=quiet, until=until)
        return TerminalOutput(data, code)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size and tell the program."""
        self._call("resize", session=self._handle, rows=rows, columns=columns)

    def close(self) -> None:
        """Kill the program and all that it started."""
        self._close("close_session", session=self._handle)


def _plain(command: str | Sequence[str]) -> str | list[str]:
    return command if isinstance(command, str) else list(command)
