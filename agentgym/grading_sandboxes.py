"""The sandboxes that a grading starts, which whoever closes the environment can end from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from agentgym.errors import SandboxError
from agentgym.sandbox import Capability, Sandbox, SandboxBackend, SandboxSpec


class GradingSandboxes:
    """A backend for one grading: it passes everything on, and remembers what was started.

    The real backend is looked for when it is first needed, for most gradings need none.
    """

    def __init__(self, find: Callable[[], SandboxBackend]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._boxes: list[Sandbox] = []
        self._ended = False

    @property
    def backend(self) -> SandboxBackend:
        """The real one."""
        return self._find()

    @property
    def name(self) -> str:
        """The real backend's."""
        return self.backend.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the real backend can do, which may be known only once it was asked."""
        return self.backend.capabilities

    def check(self) -> None:
        """Ask the real backend."""
        self.backend.check()

    def accept(self, spec: SandboxSpec) -> None:
        """Ask the real backend."""
        self.backend.accept(spec)

    def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox.

        Raises:
            SandboxError: it could not be started, or the grading was ended.
        """
        self._refuse_if_ended()
        return self._kept(self.backend.start(spec))

    def fork(self, snapshot: str) -> Sandbox:
        """Fork a sandbox.

        Raises:
            SandboxError: it could not be started, or the grading was ended.
        """
        self._refuse_if_ended()
        return self._kept(self.backend.fork(snapshot))

    def drop(self, snapshot: str) -> None:
        """Free a snapshot."""
        self.backend.drop(snapshot)

    def close(self) -> None:
        """End the grading: what was started is closed, which also ends the commands in it, and nothing more starts."""
        with self._lock:
            self._ended = True
            boxes, self._boxes = self._boxes, []
        for box in boxes:
            box.close()

    def _kept(self, box: Sandbox) -> Sandbox:
        with self._lock:
            if not self._ended:
                self._boxes.append(box)
                return box
        box.close()
        raise self._gone()

    def _refuse_if_ended(self) -> None:
        if self._ended:
            raise self._gone()

    @staticmethod
    def _gone() -> SandboxError:
        return SandboxError("the environment was closed while it was graded")
