"""What runs commands in one way, as a process of its own that the benchmark asks for figures, line by line.

Standard library only: a peer's process runs under an interpreter that has the peer and nothing of ours.
"""
# ruff: noqa: ARG002, B027 -- what most systems have, and what few need, is refused or empty here

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Box = Any
"""A running sandbox, as the system itself knows it."""
T = TypeVar("T")


class Lacking(Exception):  # noqa: N818 -- not an error: the table says it
    """The system has no such thing, in a few words."""


class Session(Protocol):
    """Commands that follow one another."""

    def run(self, script: str) -> str:
        """Run a script and return what it printed."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class System(ABC):
    """One way to run commands; each method is the whole of what is timed."""

    has_sessions = False
    has_life = True
    """Whether there is something to start and to remove."""

    def open(self, settings: Mapping[str, Any]) -> None:
        """Prepare what all sandboxes share; never timed."""
        self.image: str = settings["image"]
        self.labels: dict[str, str] = settings["labels"]

    @abstractmethod
    def start(self) -> Box:
        """Start a sandbox that can take commands."""

    @abstractmethod
    def execute(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command and return its exit code and its output."""

    def before_start(self) -> None:
        """Do what happens while nobody waits, such as filling a pool; never timed."""

    def settle(self) -> None:
        """Wait for what goes on behind an answer, so that it disturbs no other figure; never timed."""

    def session(self, box: Box) -> Session:
        """Open a shell that remembers, or what stands in for it: a new shell for each script."""
        return Scripts(self, box)

    def together(self, boxes: Sequence[Box], argv: Sequence[str], each: int) -> None:
        """Run a command `each` times in a row in every sandbox, all sandboxes at once."""

        def several(box: Box) -> None:
            for _ in range(each):
                code, _out = self.execute(box, argv)
                expect(code, 0, "exit code")

        with ThreadPoolExecutor(len(boxes)) as threads:
            list(threads.map(several, boxes))

    def write(self, box: Box, path: str, data: bytes) -> None:
        """Write one file."""
        raise Lacking("no files")

    def read(self, box: Box, path: str) -> bytes:
        """Read one file."""
        raise Lacking("no files")

    def upload(self, box: Box, folder: str, host_folder: str) -> None:
        """Write many files: what is directly in a folder of this machine."""
        raise Lacking("no files")

    def download(self, box: Box, folder: str) -> dict[str, bytes]:
        """Read many files."""
        raise Lacking("no files")

    def fork(self, box: Box) -> Box:
        """Start another sandbox with the files of this one."""
        raise Lacking("no fork")

    def unfork(self, box: Box) -> None:
        """Remove a forked sandbox and what its fork left; never timed."""
        self.remove(box)

    def containers(self, box: Box) -> list[str]:
        """Return the containers that a sandbox consists of."""
        raise Lacking("no containers")

    @abstractmethod
    def remove(self, box: Box) -> None:
        """End a sandbox and remove every trace."""

    def discard(self, box: Box) -> None:
        """Remove a sandbox in the quickest way; never timed."""
        self.remove(box)

    def close(self) -> None:
        """Let go of everything."""


class Scripts:
    """A new shell for each script, where a system has no shell that stays."""

    def __init__(self, system: System, box: Box) -> None:
        self._system, self._box = system, box

    def run(self, script: str) -> str:
        """Run a script."""
        return self._system.execute(self._box, ["/bin/sh", "-c", script])[1]

    def close(self) -> None:
        """There is nothing to end."""


class AsyncSystem(System):
    """A system whose own calls are coroutines."""

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make the loop that all calls share."""
        super().open(settings)
        self.runner = asyncio.Runner()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.runner.run(call)

    @abstractmethod
    async def execute_async(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command."""

    def execute(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command and return its exit code and its output."""
        return self.wait(self.execute_async(box, argv))

    def together(self, boxes: Sequence[Box], argv: Sequence[str], each: int) -> None:
        """Run a command in every sandbox at once, on one loop."""

        async def several(box: Box) -> None:
            for _ in range(each):
                code, _out = await self.execute_async(box, argv)
                expect(code, 0, "exit code")

        async def everywhere() -> None:
            await asyncio.gather(*map(several, boxes))

        self.wait(everywhere())

    def close(self) -> None:
        """End the loop."""
        self.runner.close()


def expect(found: object, wanted: object, what: str) -> None:
    """Refuse a figure of something that did not do what it was asked."""
    if found != wanted:
        raise AssertionError(f"wanted {wanted!r} as {what}, found {found!r}")


def serve(system: System) -> None:
    """Answer the benchmark's questions until it hangs up, and leave nothing behind."""
    from benchmarks.workers.figures import Figures

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a system prints is no answer
    figures = Figures(system)
    try:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(figures, json.loads(line))) + "\n")
            answers.flush()
    finally:
        figures.close()


def _answer(figures: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    method: Callable[..., Any] = getattr(figures, asked["do"])
    try:
        return {"figures": method(**asked["with"])}
    except Lacking as error:
        return {"lacking": str(error)}
    except Exception as error:  # noqa: BLE001 -- one system's failure is a cell of the table, not the end of the run
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}
