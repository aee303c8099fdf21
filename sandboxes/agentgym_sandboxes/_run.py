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
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from agentgym.errors import SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._pump import drain, pump

_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Launch:
    """One started command and how to end it."""

    process: subprocess.Popen[bytes]
    stdin: IO[bytes] | None
    stdout: IO[bytes]
    stderr: IO[bytes]
    reports: IO[bytes] | None = None
    """bwrap's own JSON reports, on a descriptor that the command itself does not have."""
    mark: bytes = b""
    """Without bwrap: the environment entry by which descendants are found."""

    def release(self) -> None:
        """Close our ends of the pipes."""
        for stream in (self.stdin, self.stdout, self.stderr, self.reports):
            if stream is not None:
                stream.close()

    def abort(self) -> None:
        """Kill the tree; may be called from another thread."""
        if self.mark:
            _kill_marked(self.mark, self.process.pid)
        elif self.process.poll() is None:
            # bwrap's death takes PID 1 of the sandbox with it, but only once that has asked for it: until then
            # both are in one process group.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

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
        if self.reports is not None:
            reported = _number(reports, "exit-code")
            if reported is None:
                raise SandboxError(f"bubblewrap ended with code {code} before it ran the command")
            return reported
        return code if code >= 0 else 128 - code


def run(launch: Launch, stdin: bytes, timeout: float, output_limit: int) -> ExecResult:
    """Feed, read and wait for a started command; at the timeout kill its whole tree."""
    began = time.monotonic()
    out, err, reports = BoundedBytes(output_limit), BoundedBytes(output_limit), BoundedBytes(1 << 12)
    sinks = {launch.stdout.fileno(): out, launch.stderr.fileno(): err}
    if launch.reports is not None:
        sinks[launch.reports.fileno()] = reports
    exited = os.pidfd_open(launch.process.pid)
    try:
        ended = pump(launch.stdin, stdin, sinks, exited, began + timeout)
        if not ended or launch.mark:
            launch.kill(reports.value())
        drain(sinks, time.monotonic() + _GRACE_S)
    except BaseException:  # an interrupt must not leave the command running
        launch.abort()
        launch.process.wait()
        raise
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


def start_isolated(argv: Callable[[int], list[str]], uid: int | None, *, stdin: bool) -> Launch:
    """Start a bwrap command line, which is given the descriptor for its reports."""
    return _start(argv, {"PATH": os.defpath}, stdin=stdin, reports=True, uid=uid)


def start_plain(argv: list[str], env: Mapping[str, str], *, stdin: bool) -> Launch:
    """Start a command with no isolation, marked so that its descendants can be found."""
    name, value = "AGENTGYM_COMMAND", secrets.token_hex(16)
    launch = _start(lambda _: argv, {**env, name: value}, stdin=stdin, reports=False, uid=None)
    return replace(launch, mark=f"{name}={value}".encode())


def _start(
    argv: Callable[[int], list[str]], env: Mapping[str, str], *, stdin: bool, reports: bool, uid: int | None
) -> Launch:
    """Start a command in its own session, with pipes.

    Raises:
        ValueError: the command cannot be expressed on this system, whatever the sandbox.
        SandboxError: this machine cannot start it now.
    """
    with ExitStack() as theirs, ExitStack() as ours:
        feed = _pipe(theirs, ours, uid, to_child=True) if stdin else None
        out, err = _pipe(theirs, ours, uid), _pipe(theirs, ours, uid)
        report = _pipe(theirs, ours, None) if reports else None
        keep = () if report is None else (report[1].fileno(),)
        words = argv(keep[0] if keep else -1)
        inlet = subprocess.DEVNULL if feed is None else feed[1]
        try:
            process = subprocess.Popen(
                words, stdin=inlet, stdout=out[1], stderr=err[1], env=dict(env), pass_fds=keep, start_new_session=True
            )
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise ValueError("the command and its environment are too long: pass the data in a file") from error
            raise SandboxError(f"cannot start {words[0]}: {error}") from error
        ours.pop_all()
        return Launch(process, feed and feed[0], out[0], err[0], report and report[0])


def _pipe(
    theirs: ExitStack, ours: ExitStack, uid: int | None, *, to_child: bool = False
) -> tuple[IO[bytes], IO[bytes]]:
    """Return our end and the child's end of a pipe that the sandbox's user may open again as /dev/stdout."""
    ends = os.pipe()
    if uid is not None:
        os.fchown(ends[0], uid, uid)
    for_reader, for_writer = (theirs, ours) if to_child else (ours, theirs)
    read = for_reader.enter_context(os.fdopen(ends[0], "rb", 0))
    write = for_writer.enter_context(os.fdopen(ends[1], "wb", 0))
    return (write, read) if to_child else (read, write)


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
