"""The systems that are compared, each in a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_ANSWER_S = 120.0
_GATHER_S = 900.0
_GOODBYE_S = 90.0


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """One column of the table."""

    key: str
    title: str
    worker: str
    """The module that runs it, and its argument."""
    peer: str | None = None
    """The requirement to install, if it is somebody else's."""
    note: str = ""
    asks: frozenset[str] | None = None
    """What is asked of it; None is everything."""


_POOLED = frozenset(("life", "fork"))
"""Once it has started, a warm sandbox is like any other."""

SYSTEMS = {
    one.key: one
    for one in (
        SystemInfo("bare", "floor: bare", "bare plain", note="fork, chroot into the image's files, exec"),
        SystemInfo("namespaces", "floor: overlay", "bare namespaces", note="unshare, mount an overlay, fork, exec"),
        SystemInfo("process", "agentgym process", "ours process", note="this machine's own programs, not the image's"),
        SystemInfo("docker", "agentgym docker", "ours docker"),
        SystemInfo("pool", "agentgym docker, warm", "ours pool", None, "removal ends after the answer", _POOLED),
        SystemInfo("docker-exec", "docker exec (SDK)", "docker_exec", note="writable root"),
        SystemInfo("swe-rex", "SWE-ReX", "peer_swe_rex", "swe-rex==1.4.0", "network on: it needs a published port"),
        SystemInfo("inspect_ai", "inspect_ai", "peer_inspect_ai", "inspect_ai==0.3.285", "many files as one archive"),
        SystemInfo("llm-sandbox", "llm-sandbox", "peer_llm_sandbox", "llm-sandbox==0.3.46", "runs as root"),
    )
}


class WorkerError(Exception):
    """A system's process ended or does not answer."""


class Worker:
    """One system's process; used as a `with` block, at whose end it has left nothing behind."""

    def __init__(self, system: SystemInfo, python: str = sys.executable) -> None:
        self.system = system
        self._python = python
        self._settings: Mapping[str, Any] = {}
        self.is_well = True
        self._begin()

    def _begin(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by wait()
        module, *words = self.system.worker.split()
        # An interrupt from the keyboard is the benchmark's alone: it hangs up, and every system tidies up in peace.
        self._process = subprocess.Popen(
            [self._python, "-m", f"benchmarks.workers.{module}", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def open(self, **settings: Any) -> Mapping[str, Any]:
        """Have the system prepare itself."""
        self._settings = settings
        return self.ask("open", **settings)

    def restart(self) -> None:
        """Replace a process that ended or hangs; what it held in Docker goes at the end of the benchmark.

        Raises:
            WorkerError: the new one is no better.
        """
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.hang_up()
        self.wait()
        self._begin()
        if "figures" not in self.ask("open", **self._settings):
            raise WorkerError(f"{self.system.title} could not be started again")

    def ask(self, do: str, **arguments: Any) -> Mapping[str, Any]:
        """Have one thing measured.

        Raises:
            WorkerError: the process ended, or said nothing for long.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._last_words("ended")) from None
        patience = _GATHER_S if do in ("gather", "disperse") else _ANSWER_S
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise WorkerError(self._last_words(f"did not answer to {do!r} for {patience:.0f} s"))
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._last_words("ended"))
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def hang_up(self) -> None:
        """Tell the process to remove what it has and to end."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            self._process.poll()

    def wait(self) -> None:
        """Wait for its end, and end it if that takes too long."""
        deadline = time.monotonic() + _GOODBYE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _last_words(self, what: str) -> str:
        self._log.seek(0)
        words = self._log.read().strip().splitlines()
        return f"{self.system.title} {what}{': ' + words[-1] if words else ''}"
