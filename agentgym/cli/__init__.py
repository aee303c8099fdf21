"""The command line: the only part that prints. Commands import what they need when they run."""

from __future__ import annotations

import os
import signal
import sys
import threading

from agentgym.cli.app import app
from agentgym.cli.console import errors
from agentgym.errors import AgentgymError

__all__ = ["app", "main"]


def main() -> None:
    """Run one command; a failure of ours is one sentence and exit code 2, an interrupt is 130."""
    # Both end a command the same way, with everything closed that it had opened, also in a script's background job,
    # which is started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    code: int | str | None = 0
    try:
        app()
    except AgentgymError as error:
        if errors.debug:
            raise
        errors.tell(str(error))
        code = 2
    except SystemExit as end:
        code = end.code
    _leave_hanging_steps(code)
    sys.exit(code)


def _leave_hanging_steps(code: int | str | None) -> None:
    """End the process now if a step of an environment never returned: Python would wait for its thread for ever."""
    if any(one.name.startswith("episode") and one.is_alive() for one in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
