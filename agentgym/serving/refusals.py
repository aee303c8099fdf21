"""Why a session is not begun, or a turn of it not taken."""

from __future__ import annotations

from agentgym.errors import AgentgymError, InfrastructureError


class FullError(AgentgymError):
    """The server has as many sessions as it allows."""


class EndingError(InfrastructureError):
    """The server ends."""


class UnknownSessionError(AgentgymError):
    """There is no such session, or none any more."""


class TurnTimeoutError(AgentgymError):
    """A turn took too long, and its session is gone."""


class CrashError(AgentgymError):
    """An environment raised what it should not; clients are not told what, for it may show what is hidden."""
