"""The floor: the sandbox image's own programs on this machine, without isolation or in fresh namespaces."""

# ruff: noqa: ARG002 -- there is no sandbox to look at
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workers.worker import Box, Lacking, Session, System, serve

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}
_SOURCE = Path(__file__).with_name("namespaces.c")


class Bare(System):
    """Change the root to the image's files, then vfork and exec; or a small C program that isolates first."""

    has_life = False

    def __init__(self, namespaces: bool) -> None:
        self._namespaces = namespaces
        self._root = threading.Lock()

    def open(self, settings: Mapping[str, Any]) -> None:
        """Unpack the image's files."""
        super().open(settings)
        if os.geteuid():
            raise Lacking("needs root")
        self._folder = tempfile.TemporaryDirectory(prefix="agentgym-benchmark-")
        self._lower, scratch = Path(self._folder.name, "lower"), Path(self._folder.name, "scratch")
        for folder in (self._lower, scratch):
            folder.mkdir()
        self._prefix: list[str] = []
        if self._namespaces:
            self._prefix = [self._compile(), str(self._lower), str(scratch)]
        self._outside, self._inside = (os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in ("/", self._lower))
        labels = [word for pair in self.labels.items() for word in ("--label", "=".join(pair))]
        made = subprocess.run(["docker", "create", *labels, self.image, "true"], stdout=subprocess.PIPE, check=True)
        name = made.stdout.decode().strip()
        try:
            with subprocess.Popen(["docker", "export", name], stdout=subprocess.PIPE) as whole:
                subprocess.run(["tar", "-x", "-C", str(self._lower)], stdin=whole.stdout, check=True)
        finally:
            subprocess.run(["docker", "rm", "-fv", name], stdout=subprocess.DEVNULL, check=True)

    def start(self) -> Box:
        """There is nothing to start."""
        return None

    def execute(self, box: Box, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command; what it prints is not looked at."""
        if self._namespaces:
            child = os.posix_spawn(self._prefix[0], [*self._prefix, *argv], _ENVIRONMENT)
        else:
            with self._root:  # a process has but one root, whatever the number of its threads
                try:
                    self._move(self._inside)
                    child = os.posix_spawnp(argv[0], list(argv), _ENVIRONMENT)
                finally:
                    self._move(self._outside)
        _pid, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), ""

    def session(self, box: Box) -> Session:
        """There is no place for a shell to stay in."""
        raise Lacking("no sessions")

    def remove(self, box: Box) -> None:
        """There is nothing to remove."""

    def close(self) -> None:
        """Delete the image's files."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def _compile(self) -> str:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise Lacking("needs a C compiler")
        target = Path(self._folder.name, "namespaces")
        subprocess.run([compiler, "-O2", "-static", "-o", str(target), str(_SOURCE)], check=True)
        return str(target)

    def _move(self, root: int) -> None:
        os.chdir(root)
        os.chroot(".")


if __name__ == "__main__":
    serve(Bare(sys.argv[1] == "namespaces"))
