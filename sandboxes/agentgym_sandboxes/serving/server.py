"""Serve a backend until a signal comes; nothing outlives the server."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentgym.errors import CapabilityError, MissingExtraError
from agentgym.listening import find_token, is_loopback, listen, url_of
from agentgym.sandbox import SandboxBackend

try:
    import uvicorn
except ImportError as error:
    raise MissingExtraError("uvicorn", "serve") from error
try:
    from agentgym_sandboxes.serving.app import create_app
except ModuleNotFoundError as error:
    raise MissingExtraError(str(error.name), "serve") from error

from agentgym_sandboxes.serving.desk import Desk
from agentgym_sandboxes.serving.limits import Limits

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "AGENTGYM_SANDBOX_TOKEN"
_DRAIN_S = 5
_IDLE_S = 75


def serve(
    backend: SandboxBackend,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token_file: Path | None = None,
    expose: bool = False,
    limits: Mapping[str, Any] | None = None,
    say: Callable[[str], None],
) -> None:
    """Lend a backend's sandboxes to clients that have the token, until SIGINT or SIGTERM.

    Args:
        backend: what is lent; closed at the end.
        host: the address to listen on; any but loopback needs `expose`.
        port: 0 takes a free one.
        token_file: holds the token; without it, AGENTGYM_SANDBOX_TOKEN does, or a new one is made and said once.
        expose: the word that other machines may reach this one.
        limits: fields of `Limits`.
        say: is told where the server is, and a new token.

    Raises:
        InfrastructureError: the backend does not work, the address is taken or not loopback, the token is too short.
        CapabilityError: the backend does not isolate.
        ValueError: an impossible limit.
    """
    bounds = _limits(limits or {})
    backend.check()
    if "isolation" not in backend.capabilities:
        raise CapabilityError(
            f"the {backend.name!r} sandbox does not isolate here, and what a server runs comes from elsewhere: serve a "
            "backend that has 'isolation'"
        )
    token, is_new = find_token(token_file, TOKEN_VARIABLE)
    with listen(host, port, expose=expose) as listener:
        where = url_of(listener)
        if is_new:
            say(f"token: {token}")
        if not is_loopback(listener.getsockname()):
            say(f"whoever has the token can run programs in sandboxes here, and {where} is not encrypted")
        desk = Desk(backend, bounds)
        config = uvicorn.Config(
            create_app(desk, token),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        say(f"serving {backend.name!r} sandboxes on {where}")
        try:
            # It ends a signal that ended it by raising that signal again, which is an interrupt here.
            with suppress(KeyboardInterrupt):
                _Server(config, desk).run(sockets=[listener])
        finally:
            desk.close()


class _Server(uvicorn.Server):
    """Tells who waits for an answer that none will come, before it waits for them."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._desk.drain()
        await super().shutdown(sockets)


def _limits(given: Mapping[str, Any]) -> Limits:
    try:
        return Limits.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Limits.model_fields)
        reason = f"there is no such limit; known: {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise CapabilityError(f"limit {where}: {reason}" if where else reason) from error
