"""What a sandbox is: a failing command is an `ExecResult`, a failing sandbox is a `SandboxError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Literal, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentgym.errors import CapabilityError

Capability = Literal[
    "network_none",  # the sandbox has no network beyond its own loopback
    "network_allowlist",  # programs may reach named hosts through a filtering proxy, and nothing else
    "network_full",  # the sandbox may be given the host's network
    "memory_limit",  # memory_mb bounds the sum of all processes
    "process_memory_limit",  # memory_mb bounds each process on its own
    "cpu_limit",  # cpus is enforced
    "pids_limit",  # pids is enforced
    "disk_limit",  # disk_mb is enforced
    "image",  # image names a root filesystem
    "background",  # processes started by one exec live on until the next
    "snapshot",  # snapshot() and fork() work
    "session",  # shell() and terminal() work
    "user",  # commands may run as another user than the agent
    "writable_root",  # the whole root filesystem may be written to
    "isolation",  # untrusted code cannot reach the host's files, processes or network
]


class SandboxSpec(BaseModel):
    """What a task needs from the place where it runs; a backend that cannot give it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    """Root filesystem, by a name that the backend resolves; None is the backend's default."""
    network: Literal["none", "allowlist", "full"] = "none"
    allow: tuple[str, ...] = ()
    """Hosts that `network="allowlist"` lets programs reach over HTTP and HTTPS: `index.test`, `*.deb.test`, with a
    port where it is another than 80 and 443. Names lead only to the public internet; a host elsewhere is written with
    its address: `git.test:8080=10.0.0.5`."""
    memory_mb: Annotated[int, Field(ge=16)] = 512
    pids: Annotated[int, Field(ge=4)] = 64
    cpus: Annotated[float, Field(gt=0)] | None = None
    """CPU share; None leaves it to the scheduler."""
    disk_mb: Annotated[int, Field(ge=1)] | None = None
    """Bytes that the sandbox may write in all, in MB; None leaves it to the backend."""
    workdir: str | None = None
    """Where commands run and files are; None is the backend's own folder, or with a writable root the image's."""
    writable_root: bool = False
    """Let the agent change any file that its user may, such as a repository that the image holds."""
    env: dict[str, str] = {}
    ttl_s: Annotated[float, Field(gt=0)] = 3600.0
    """The sandbox ends by itself after this long, even if its owner is gone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.network == "allowlist") != bool(self.allow):
            raise ValueError(
                f"network={self.network!r} with allow={list(self.allow)}: name the hosts with network='allowlist', and "
                "only with it"
            )
        if self.workdir is not None and (not self.workdir.startswith("/") or ".." in self.workdir.split("/")):
            raise ValueError(f"workdir must be an absolute path without '..', not {self.workdir!r}")
        return self


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How one command ended."""

    exit_code: int | None
    """The command's own exit code; 128 + N for a death by signal N; None after a timeout."""
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    truncated: bool = False
    """Output beyond the limit was dropped: head and tail are kept around a line that counts the rest."""
    oom: bool = False
    """The kernel killed the command, or the command died, for exceeding its memory limit."""
    duration_s: float = 0.0
    signal: int | None = None
    """The signal that killed the command itself; a shell that reports its child's death has only an exit code."""
    dropped: int = 0
    """How many bytes of both streams were dropped."""
    pids: bool = False
    """The kernel refused the command a process for exceeding its limit."""

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with exit code 0."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def output(self) -> str:
        """Both streams as text, undecodable bytes replaced."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


class Shell(Protocol):
    """A shell that remembers its folder, variables and functions; used as a `with` block, by one thread at a time."""

    def run(self, script: str, *, timeout: float = 30.0, output_limit: int = 65536) -> ExecResult:
        """Run a script in the shell as it is now.

        `exit`, `exec` or a timeout end the shell and not the session: the next script runs in a new shell, in the
        folder and with the exported variables of before. A script has no input.
        """
        ...

    def close(self) -> None:
        """Kill the shell and what it started."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class TerminalOutput:
    """What a program printed on its terminal since the last look."""

    data: bytes
    exit_code: int | None
    """The program's exit code, 128 + N for signal N, or None while it runs."""


class Terminal(Protocol):
    """A program on a terminal of its own; used as a `with` block."""

    def send(self, data: bytes | str, *, timeout: float = 30.0) -> None:
        r"""Type; a `\r` is the return key.

        Raises:
            TimeoutError: the program took no input for `timeout` seconds.
        """
        ...

    def read(self, *, timeout: float = 5.0, quiet: float = 0.2, until: bytes | None = None) -> TerminalOutput:
        """Return what was printed: once it holds `until`, was quiet for a while, the program ended, or time is over."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Change the size and tell the program."""
        ...

    def close(self) -> None:
        """Kill the program and all that it started."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Contact:
    """One request of a program in a sandbox to reach a host."""

    host: str
    """Empty if the request was too malformed to name one."""
    port: int
    allowed: bool
    bytes: int
    """What went either way."""
    reason: str = ""
    """Why it was refused, or the host not reached."""


class Sandbox(Protocol):
    """An isolated place to run untrusted commands; used as a `with` block.

    Paths are absolute, or relative to the sandbox's working directory (`workdir`). After a timeout every process
    of the command is dead and the sandbox can be used again.

    Raises:
        SandboxError: the sandbox is gone or does not answer (from any method).
        FileNotFoundError, ValueError: from file methods, for a missing file, or one that is not regular or too large.
    """

    id: str
    workdir: str

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
        """Run an argument vector, or a string as a `/bin/sh` script; `output_limit` is bytes per stream."""
        ...

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """Return a regular file's bytes; links are not followed; a larger file is a ValueError."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, and the folders above it, owned by the sandbox's user."""
        ...

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Write many files in one call."""
        ...

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        """Return the regular files below a folder, by relative path; links and devices are left out."""
        ...

    def shell(self) -> Shell:
        """Start a shell that remembers.

        Raises:
            CapabilityError: the backend has no `session`.
        """
        ...

    def terminal(self, command: str | Sequence[str] = ("/bin/sh",), *, rows: int = 24, columns: int = 80) -> Terminal:
        """Start a program on a terminal of its own, in the working directory.

        Raises:
            CapabilityError: the backend has no `session`.
        """
        ...

    def contacts(self) -> tuple[Contact, ...]:
        """Return what programs have asked of `network="allowlist"` so far; with another network nobody is asked."""
        ...

    def snapshot(self) -> str:
        """Freeze the files' present state and return its name for `SandboxBackend.fork`; processes are no part of it.

        Raises:
            CapabilityError: the backend has no `snapshot`.
        """
        ...

    def close(self) -> None:
        """Kill everything inside and remove every trace; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SandboxBackend(Protocol):
    """Starts sandboxes of one kind; safe to use from many threads."""

    name: str
    capabilities: frozenset[Capability]

    def check(self) -> None:
        """Raise one clear sentence if this backend cannot work on this machine now.

        Raises:
            SandboxError: what is missing and how to mend it.
        """
        ...

    def accept(self, spec: SandboxSpec) -> None:
        """Refuse now what `start` would refuse later; starts nothing.

        Raises:
            CapabilityError: the spec asks for what this backend lacks.
            SandboxError: its image is not there, or this machine is too small for its limits.
        """
        ...

    def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a fresh sandbox.

        Raises:
            CapabilityError: the spec asks for what this backend lacks (before anything starts).
            SandboxError: it could not be started.
        """
        ...

    def fork(self, snapshot: str) -> Sandbox:
        """Start a fresh sandbox of the same spec with the files of a snapshot; any number from one.

        Raises:
            CapabilityError: the backend has no `snapshot`.
            KeyError: it knows no snapshot of that name.
            SandboxError: it could not be started.
        """
        ...

    def drop(self, snapshot: str) -> None:
        """Free what a snapshot holds; all are freed when the backend is closed."""
        ...

    def close(self) -> None:
        """End every sandbox that this backend started, and free its snapshots."""
        ...


@runtime_checkable
class Stocked(Protocol):
    """A backend that knows which images are there; optional, for whoever chooses among the machines of many."""

    def has_image(self, image: str | None) -> bool:
        """Return whether an image is there now (None: the default one); nothing is pulled or built.

        Raises:
            TaskError: what its build needs is missing or malformed.
            SandboxError: it cannot be looked up.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Need:
    wanted: bool
    any_of: tuple[Capability, ...] = field(default=())


_NETWORKS: dict[str, Capability] = {
    "none": "network_none",
    "allowlist": "network_allowlist",
    "full": "network_full",
}


def require(spec: SandboxSpec, backend: str, capabilities: frozenset[Capability]) -> None:
    """Refuse a spec that a backend cannot honour, so that no knob is silently ignored.

    >>> require(SandboxSpec(disk_mb=64), "process", frozenset({"network_none", "process_memory_limit", "pids_limit"}))
    Traceback (most recent call last):
    agentgym.errors.CapabilityError: the task asks for disk_mb=64, but the 'process' sandbox has no 'disk_limit'; \
choose another sandbox backend or drop the field

    Raises:
        CapabilityError: naming the first field that cannot be honoured.
    """
    needs = {
        "image": _Need(spec.image is not None, ("image",)),
        "network": _Need(True, (_NETWORKS[spec.network],)),
        "writable_root": _Need(spec.writable_root, ("writable_root",)),
        "memory_mb": _Need(True, ("memory_limit", "process_memory_limit")),
        "pids": _Need(True, ("pids_limit",)),
        "cpus": _Need(spec.cpus is not None, ("cpu_limit",)),
        "disk_mb": _Need(spec.disk_mb is not None, ("disk_limit",)),
    }
    for name, need in needs.items():
        if need.wanted and not capabilities.intersection(need.any_of):
            raise CapabilityError(
                f"the task asks for {name}={getattr(spec, name)!r}, but the {backend!r} sandbox has no "
                f"{' or '.join(repr(one) for one in need.any_of)}; choose another sandbox backend or drop the field"
            )
