"""Serve a backend until a signal comes; nothing outlives the server."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentgym.errors import CapabilityError, MissingExtraError, SandboxError
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
_SHORTEST_TOKEN = 16
_DRAIN_S = 5
_IDLE_S = 75
_BACKLOG = 1024


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
        SandboxError: the backend does not work, the address is taken or is not loopback, or the token is too short.
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
    token, is_new = find_token(token_file)
    with _listen(host, port, expose=expose) as listener:
        where = _url(listener)
        if is_new:
            say(f"token: {token}")
        if not _is_loopback(listener.getsockname()):
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


def find_token(file: Path | None) -> tuple[str, bool]:
    """Return the token from a file, the environment or a random source, and whether it is new.

    Raises:
        SandboxError: it cannot be read, is too short, or could not be sent.
    """
    if file is not None:
        try:
            token, where = file.read_text(encoding="utf-8").strip(), str(file)
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                logger.warning("other users can read the token in %s: chmod 600 mends that", file)
        except (OSError, UnicodeDecodeError) as error:
            advice = f"(umask 077; openssl rand -hex 32 > {file})"
            raise SandboxError(f"the token file {file} cannot be read: {error}; make one with: {advice}") from error
    elif TOKEN_VARIABLE in os.environ:
        token, where = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return secrets.token_urlsafe(32), True
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise SandboxError(
            f"the token in {where} must have at least {_SHORTEST_TOKEN} printable ASCII characters and no space; "
            "make one with: openssl rand -hex 32"
        )
    return token, False


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


def _listen(host: str, port: int, *, expose: bool) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if not _is_loopback(address) and not expose:
            raise SandboxError(
                f"{host} is not a loopback address: whoever reaches it and has the token could run programs on this "
                "machine, and nothing on the way is encrypted; say --expose if that is wanted, or let clients come "
                "through an SSH tunnel or a proxy that speaks TLS"
            )
        # asyncio turns off the waiting for more to send only where the protocol is named.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        raise SandboxError(f"cannot listen on {host} port {port}: {error}; choose another --host or --port") from error


def _is_loopback(address: Sequence[Any]) -> bool:
    return ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
