"""Run one command in a container through the daemon, bounded in output and time, and leave no process of it."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from docker import APIClient
from docker.errors import APIError, DockerException

from agentgym.errors import SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._stream import Frames, talk

logger = logging.getLogger(__name__)

AGENT_ID = 1000
_GRACE_S = 10.0
_CALL_S = 120.0
_POLL_S = 0.02
_SIGKILLED = 128 + 9


class DockerExec:
    """Runs commands as the agent in one container."""

    def __init__(self, api: APIClient, container: str, pids: int) -> None:
        self._api = api
        self._container = container
        self._pids = pids
        self._last_oom = 0

    def run(
        self, argv: list[str], env: Mapping[str, str], stdin: bytes, deadline: float, output_limit: int
    ) -> ExecResult:
        """Run a command until it ends, or until the deadline and then kill every process of the agent."""
        began = time.monotonic()
        handle = self._create(argv, env, bool(stdin))
        out, err = BoundedBytes(output_limit), BoundedBytes(output_limit)
        frames = Frames({1: out, 2: err})
        with self._connected(handle, frames) as connection:
            ended = talk(connection, stdin, frames, deadline) and self._ended(handle, deadline)
            if not ended:
                read_for = partial(_read_for, connection, frames)
                self._kill_all(read_for)
                read_for(_GRACE_S)
        if not ended and not self._ended(handle, time.monotonic() + _GRACE_S):
            raise SandboxError(f"a command in container {self._container[:12]} survived SIGKILL for {_GRACE_S:.0f} s")
        code = self._api.exec_inspect(handle)["ExitCode"]
        if code is None:
            raise DockerException("the daemon lost the command's exit code")
        return ExecResult(
            exit_code=code if ended else None,
            stdout=out.value(),
            stderr=err.value(),
            timed_out=not ended,
            truncated=bool(out.dropped or err.dropped),
            oom=ended and code != 0 and self._hit_memory_limit(code),
            duration_s=time.monotonic() - began,
        )

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

    def _create(self, argv: list[str], env: Mapping[str, str], stdin: bool) -> str:
        user = f"{AGENT_ID}:{AGENT_ID}"
        made = self._api.exec_create(self._container, argv, stdin=stdin, environment=dict(env), user=user)
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

    def _kill_all(self, read_for: Callable[[float], bool]) -> None:
        """Kill every process of the agent; room for the killer is made if they use up the limit.

        The timed-out command's output is read meanwhile: the daemon reports no process's end while that blocks.
        """
        for extra in (0, 32, 256):
            if extra:
                self._set_pids_limit(self._pids + extra)
            code = self._kill_once(read_for)
            if extra:
                self._set_pids_limit(self._pids)
            if code == 0:
                return
        raise SandboxError(f"the processes in container {self._container[:12]} cannot be killed: exit code {code}")

    def _kill_once(self, read_for: Callable[[float], bool]) -> int | None:
        # One step for the kernel, so no fork slips through; it spares its caller and, as another user's, PID 1.
        killer = self._create(["/bin/sh", "-c", "kill -9 -1"], {}, stdin=False)
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

    def _set_pids_limit(self, limit: int) -> None:
        # Not update_container: the SDK's own call knows no pids limit.
        url = f"{self._api.base_url}/v{self._api.api_version}/containers/{self._container}/update"
        self._api.post(url, json={"PidsLimit": limit}, timeout=_CALL_S).raise_for_status()


def _read_for(connection: socket.socket, frames: Frames, seconds: float) -> bool:
    return talk(connection, b"", frames, time.monotonic() + seconds)
