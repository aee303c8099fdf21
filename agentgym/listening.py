"""Where a server listens and whom it lets in: loopback by default, and nobody without the token."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from agentgym.errors import InfrastructureError

logger = logging.getLogger(__name__)

_SHORTEST_TOKEN = 16
_BACKLOG = 1024


def find_token(file: Path | None, variable: str) -> tuple[str, bool]:
    """Return the token from a file, an environment variable or a random source, and whether it is new.

    Raises:
        InfrastructureError: it cannot be read, is too short, or could not be sent.
    """
    if file is not None:
        try:
            token, where = file.read_text(encoding="utf-8").strip(), str(file)
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                logger.warning("other users can read the token in %s: chmod 600 mends that", file)
        except (OSError, UnicodeDecodeError) as error:
            advice = f"(umask 077; openssl rand -hex 32 > {file})"
            raise InfrastructureError(
                f"the token file {file} cannot be read: {error}; make one with: {advice}"
            ) from error
    elif variable in os.environ:
        token, where = os.environ[variable].strip(), variable
    else:
        return secrets.token_urlsafe(32), True
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InfrastructureError(
            f"the token in {where} must have at least {_SHORTEST_TOKEN} printable ASCII characters and no space; "
            "make one with: openssl rand -hex 32"
        )
    return token, False


def listen(host: str, port: int, *, expose: bool) -> socket.socket:
    """Return a socket that listens; another address than loopback wants the word `expose`.

    Raises:
        InfrastructureError: the address is taken, unknown, or not loopback.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if not is_loopback(address) and not expose:
            raise InfrastructureError(
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
        raise InfrastructureError(
            f"cannot listen on {host} port {port}: {error}; choose another --host or --port"
        ) from error


def is_loopback(address: Sequence[object]) -> bool:
    """Whether only this machine reaches a socket's address."""
    return ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """Return where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Door:
    """Knows the token without keeping it."""

    def __init__(self, token: str) -> None:
        self._digest = _sha(token)

    def opens(self, authorization: str) -> bool:
        """Whether a request's Authorization header carries the token.

        Digests have one length, so that the comparison's duration tells nothing, not even that.
        """
        scheme, _, given = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_sha(given), self._digest)


def _sha(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
