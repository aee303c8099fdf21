"""Run one command on this machine, bounded in output and time, and leave none of its processes behind."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentgym.errors import SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._pump import drain, pump

_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One started command and how to end it."""

    process: subprocess.Popen[bytes]
    status: int
    """Descriptor of bwrap's JSON reports, which the command itself cannot reach; -1 without bwrap."""
    mark: bytes = b""
    """Without bwrap: the environment entry by which descendants are found."""

    def release(self) -> None:
        """Close our ends of the pipes."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if self.status >= 0:
            os.close(self.status)

    def abort(self) -> None:
        """Kill the tree; may be called from another thread."""
        if self.mark:
            _kill_marked(self.mark, self.process.pid)
        else:
            self.process.kill()  # bwrap's death takes PID 1 of the sandbox with it

    def kill(self, reports: bytes) -> None:
        """Kill the whole tree and wait until it is dead."""
        init = _number(reports, "child-pid")
        if init is None or not _kill_init(init, self.process.pid):
            self.abort()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"process {self.process.pid} is still there {_GRACE_S:.0f} s after SIGKILL") from None

    def exit_code(self, reports: bytes) -> int:
        """Return the exit code of the finished command.

        Raises:
            SandboxError: the machinery around the command failed, so that there is none.
        """
        code = self.process.wait()
        if not self.mark:
            reported = _number(reports, "exit-code")
            if reported is None:
                raise SandboxError(f"bubblewrap ended with code {code} before it ran the command")
            return reported
        return code if code >= 0 else 128 - code


def run(launch: Launch, stdin: bytes, timeout: float, output_limit: int) -> ExecResult:
    """Feed, read and wait for a started command; at the timeout kill its whole tree."""
    began = time.monotonic()
    process = launch.process
    assert process.stdout is not None
    assert process.stderr is not None
    out, err, reports = BoundedBytes(output_limit), BoundedBytes(output_limit), BoundedBytes(1 << 12)
    sinks = {process.stdout.fileno(): out, process.stderr.fileno(): err}
    if launch.status >= 0:
        sinks[launch.status] = reports
    exited = os.pidfd_open(process.pid)
    try:
        ended = pump(process.stdin, stdin, sinks, exited, began + timeout)
        if not ended or launch.mark:
            launch.kill(reports.value())
        drain(sinks, time.monotonic() + _GRACE_S)
    finally:
        os.close(exited)
    return ExecResult(
        exit_code=launch.exit_code(reports.value()) if ended else None,
        stdout=out.value(),
        stderr=err.value(),
        timed_out=not ended,
        truncated=bool(out.dropped or err.dropped),
        duration_s=time.monotonic() - began,
    )


def start_isolated(argv: Callable[[int], list[str]], *, stdin: bool) -> Launch:
    """Start a bwrap command line, which is given the descriptor for its reports."""
    reports, report_to = os.pipe()
    try:
        return Launch(_spawn(argv(report_to), stdin, {"PATH": os.defpath}, (report_to,)), reports)
    except BaseException:
        os.close(reports)
        raise
    finally:
        os.close(report_to)


def start_plain(argv: list[str], env: Mapping[str, str], *, stdin: bool) -> Launch:
    """Start a command with no isolation, marked so that its descendants can be found."""
    mark = f"AGENTGYM_COMMAND={secrets.token_hex(16)}"
    name, _, value = mark.partition("=")
    return Launch(_spawn(argv, stdin, {**env, name: value}, ()), -1, mark.encode())


def _spawn(argv: list[str], stdin: bool, env: dict[str, str], keep: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start a command in its own session, with pipes.

    Raises:
        ValueError: the command cannot be expressed on this system, whatever the sandbox.
        SandboxError: this machine cannot start it now.
    """
    feed = subprocess.PIPE if stdin else subprocess.DEVNULL
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            argv, bufsize=0, stdin=feed, stdout=pipe, stderr=pipe, env=env, pass_fds=keep, start_new_session=True
        )
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise ValueError("the command and its environment are too long: write the data to a file first") from error
        raise SandboxError(f"cannot start {argv[0]}: {error}") from error


def _kill_marked(mark: bytes, group: int) -> None:
    """Kill a process group and every process that has `mark` in its environment, until none is left.

    Raises:
        SandboxError: they multiply faster than they can be killed.
    """
    deadline = time.monotonic() + _GRACE_S
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    while marked := [pid for pid in _processes() if _has_mark(pid, mark)]:
        for pid in marked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise SandboxError(f"{len(marked)} processes of the command cannot be killed")


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, ValueError):  # gone meanwhile, or not ours to look at
        return False


def _kill_init(pid: int, parent: int) -> bool:
    """Kill PID 1 of the sandbox if `pid` still is the child of its bwrap; the kernel takes the whole namespace down."""
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            if int(stat.rpartition(b")")[2].split()[1]) == parent:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False


def _number(reports: bytes, name: str) -> int | None:
    for line in reports.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get(name), int):
                return int(value[name])
    return None
