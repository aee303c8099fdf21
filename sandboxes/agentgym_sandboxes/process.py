"""Run on this machine under bubblewrap; without it, refuse unless the code is trusted."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from agentgym.errors import CapabilityError, SandboxError
from agentgym.sandbox import Capability, Contact, ExecResult, SandboxSpec, Shell, Terminal, require
from agentgym_sandboxes import _bwrap, _run, _scratch
from agentgym_sandboxes._command import absolute, refuse_user, variables, words
from agentgym_sandboxes._files import Folder
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._process_upkeep import ProcessUpkeep

logger = logging.getLogger(__name__)

_ISOLATED: frozenset[Capability] = frozenset(
    ("network_none", "network_full", "process_memory_limit", "pids_limit", "isolation")
)
_TRUSTED: frozenset[Capability] = frozenset(("network_full", "process_memory_limit"))
_WAIVED: frozenset[Capability] = frozenset(("network_none", "pids_limit"))
"""What `trusted: true` gives up, and says so, where bubblewrap does not work."""


class ProcessBackend:
    """Sandboxes made of namespaces by bubblewrap: no daemon, no image, the system's own programs, read-only.

    `memory_mb` bounds each process (an allocation beyond it fails, so `oom` is never reported), `pids` bounds each
    command, and one file may have 1 GB. No process outlives the command that started it.
    """

    name = "process"

    def __init__(self, trusted: bool = False) -> None:
        """Take `trusted=True` as the word that code may run without isolation where bubblewrap does not work."""
        self._trusted = trusted
        self._lock = threading.Lock()
        self._sandboxes: set[ProcessSandbox] = set()
        self._base: Path | None = None
        self._bubblewrap: _bwrap.Bubblewrap | None = None
        self.capabilities: frozenset[Capability] = _ISOLATED
        if trusted:
            self.check()

    def check(self) -> None:
        """Run one command in a real sandbox, once, after removing what dead owners left.

        Raises:
            SandboxError: what is missing and how to mend it.
        """
        with self._lock:
            if self._base is not None:
                return
            base = _scratch.base_folder()
            for name in _scratch.sweep(base):
                logger.info("removed a sandbox whose owner is dead name=%s", name)
            try:
                self._bubblewrap = _bwrap.find(base)
            except SandboxError as error:
                if not self._trusted:
                    raise
                logger.warning("running trusted code with no isolation, network or process limit: %s", error)
                self.capabilities = _TRUSTED
            self._base = base

    def accept(self, spec: SandboxSpec) -> None:
        """Refuse what a task asks for and these sandboxes lack."""
        self.check()
        require(spec, self.name, self.capabilities if self._bubblewrap else self.capabilities | _WAIVED)

    def start(self, spec: SandboxSpec) -> ProcessSandbox:
        """Start a fresh sandbox; it has no process until a command runs."""
        self.accept(spec)
        assert self._base is not None
        sandbox = ProcessSandbox(_scratch.create(self._base), spec, self._bubblewrap, self._forget)
        with self._lock:
            self._sandboxes.add(sandbox)
        return sandbox

    def fork(self, snapshot: str) -> ProcessSandbox:
        """Refuse: there are no snapshots."""
        raise CapabilityError(f"the 'process' sandbox has no 'snapshot', so no {snapshot!r}; choose another backend")

    def drop(self, snapshot: str) -> None:
        """Refuse: there are no snapshots."""
        raise CapabilityError(f"the 'process' sandbox has no 'snapshot', so no {snapshot!r}; choose another backend")

    def upkeep(self) -> ProcessUpkeep:
        """Return what looks after the folders of every run; see `agentgym.upkeep.Maintained`."""
        return ProcessUpkeep()

    def close(self) -> None:
        """End every sandbox that this backend started."""
        with self._lock:
            sandboxes = list(self._sandboxes)
        for sandbox in sandboxes:
            sandbox.close()

    def _forget(self, sandbox: ProcessSandbox) -> None:
        with self._lock:
            self._sandboxes.discard(sandbox)


class ProcessSandbox:
    """A private folder; every command gets its own namespaces around it."""

    def __init__(
        self,
        scratch: _scratch.Scratch,
        spec: SandboxSpec,
        bubblewrap: _bwrap.Bubblewrap | None,
        forget: Callable[[ProcessSandbox], None],
    ) -> None:
        isolated = bubblewrap is not None
        self.id = scratch.id
        self.workdir = _bwrap.WORKDIR if isolated else str(scratch.work)
        self._scratch = scratch
        self._spec = spec
        self._bubblewrap = bubblewrap
        self._forget = forget
        self._lifetime = Lifetime(scratch.id, spec.ttl_s)
        self._idle = threading.Condition()
        self._running: set[_run.Launch] = set()
        uid = scratch.uid if isolated else None
        tmp = "/tmp" if isolated else str(scratch.tmp)
        self._folders = {self.workdir: Folder(scratch.work, uid), tmp: Folder(scratch.tmp, uid)}

    def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes = b"",
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        output_limit: int = 65536,
    ) -> ExecResult:
        """Run a command; see `agentgym.sandbox.Sandbox`."""
        refuse_user(user, ProcessBackend.name)
        left = min(timeout, self._lifetime.left())
        where = absolute(cwd or self.workdir, self.workdir)
        launch = self._launch(words(command), where, variables(env), bool(stdin))
        try:
            return _run.run(launch, stdin, left, output_limit)
        except SandboxError as error:
            if self._lifetime.closed:
                raise SandboxError(f"sandbox {self.id} was closed while a command ran in it") from error
            raise
        finally:
            launch.release()
            with self._idle:
                self._running.discard(launch)
                self._idle.notify_all()

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        """Return a regular file's bytes."""
        folder, parts = self._place(path)
        return folder.read(parts, limit)

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file."""
        folder, parts = self._place(path)
        folder.write(parts, data)

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Write many files."""
        for path, data in files.items():
            self.write(path, data)

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        """Return the regular files below a folder."""
        folder, parts = self._place(path)
        return folder.tree(parts, max_files, max_bytes)

    def shell(self) -> Shell:
        """Refuse: no process outlives its command."""
        raise CapabilityError("the 'process' sandbox has no 'session'; choose another sandbox backend")

    def terminal(self, command: str | Sequence[str] = ("/bin/sh",), *, rows: int = 24, columns: int = 80) -> Terminal:  # noqa: ARG002
        """Refuse: no process outlives its command."""
        raise CapabilityError("the 'process' sandbox has no 'session'; choose another sandbox backend")

    def contacts(self) -> tuple[Contact, ...]:
        """Return nothing: there is no proxy here to ask."""
        return ()

    def snapshot(self) -> str:
        """Refuse: there is no filesystem layer to freeze."""
        raise CapabilityError("the 'process' sandbox has no 'snapshot'; choose another sandbox backend")

    def close(self) -> None:
        """Kill what runs, wait for its end and delete the folder."""
        with self._idle:
            self._lifetime.closed = True
            for launch in self._running:
                launch.abort()
            if not self._idle.wait_for(lambda: not self._running, timeout=20):
                raise SandboxError(f"sandbox {self.id} cannot be closed: a command in it does not end")
        self._scratch.remove()
        self._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _launch(self, argv: list[str], cwd: str, env: dict[str, str], stdin: bool) -> _run.Launch:
        with self._idle:
            self._lifetime.left()
            if self._bubblewrap is not None:
                build = partial(self._bubblewrap.command, self._scratch, self._spec, argv, cwd, env)
                launch = _run.start_isolated(build, self._scratch.uid, stdin=stdin)
            else:
                own = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(self._scratch.tmp)}
                bare = [*_bwrap.limits(self._spec, pids=False), *_bwrap.init(cwd, argv)]
                launch = _run.start_plain(bare, {**own, "TMPDIR": own["HOME"], **self._spec.env, **env}, stdin=stdin)
            self._running.add(launch)
        return launch

    def _place(self, path: str) -> tuple[Folder, tuple[str, ...]]:
        self._lifetime.left()
        whole = absolute(path, self.workdir)
        for top, folder in self._folders.items():
            if whole.startswith(top + "/") or whole == top:
                return folder, tuple(whole[len(top) + 1 :].split("/")) if whole != top else ()
        raise ValueError(f"{path!r} is outside of {' and '.join(self._folders)}, where this sandbox keeps files")
