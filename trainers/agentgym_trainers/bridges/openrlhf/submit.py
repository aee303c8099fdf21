"""Starts OpenRLHF, here or as a job of a Ray cluster, and ends it when we end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentgym.errors import AgentgymError
from agentgym_trainers.bridges.openrlhf.argv import MODULE
from agentgym_trainers.bridges.openrlhf.options import Options

_GRACE_S = 30.0
_RAY = (sys.executable, "-m", "ray.scripts.scripts")


class TrainingFailedError(AgentgymError):
    """OpenRLHF ended before its last step; its checkpoints and its log are in the run's folder."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is started."""

    words: Sequence[str]
    """The script's options."""
    address: str | None
    """Of a Ray cluster's dashboard; None starts the script here."""
    name: str
    """Under which a cluster knows the job."""
    log: Path

    @property
    def command(self) -> list[str]:
        """The command line."""
        script = ["-m", MODULE, *self.words]
        if self.address is None:
            return [sys.executable, *script]
        return [
            *_RAY,
            "job",
            "submit",
            "--address",
            self.address,
            "--submission-id",
            self.name,
            "--",
            "python3",
            *script,
        ]

    @property
    def stop(self) -> list[str]:
        """The command line that ends a cluster's job."""
        return [*_RAY, "job", "stop", "--address", str(self.address), self.name]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start it, and end it with the block."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as sink:
            process = subprocess.Popen(
                self.command, cwd=self.log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                self._end(process)

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Raise if it ended badly.

        Raises:
            TrainingFailedError: with the last error of its log.
        """
        if process.returncode:
            raise TrainingFailedError(
                f"OpenRLHF ended with code {process.returncode}: {_last_error(self.log)}; its log is {self.log}"
            )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if self.address is not None:
            subprocess.run(
                self.stop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_GRACE_S, check=False
            )
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def lines(options: Options, words: Sequence[str]) -> list[str]:
    """Return what a person would type to start the training on its machines."""
    found = [
        "# on the first machine",
        f"ray start --head --node-ip-address 0.0.0.0 --num-gpus {options.gpus_per_node}",
    ]
    if options.nodes > 1:
        others = f"# on each of the other {options.nodes - 1}, HEAD being the first one's address"
        found += [others, f"ray start --address HEAD:6379 --num-gpus {options.gpus_per_node}"]
    address = options.address or "http://127.0.0.1:8265"
    return [*found, "", f"ray job submit --address {address} -- python3 -m {MODULE} \\", *_wrapped(words)]


def _wrapped(words: Sequence[str]) -> Iterator[str]:
    """Yield a line per option, joined by backslashes."""
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    for begin, end in zip(starts, [*starts[1:], len(words)], strict=True):
        yield f"  {shlex.join(words[begin:end])}" + (" \\" if end < len(words) else "")


def _last_error(log: Path) -> str:
    """Return the line of a log that most likely says what went wrong."""
    text = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in text if "Error" in line.partition(":")[0]]
    return (errors or text or ["it wrote nothing"])[-1][:400]
