"""What is measured of a system, the same for all: the clock runs around its own call, which is checked afterwards."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.workers.worker import Box, Lacking, System, expect

TRUE = ["/bin/true"]
PYTHON = ["python3", "-c", "pass"]
FOLDER = "/tmp/many"
MANY = 1000
SESSION = 20
_STEP = "n=$((${n:-0} + 1)); /bin/true"


class Figures:
    """One system, and the sandbox that its commands run in. Every figure is a list of seconds, unless it says else."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._box: Box = None
        self._is_open = False
        self._crowd: list[Box] = []
        self._filled = False

    def open(self, **settings: Any) -> dict[str, Any]:
        """Prepare the system; return this process's id."""
        self._system.open(settings)
        self._is_open = True
        return {"pid": os.getpid()}

    def life(self) -> Mapping[str, list[float]]:
        """Start a sandbox, run a command, remove the sandbox."""
        if not self._system.has_life:
            raise Lacking("nothing to start")
        self._system.before_start()
        began = perf_counter()
        box = self._system.start()
        started = perf_counter()
        code, _out = self._system.execute(box, TRUE)
        first = perf_counter()
        expect(code, 0, "exit code")
        leaving = perf_counter()
        self._system.remove(box)
        found = {"start": [started - began], "first": [first - began], "remove": [perf_counter() - leaving]}
        self._system.settle()
        return found

    def true(self) -> Mapping[str, list[float]]:
        """Run the shortest command."""
        return {"true": [self._timed(TRUE)]}

    def python(self) -> Mapping[str, list[float]]:
        """Run a short program."""
        return {"python": [self._timed(PYTHON)]}

    def session(self) -> Mapping[str, list[float]]:
        """Open a shell, run commands that build on one another, close it."""
        box, singles = self._main(), []
        began = perf_counter()
        session = self._system.session(box)
        for _ in range(SESSION):
            before = perf_counter()
            session.run(_STEP)
            singles.append(perf_counter() - before)
        ran = perf_counter() - began
        kept = session.run("echo ${n:-0}").strip()
        closing = perf_counter()
        session.close()
        whole = ran + perf_counter() - closing
        expect(kept, str(SESSION if self._system.has_sessions else 0), "the shell's memory")
        return {"session": [whole], **({"session-command": singles} if self._system.has_sessions else {})}

    def megabyte(self) -> Mapping[str, list[float]]:
        """Write and read a file of 1 MB."""
        box = self._main()
        data = random.randbytes(500_000).hex().encode()
        began = perf_counter()
        self._system.write(box, "/tmp/large", data)
        written = perf_counter()
        found = self._system.read(box, "/tmp/large")
        ended = perf_counter()
        expect(found == data, True, "whether the file came back whole")
        return {"write-large": [written - began], "read-large": [ended - written]}

    def thousand(self) -> Mapping[str, list[float]]:
        """Write and read 1,000 files of 4 kB."""
        box = self._main()
        with tempfile.TemporaryDirectory() as folder:
            files = _many_files(Path(folder))
            began = perf_counter()
            self._system.upload(box, FOLDER, folder)
            written = perf_counter()
        found = self._system.download(box, FOLDER)
        ended = perf_counter()
        self._filled = True
        expect(found == files, True, "whether the files came back whole")
        return {"write-many": [written - began], "read-many": [ended - written]}

    def fork(self) -> Mapping[str, list[float]]:
        """Branch from a sandbox with 1,000 changed files."""
        box = self._main()
        if not self._filled:
            with tempfile.TemporaryDirectory() as folder:
                _many_files(Path(folder))
                self._system.upload(box, FOLDER, folder)
            self._filled = True
        self._system.before_start()
        began = perf_counter()
        other = self._system.fork(box)
        took = perf_counter() - began
        _code, out = self._system.execute(other, ["/bin/sh", "-c", f"ls {FOLDER} | wc -l"])
        self._system.unfork(other)
        self._system.settle()
        expect(out.strip(), str(MANY), "the number of files in the fork")
        return {"fork": [took]}

    def gather(self, count: int) -> dict[str, Any]:
        """Have `count` sandboxes idle; return their containers, and how long each new one took."""
        took = []
        while len(self._crowd) < count:
            began = perf_counter()
            self._crowd.append(self._system.start())
            took.append(perf_counter() - began)
        names = []
        with suppress(Lacking):
            names = [name for box in self._crowd for name in self._system.containers(box)]
        return {"containers": names, "seconds": took}

    def crowd(self, at_once: int, each: int) -> Mapping[str, list[float]]:
        """Run `true` in many sandboxes at once; commands per second."""
        boxes = self._crowd[:at_once]
        expect(len(boxes), at_once, "the number of sandboxes")
        began = perf_counter()
        self._system.together(boxes, TRUE, each)
        return {f"at-{at_once}": [at_once * each / (perf_counter() - began)]}

    def disperse(self) -> Mapping[str, list[float]]:
        """Remove the idle sandboxes."""
        while self._crowd:
            self._system.discard(self._crowd.pop())
        return {}

    def close(self) -> None:
        """Leave nothing behind."""
        if not self._is_open:
            return
        try:
            self.disperse()
            if self._box is not None:
                self._system.discard(self._box)
        finally:
            self._system.close()

    def _timed(self, argv: list[str]) -> float:
        box = self._main()
        began = perf_counter()
        code, _out = self._system.execute(box, argv)
        took = perf_counter() - began
        expect(code, 0, "exit code")
        return took

    def _main(self) -> Box:
        if self._box is None:
            self._box = self._system.start()
            self._system.execute(self._box, TRUE)
        return self._box


def _many_files(folder: Path) -> dict[str, bytes]:
    files = {f"file-{index}.txt": random.randbytes(4096) for index in range(MANY)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files
