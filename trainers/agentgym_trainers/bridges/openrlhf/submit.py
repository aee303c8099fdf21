"""Starts OpenRLHF, here or as a job of a Ray cluster, and ends it when we end."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agentgym.errors import AgentgymError
from agentgym_trainers.bridges.openrlhf.argv import MODULE
from agentgym_trainers.bridges.openrlhf.options import Options
from agentgym_trainers.bridges.openrlhf.supervise import supervised

logger = logging.getLogger(__name__)
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
        """Start it, and end it with the block, or with this process if that is killed."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        command = supervised(self.command, self.stop if self.address is not None else None, _GRACE_S)
        with self.log.open("ab") as sink:
            process = subprocess.Popen(
                command, cwd=self.log.parent, env=environment, stdin=subprocess.PIPE, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with process.stdin:  # closed last: what supervises the training would end it then
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
        try:
            if self.address is not None:
                self._end_on_cluster()
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:  # also where a person has lost patience meanwhile
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _end_on_cluster(self) -> None:
        try:
            told = subprocess.run(self.stop, capture_output=True, text=True, timeout=_GRACE_S, check=False)
            reason = _last(told.stderr) or f"code {told.returncode}" if told.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"no answer within {_GRACE_S:g} s"
        if reason:
            logger.warning(
                "the job %s may go on, for %s did not end it: %s; end it with: ray job stop --address %s %s",
                self.name, self.address, reason, self.address, self.name,
            )  # fmt: skip


def lines(options: Options, words: Sequence[str], resources: Mapping[str, int] | None = None) -> list[str]:
    """Return what a person would type to start the training on its machines, which offer custom resources, if any."""
    offers = f"--num-gpus {options.gpus_per_node}"
    if resources:
        offers += f" --resources {shlex.quote(json.dumps(dict(resources)))}"
    found = ["# on the first machine", f"ray start --head --node-ip-address 0.0.0.0 {offers}"]
    if options.nodes > 1:
        others = f"# on each of the other {options.nodes - 1}, HEAD being the first one's address"
        found += [others, f"ray start --address HEAD:6379 {offers}"]
    address = options.address or "http://127.0.0.1:8265"
    return [*found, "", f"ray job submit --address {address} -- python3 -m {MODULE} \\", *_wrapped(words)]


def _wrapped(words: Sequence[str]) -> Iterator[str]:
    """Yield a line per option, joined by backslashes."""
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    for begin, end in zip(starts, [*starts[1:], len(words)], strict=True):
        yield f"  {shlex.join(words[begin:end])}" + (" \\" if end < len(words) else "")


def _last_error(log: Path) -> str:
    """Return the line of a log that most likely says what went wrong."""
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = "\n".join(line for line in text.splitlines() if "Error" in line.partition(":")[0])
    return _last(errors) or _last(text) or "it wrote nothing"


def _last(text: str) -> str:
    """Return the last line that says anything."""
    return next((line.strip()[:400] for line in reversed(text.splitlines()) if line.strip()), "")
