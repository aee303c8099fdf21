"""Until when a sandbox may be used, and the sentence it answers with afterwards."""

from __future__ import annotations

import time

from agentgym.errors import SandboxError


class Lifetime:
    """Counts down one sandbox's `ttl_s` and remembers that it was closed."""

    def __init__(self, sandbox_id: str, ttl_s: float) -> None:
        self._id = sandbox_id
        self._ends = time.monotonic() + ttl_s
        self.closed = False

    def renew(self, ttl_s: float) -> None:
        """Start to count anew."""
        self._ends = time.monotonic() + ttl_s

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._ends

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            SandboxError: there are none, or the sandbox was closed before.
        """
        if self.expired:
            raise SandboxError(f"sandbox {self._id} has ended: its ttl_s is over")
        if self.closed:
            raise SandboxError(f"sandbox {self._id} is closed")
        return self._ends - time.monotonic()
