"""One hardened container: run commands in it, and tell by the daemon's evidence whose fault a failure is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import requests
from docker import APIClient
from docker.errors import DockerException, NotFound

from agentgym.errors import AgentFault, CapabilityError, SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes import _container_files as files
from agentgym_sandboxes._command import ENTER, absolute, refuse_user, variables, words
from agentgym_sandboxes._docker_exec import AGENT_ID, ROOM_FOR_US, Command, DockerExec
from agentgym_sandboxes._lifetime import Lifetime

WORKDIR = "/workspace"
_FILES_TIMEOUT_S = 120.0
_SIGKILLED = 128 + 9


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
        self._exec = DockerExec(api, container, pids)
        self._lifetime = lifetime
        self._forget = forget

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
        return self._run(Command(argv, left, output_limit, variables(env), stdin))

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

    def _run(self, command: Command) -> ExecResult:
        try:
            result = self._exec.run(command)
            killed = result.exit_code == _SIGKILLED
            if self._lifetime.closed or (killed and not self._state()["Running"]):
                raise self._failure("it took a command with it")
        except (DockerException, requests.RequestException, OSError) as error:
            raise self._failure(str(error)) from error
        return result

    def _state(self) -> Any:
        return self._api.inspect_container(self._container)["State"]

    def _file_command(self, argv: list[str], *, stdin: bytes = b"", output_limit: int = 65536) -> ExecResult:
        left = min(_FILES_TIMEOUT_S, self._lifetime.left())
        for attempt in range(len(ROOM_FOR_US)):  # one may start, and then not be able to fork
            command = Command(argv, left, output_limit, stdin=stdin, rooms=ROOM_FOR_US[attempt:])
            result = self._run(command)
            if result.exit_code in files.ANSWERS:
                break
        if result.timed_out or result.oom or (result.exit_code or 0) > 128:
            # The container lives and our helper is the image's own: only the agent's processes can have stopped it.
            raise AgentFault(f"a process in sandbox {self.id} kept us from its files: {result.output[-200:]!r}")
        return result

    def _failure(self, error: str) -> Exception:
        """Say why the container did not answer, by what the daemon knows and nothing that the agent says."""
        if self._lifetime.closed:
            return SandboxError(f"sandbox {self.id} was closed while a command ran in it")
        try:
            state = self._state()
            if state["Running"]:
                return SandboxError(f"the Docker daemon failed to run a command in container {self.id}: {error}")
            if state["OOMKilled"] or self._exec.new_oom():
                return AgentFault(f"the processes in sandbox {self.id} exceeded its memory and took it down")
        except NotFound:
            return SandboxError(f"container {self.id} is gone: somebody removed it")
        except (DockerException, requests.RequestException):
            return SandboxError(f"the Docker daemon does not answer: {error}")
        if self._lifetime.expired:
            return SandboxError(f"sandbox {self.id} has ended: its ttl_s is over")
        # PID 1 belongs to a user that the agent can neither signal nor trace.
        return SandboxError(f"container {self.id} was stopped from outside, exit code {state['ExitCode']}")
