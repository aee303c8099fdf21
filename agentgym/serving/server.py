"""Serve an environment until a signal comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentgym.env import AgentEnv
from agentgym.errors import CapabilityError, MissingExtraError
from agentgym.listening import find_token, is_loopback, listen, url_of
from agentgym.serving.sessions import Bounds, Sessions

TOKEN_VARIABLE = "AGENTGYM_ENV_TOKEN"
_DRAIN_S = 5


def serve(
    make_env: Callable[[], AgentEnv],
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    is_open: bool = False,
    expose: bool = False,
    bounds: Mapping[str, Any] | None = None,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; every session is ended then.

    Args:
        make_env: makes each session's environment.
        name: what clients are told it is.
        host: the address to listen on; any but loopback needs `expose`.
        port: 0 takes a free one.
        token_file: holds the token; without it, AGENTGYM_ENV_TOKEN does, or a new one is made and said once.
        is_open: let in whoever reaches a loopback address, without a token.
        expose: the word that other machines may reach this one.
        bounds: fields of `Bounds`.
        say: is told where the server is, and a new token.

    Raises:
        InfrastructureError: the address is taken or is not loopback, or the token is too short.
        CapabilityError: an impossible bound, or no token on an address that others reach.
        MissingExtraError: a package is not installed.
    """
    try:
        import uvicorn

        from agentgym.serving.app import create_app
        from agentgym.serving.patience import KEPT_S, impatient
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error

    token, is_new = (None, False) if is_open else find_token(token_file, TOKEN_VARIABLE)
    sessions = Sessions(make_env, _bounds(bounds or {}))
    description = (make_env().__doc__ or "").strip().partition("\n")[0]
    with listen(host, port, expose=expose) as listener:
        if not is_loopback(listener.getsockname()):
            if token is None:
                raise CapabilityError("a server that other machines reach wants a token; leave out --open")
            say(f"whoever has the token can run episodes here, and {url_of(listener)} is not encrypted")
        if is_new:
            say(f"token: {token}")
        config = uvicorn.Config(
            create_app(sessions, token, name=name, description=description),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_S,
            timeout_keep_alive=KEPT_S,
            http=impatient(sessions.bounds.patience_s),
            ws_max_size=sessions.bounds.message_bytes,
        )
        say(f"serving {name} on {url_of(listener)}")
        # It ends a signal that ended it by raising that signal again, which is an interrupt here.
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _bounds(given: Mapping[str, Any]) -> Bounds:
    try:
        return Bounds.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(Bounds.model_fields)
        reason = f"there is no such bound; known: {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise CapabilityError(f"bound {where}: {reason}") from error
