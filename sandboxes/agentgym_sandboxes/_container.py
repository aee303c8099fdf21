"""One hardened container: run commands in it, and tell by the daemon's evidence whose fault a failure is."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import requests
from docker import APIClient
from docker.errors import DockerException, NotFound

from agentgym.errors import AgentFault, CapabilityError, SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes import _container_files as files
from agentgym_sandboxes._command import ENTER, absolute, refuse_user, variables, words
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._stream import Frames, talk

WORKDIR = "/workspace"
AGENT_ID = 1000
_GRACE_S = 10.0
_FILES_TIMEOUT_S = 120.0
_POLL_S = 0.02
_KILLED = 128 + 9

# kill(-1) is one step for the kernel, so no fork can slip through, and nobody may leave the agent's user. It spares the
# caller, PID 1 and its timer, which belong to another user.
_KILL_ALL = "kill -9 -1; echo killed"


class DockerSandbox:
    """A container whose only visible user is the agent; see `agentgym.sandbox.Sandbox`.

    A timeout kills every process of the sandbox, also those that earlier commands left in the background.
    """

    workdir = WORKDIR

    def __init__(
        self, api: APIClient, container: str, pids: int, lifetime: Lifetime, forget: Callable[[DockerSandbox], None]
    ) -> None:
        self.id = container[:12]
        self._api = api
        self._container = container
        self._pids = pids
        self._lifetime = lifetime
        self._forget = forget
        self._last_oom = 0

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
        refuse_user(user, "docker")
        left = min(timeout, self._lifetime.left())
        where = absolute(cwd or self.workdir, self.workdir)
        argv = ["/bin/sh", "-c", f'{ENTER} exec "$@"', where, *words(command)]
        with self._blame():
            return self._run(argv, variables(env), stdin, time.monotonic() + left, output_limit)

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """Return a regular file's bytes."""
        argv = files.reader(absolute(path, self.workdir), limit)
        return files.read_result(self._file_command(argv, output_limit=limit + 1), path, limit)

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file."""
        self.upload({path: data})

    def upload(self, files_by_path: Mapping[str, bytes]) -> None:
        """Write many files in one call."""
        whole = {absolute(path, self.workdir): data for path, data in files_by_path.items()}
        for argv, archive in files.writers(whole, (self.workdir, "/tmp"), AGENT_ID):
            files.check_write(self._file_command(argv, stdin=archive))

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        """Return the regular files below a folder."""
        argv, limit = files.archiver(absolute(path, self.workdir), max_files, max_bytes)
        result = self._file_command(argv, output_limit=limit + 1)
        return files.archive_result(result, path, limit, max_files, max_bytes)

    def snapshot(self) -> str:
        """Refuse: not offered yet by this backend."""
        raise CapabilityError("the 'docker' sandbox has no 'snapshot'; choose another sandbox backend")

    def close(self) -> None:
        """Remove the container and everything in it."""
        self._lifetime.closed = True
        try:
            self._api.remove_container(self._container, v=True, force=True)
        except NotFound:
            pass
        except (DockerException, requests.RequestException) as error:
            if "already in progress" not in str(error):
                raise SandboxError(f"container {self.id} cannot be removed: {error}") from error
        self._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, argv: list[str], env: dict[str, str], stdin: bytes, deadline: float, output_limit: int
    ) -> ExecResult:
        began = time.monotonic()
        handle = self._create(argv, env, bool(stdin))
        out, err = BoundedBytes(output_limit), BoundedBytes(output_limit)
        frames = Frames({1: out, 2: err})
        with self._connected(handle, frames) as connection:
            ended = talk(connection, stdin, frames, deadline) and self._ended(handle, deadline)
            if not ended:
                self._kill_all()
                talk(connection, b"", frames, time.monotonic() + _GRACE_S)
        if not ended and not self._ended(handle, time.monotonic() + _GRACE_S):
            raise SandboxError(f"a command in container {self.id} is still there {_GRACE_S:.0f} s after SIGKILL")
        code = int(self._api.exec_inspect(handle)["ExitCode"])
        return ExecResult(
            exit_code=code if ended else None,
            stdout=out.value(),
            stderr=err.value(),
            timed_out=not ended,
            truncated=bool(out.dropped or err.dropped),
            oom=ended and code != 0 and self._hit_memory_limit(code),
            duration_s=time.monotonic() - began,
        )

    def _file_command(self, argv: list[str], *, stdin: bytes = b"", output_limit: int = 65536) -> ExecResult:
        deadline = time.monotonic() + min(_FILES_TIMEOUT_S, self._lifetime.left())
        with self._blame():
            result = self._run(argv, {}, stdin, deadline, output_limit)
        if result.timed_out or result.oom or (result.exit_code or 0) > 128:
            # The container lives and our helper is the image's own: only the agent's processes can have stopped it.
            raise AgentFault(f"a process in sandbox {self.id} kept us from its files: {result.output[-200:]!r}")
        return result

    def _create(self, argv: list[str], env: dict[str, str], stdin: bool) -> str:
        user = f"{AGENT_ID}:{AGENT_ID}"
        made = self._api.exec_create(self._container, argv, stdin=stdin, environment=env, user=user)
        return str(made["Id"])

    @contextmanager
    def _connected(self, handle: str, frames: Frames) -> Iterator[socket.socket]:
        stream: Any = self._api.exec_start(handle, socket=True)
        response = stream._response
        try:
            connection: socket.socket = stream._sock
            connection.setblocking(False)
            frames.feed(response.raw._fp.fp.peek())  # what arrived in one packet with the headers
            yield connection
        finally:
            response.close()
            stream.close()

    def _ended(self, handle: str, deadline: float) -> bool:
        """Wait for the end of a command that may have closed its streams long before."""
        pause = _POLL_S / 10
        while self._api.exec_inspect(handle)["Running"]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _POLL_S)
        return True

    def _kill_all(self) -> None:
        """Kill every process of the agent; room for the killer is made if they use up the limit."""
        for extra in (0, 32, 256):
            if extra:
                self._set_pids_limit(self._pids + extra)
            handle = self._create(["/bin/sh", "-c", _KILL_ALL], {}, stdin=False)
            said = self._api.exec_start(handle)
            if extra:
                self._set_pids_limit(self._pids)
            if said == b"killed\n":
                return
        raise SandboxError(f"the processes in container {self.id} cannot be killed: {said[-200:]!r}")

    def _set_pids_limit(self, limit: int) -> None:
        # Not update_container: the SDK's own call knows no pids limit.
        url = f"{self._api.base_url}/v{self._api.api_version}/containers/{self._container}/update"
        self._api.post(url, json={"PidsLimit": limit}, timeout=_FILES_TIMEOUT_S).raise_for_status()

    def _hit_memory_limit(self, code: int) -> bool:
        """Whether the kernel killed something here since we last asked; the daemon may hear of it a little late."""
        for _ in range(4 if code == _KILLED else 1):
            if self._new_oom():
                return True
            time.sleep(_POLL_S if code == _KILLED else 0)
        return False

    def _new_oom(self) -> bool:
        chosen = {"container": self._container, "event": "oom"}
        events = self._api.events(since=0, until=int(time.time()) + 1, filters=chosen, decode=True)
        last = max((int(event["timeNano"]) for event in events), default=0)
        is_new, self._last_oom = last > self._last_oom, max(last, self._last_oom)
        return is_new

    @contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except (DockerException, requests.RequestException, OSError, TypeError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        """Say why the container did not answer, by what the daemon knows and nothing that the agent says."""
        if self._lifetime.closed:
            return SandboxError(f"sandbox {self.id} was closed while a command ran in it")
        try:
            state = self._api.inspect_container(self._container)["State"]
            if state["Running"]:
                return SandboxError(f"the Docker daemon failed to run a command in container {self.id}: {error}")
            if state["OOMKilled"] or self._new_oom():
                return AgentFault(f"the processes in sandbox {self.id} exceeded its memory and took it down")
        except NotFound:
            return SandboxError(f"container {self.id} is gone: somebody removed it")
        except (DockerException, requests.RequestException):
            return SandboxError(f"the Docker daemon does not answer: {error}")
        if self._lifetime.expired:
            return SandboxError(f"sandbox {self.id} has ended: its ttl_s is over")
        # PID 1 belongs to a user that the agent can neither signal nor trace.
        return SandboxError(f"container {self.id} was stopped from outside, exit code {state['ExitCode']}")
