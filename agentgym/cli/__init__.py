"""The command line: the only part that prints. Commands import what they need when they run."""

from __future__ import annotations

import signal
import sys

from agentgym.cli.app import app
from agentgym.cli.console import errors
from agentgym.errors import AgentgymError

__all__ = ["app", "main"]


def main() -> None:
    """Run one command; a failure of ours is one sentence and exit code 2, an interrupt is 130."""
    # Both end a command the same way, with everything closed that it had opened.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except AgentgymError as error:
        if errors.debug:
            raise
        errors.tell(str(error))
        sys.exit(2)
