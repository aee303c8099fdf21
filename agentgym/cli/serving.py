"""`agentgym serve` and `agentgym sandbox serve`: environments, or sandboxes, for other processes and machines."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from agentgym import registry
from agentgym.cli.console import say
from agentgym.cli.places import Place, parse_options
from agentgym.errors import MissingExtraError
from agentgym.serving.server import serve as run_server


def serve_environment(
    place: Place,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    is_open: bool,
    expose: bool,
    bounds: Sequence[str],
) -> None:
    """Serve an environment until a signal comes."""
    try:
        run_server(
            place.maker(),
            name=place.name,
            host=host,
            port=port,
            token_file=token_file,
            is_open=is_open,
            expose=expose,
            bounds=parse_options(bounds),
            say=lambda line: say(line),
        )
    finally:
        place.close()


def serve(
    backend: str,
    options: Sequence[str],
    *,
    host: str,
    port: int,
    token_file: Path | None,
    expose: bool,
    limits: Sequence[str],
) -> None:
    """Serve a backend by name, through the server that an installed package brings (`agentgym.servers`)."""
    found = entry_points(group="agentgym.servers", name="sandbox")
    if not found:
        raise MissingExtraError("the server of sandboxes", "serve")
    run = next(iter(found)).load()
    lent = registry.create("sandboxes", backend, **parse_options(options))
    run(
        lent,
        host=host,
        port=port,
        token_file=token_file,
        expose=expose,
        limits=parse_options(limits),
        say=lambda line: say(line),
    )
