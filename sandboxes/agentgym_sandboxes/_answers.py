"""Waiting for what a supervisor answers, and saying whose fault it is that nothing comes."""

from __future__ import annotations

from collections.abc import Callable

from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._link import Link, Waiting

Failure = Callable[[str], Exception]
"""Says by the host's evidence alone why a sandbox does not answer."""


class Answers:
    """What everybody who asks one supervisor shares."""

    def __init__(self, link: Link, lifetime: Lifetime, failure: Failure) -> None:
        self.link = link
        self.lifetime = lifetime
        self._failure = failure

    def wait(self, waiting: Waiting, seconds: float, channel: int) -> None:
        """Return once the channel has its answer.

        Raises:
            SandboxError: the sandbox is closed, or its machinery failed.
            AgentFault: the sandbox's own processes took it down.
        """
        self.lifetime.left()
        try:
            if not waiting.ended.wait(seconds):
                raise self._failure(f"its supervisor has not answered for {seconds:.0f} s")
        finally:
            self.link.close_channel(channel)
        if waiting.gone:
            raise self._failure("its connection ended")
