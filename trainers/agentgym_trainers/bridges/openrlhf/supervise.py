"""Runs a command for a launcher, and ends it once that is gone, however it went: `python -m ...supervise PLAN COMMAND`.

The launcher keeps the other end of standard input open for as long as it lives; the system closes it even for one that
is killed. Unlike a signal at a parent's death, that is tied to no thread, and leaves time to end a cluster's job too.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def supervised(command: Sequence[str], stop: Sequence[str] | None, grace_s: float) -> list[str]:
    """Return the command line that runs a command under supervision.

    Start it with a pipe as standard input, and in a session of its own: its process group is what is ended.

    Args:
        command: what to run; it reads nothing.
        stop: a command line that ends what the command began elsewhere; None if it began nothing there.
        grace_s: how long it may take to end once it was interrupted, before it is killed.
    """
    plan = json.dumps({"stop": stop, "grace_s": grace_s})
    return [sys.executable, "-P", "-m", __name__, plan, *command]


def main() -> int:
    """Run the command and return its exit code, 128 and the signal's number more for one that a signal ended."""
    plan, command = json.loads(sys.argv[1]), sys.argv[2:]
    # An interrupt of the group means the command; unlike one that is ignored, a handler is not inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_dying_with(os.getpid()))
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    threading.Thread(target=_watch, args=(process, plan["stop"], plan["grace_s"]), daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def _watch(process: subprocess.Popen[bytes], stop: Sequence[str] | None, grace_s: float) -> None:
    while os.read(0, 1):
        continue
    try:
        sys.stdout.write("the launcher is gone, so this training ends\n")
        sys.stdout.flush()
        if stop is not None:
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(stop, stdin=subprocess.DEVNULL, timeout=grace_s, check=False)
        os.killpg(0, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    finally:
        os.killpg(0, signal.SIGKILL)


def _dying_with(parent: int) -> Callable[[], None] | None:
    """Return what a child runs before its program, so that it ends even with a parent that is killed itself.

    Only the thread that starts it counts as its parent, so that must be one that stays.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # loaded before the fork

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before it was asked for
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


if __name__ == "__main__":
    sys.exit(main())
