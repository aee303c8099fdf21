"""What a sandbox is: a failing command is an `ExecResult`, a failing sandbox is a `SandboxError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from agentgym.errors import CapabilityError

Capability = Literal[
    "network_none",  # the sandbox has no network beyond its own loopback
    "network_full",  # the sandbox may be given the host's network
    "memory_limit",  # memory_mb bounds the sum of all processes
    "process_memory_limit",  # memory_mb bounds each process on its own
    "cpu_limit",  # cpus is enforced
    "pids_limit",  # pids is enforced
    "disk_limit",  # disk_mb is enforced
    "image",  # image names a root filesystem
    "background",  # processes started by one exec live on until the next
    "snapshot",  # snapshot() and fork() work
    "isolation",  # untrusted code cannot reach the host's files, processes or network
]


class SandboxSpec(BaseModel):
    """What a task needs from the place where it runs; a backend that cannot give it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    """Root filesystem, by a name that the backend resolves; None is the backend's default."""
    network: Literal["none", "full"] = "none"
    memory_mb: Annotated[int, Field(ge=16)] = 512
    pids: Annotated[int, Field(ge=4)] = 64
    cpus: Annotated[float, Field(gt=0)] | None = None
    """CPU share; None leaves it to the scheduler."""
    disk_mb: Annotated[int, Field(ge=1)] | None = None
    """Bytes that the sandbox may write in all, in MB; None leaves it to the backend."""
    env: dict[str, str] = {}
    ttl_s: Annotated[float, Field(gt=0)] = 3600.0
    """The sandbox ends by itself after this long, even if its owner is gone."""


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

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with exit code 0."""
        return self.exit_code == 0 and not self.timed_out

    @property
    def output(self) -> str:
        """Both streams as text, undecodable bytes replaced."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


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

    def snapshot(self) -> str:
        """Freeze the filesystem's present state and return its name for `SandboxBackend.fork`."""
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

    def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a fresh sandbox.

        Raises:
            CapabilityError: the spec asks for what this backend lacks (before anything starts).
            SandboxError: it could not be started.
        """
        ...

    def close(self) -> None:
        """End every sandbox that this backend started."""
        ...


@dataclass(frozen=True, slots=True)
class _Need:
    wanted: bool
    any_of: tuple[Capability, ...] = field(default=())


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
        "network": _Need(True, ("network_none",) if spec.network == "none" else ("network_full",)),
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
