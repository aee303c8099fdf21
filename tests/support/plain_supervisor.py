"""A supervisor as a plain child of the tests, with two pipes and no sandbox around it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from agentgym_sandboxes._link import Hub, Link
from agentgym_sandboxes._supervisor import program


class PipeWire:
    """See `_link.Wire`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._number = self._stdout.fileno()

    def fileno(self) -> int:
        return self._number

    def output(self) -> int:
        return self._stdin.fileno()

    def receive(self) -> bytes | None:
        try:
            return os.read(self._number, 1 << 18)
        except BlockingIOError:
            return None

    def send(self, data: memoryview) -> int:
        return os.write(self._stdin.fileno(), data)

    def close(self) -> None:
        self._stdin.close()
        self._stdout.close()


class PlainSupervisor:
    """Starts it and connects to it; used as a `with` block."""

    def __init__(self, path: Path | None = None, env: dict[str, str] | None = None) -> None:
        argv = [str(path or program()), "600"]
        pipes = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipes, stdout=pipes, stderr=pipes, env=env, bufsize=0)
        self._hub = Hub("test-supervisor")
        self.link = Link(self._hub, PipeWire(self.process))

    def complaints(self) -> bytes:
        """End it and return what it wrote to stderr."""
        self.link.hang_up()
        assert self.process.stderr is not None
        said: bytes = self.process.stderr.read()
        self.process.wait(30)
        return said

    def __enter__(self) -> Self:
        self.link.greeting(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.link.hang_up()
        self._hub.close()
        self.process.wait(30)
        if self.process.stderr is not None:
            self.process.stderr.close()
