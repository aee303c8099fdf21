"""Run one command as another user in a container, through the daemon, bounded in output and time."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from docker import APIClient
from docker.errors import APIError, DockerException

from agentgym.errors import AgentFault, SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._stream import Frames, talk

logger = logging.getLogger(__name__)

AGENT_ID = 1000
_GRACE_S = 10.0
_CALL_S = 120.0
_POLL_S = 0.02
_SIGKILLED = 128 + 9
ROOM_FOR_AGENT = (0, 32)
ROOM_FOR_US = (0, 32, 256)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, as whom, and within which bounds."""

    argv: list[str]
    timeout: float
    output_limit: int
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    user: str = str(AGENT_ID)
    rooms: tuple[int, ...] = ROOM_FOR_AGENT
    """By how much the process limit may be exceeded, attempt by attempt, until the command starts."""


class DockerExec:
    """Runs commands in one container. A timeout kills every process of the command's user."""

    def __init__(self, api: APIClient, container: str, pids: int) -> None:
        self._api = api
        self._container = container
        self._pids = pids
        self._last_oom = 0
        self._complaint = ""

    def run(self, command: Command) -> ExecResult:
        """Run a command until it ends, or until the deadline and then kill every process of its user.

        Raises:
            AgentFault: the agent's processes leave no room for the command to start.
            SandboxError: the daemon could not start or end it, for a reason that is not the agent's.
        """
        deadline = time.monotonic() + command.timeout
        for extra in command.rooms:
            with self.room_for(extra):
                result = self._attempt(command, deadline)
            if result is not None:
                return result
        name = self._container[:12]
        if len(self._api.top(self._container)["Processes"]) >= self._pids // 2:
            raise AgentFault(f"the processes in sandbox {name} leave no room for another: no command can start")
        raise SandboxError(f"Docker cannot start a command in container {name}: {self._complaint}")

    def _attempt(self, command: Command, deadline: float) -> ExecResult | None:
        """Run a command; None if it never started."""
        began = time.monotonic()
        handle = self._create(command, command.argv)
        out, err = BoundedBytes(command.output_limit), BoundedBytes(command.output_limit)
        frames = Frames({1: out, 2: err})
        with self._connected(handle, frames) as connection:
            ended = talk(connection, command.stdin, frames, deadline) and self._ended(handle, deadline)
            if not ended:
                read_for = partial(_read_for, connection, frames)
                self._kill_all(command, read_for)
                read_for(_GRACE_S)
        if not ended and not self._ended(handle, time.monotonic() + _GRACE_S):
            raise SandboxError(f"a command in container {self._container[:12]} survived SIGKILL for {_GRACE_S:.0f} s")
        code, started = self._exit(handle)
        if not started:  # what it printed is the runtime's complaint
            self._complaint = out.value()[-200:].decode(errors="replace").strip()
            logger.info("a command did not start name=%s: %s", self._container[:12], self._complaint)
            return None
        return ExecResult(
            exit_code=code if ended else None,
            stdout=out.value(),
            stderr=err.value(),
            timed_out=not ended,
            truncated=bool(out.dropped or err.dropped),
            oom=ended and code != 0 and self._hit_memory_limit(code),
            duration_s=time.monotonic() - began,
        )

    def _exit(self, handle: str) -> tuple[int, bool]:
        """Return the exit code, and whether the command ever ran: the daemon knows no process of one that did not."""
        state = self._api.exec_inspect(handle)
        if state["ExitCode"] is None:
            raise DockerException("the daemon lost the command's exit code")
        return int(state["ExitCode"]), state["ExitCode"] == 0 or bool(state["Pid"])

    def new_oom(self) -> bool:
        """Whether the daemon heard of a kill for memory in this container since we last asked."""
        chosen = {"container": self._container, "event": "oom"}
        now: Any = f"{time.time():.6f}"  # in whole seconds it would miss the latest, or wait for the next
        events = self._api.events(since=0, until=now, filters=chosen, decode=True)
        last = max((int(event["timeNano"]) for event in events), default=0)
        is_new, self._last_oom = last > self._last_oom, max(last, self._last_oom)
        return is_new

    def _hit_memory_limit(self, code: int) -> bool:
        for _ in range(4 if code == _SIGKILLED else 1):  # the daemon may hear of it a little late
            if self.new_oom():
                return True
            time.sleep(_POLL_S if code == _SIGKILLED else 0)
        return False

    def _create(self, command: Command, argv: list[str], *, stdin: bool = True) -> str:
        made = self._api.exec_create(
            self._container,
            argv,
            stdin=stdin and bool(command.stdin),
            environment=dict(command.env),
            user=command.user,
        )
        return str(made["Id"])

    @contextmanager
    def _connected(self, handle: str, frames: Frames) -> Iterator[socket.socket]:
        stream: Any = self._api.exec_start(handle, socket=True)
        response = stream._response
        connection: socket.socket = stream._sock
        try:
            connection.setblocking(False)
            frames.feed(response.raw._fp.fp.peek())  # what arrived in one packet with the headers
            yield connection
        finally:
            response.close()
            stream.close()
            connection.close()

    def _ended(self, handle: str, deadline: float) -> bool:
        """Wait for the end of a command that may have closed its streams long before."""
        pause = _POLL_S / 10
        while self._api.exec_inspect(handle)["Running"]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _POLL_S)
        return True

    def _kill_all(self, command: Command, read_for: Callable[[float], bool]) -> None:
        """Kill every process of that user.

        The timed-out command's output is read meanwhile: the daemon reports no process's end while that blocks.
        """
        for extra in ROOM_FOR_US:
            with self.room_for(extra):
                code = self._kill_once(command, read_for)
            if code == 0:
                return
        raise SandboxError(f"the processes in container {self._container[:12]} cannot be killed: exit code {code}")

    def _kill_once(self, command: Command, read_for: Callable[[float], bool]) -> int | None:
        # One step for the kernel, so no fork slips through; it spares its caller and, as another user's, PID 1.
        killer = self._create(command, ["/bin/sh", "-c", "kill -9 -1"], stdin=False)
        try:
            self._api.exec_start(killer, detach=True)
        except APIError as error:
            logger.info("no room to kill name=%s: %s", self._container[:12], error)
            return None
        deadline = time.monotonic() + _GRACE_S
        while (state := self._api.exec_inspect(killer))["Running"] and time.monotonic() < deadline:
            if read_for(_POLL_S):
                time.sleep(_POLL_S / 10)
        return None if state["ExitCode"] is None else int(state["ExitCode"])

    @contextmanager
    def room_for(self, extra: int) -> Iterator[None]:
        """Allow more processes for a while, because the agent's may use up the limit and leave no room for ours."""
        if extra:
            self._set_pids_limit(self._pids + extra)
        try:
            yield
        finally:
            if extra:
                self._set_pids_limit(self._pids)

    def _set_pids_limit(self, limit: int) -> None:
        # Not update_container: the SDK's own call knows no pids limit.
        url = f"{self._api.base_url}/v{self._api.api_version}/containers/{self._container}/update"
        self._api.post(url, json={"PidsLimit": limit}, timeout=_CALL_S).raise_for_status()


def _read_for(connection: socket.socket, frames: Frames, seconds: float) -> bool:
    return talk(connection, b"", frames, time.monotonic() + seconds)
