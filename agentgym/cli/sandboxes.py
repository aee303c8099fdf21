"""`agentgym sandbox`: the commands about the places where agent code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

group = typer.Typer(help="See, mend and lend the places where agent code runs.", no_args_is_help=True)

TokenFile = Annotated[
    Optional[Path],  # noqa: UP045 -- read by typer at run time
    typer.Option(help="Holds the token; by default AGENTGYM_SANDBOX_TOKEN does, or a new one is printed."),
]


@group.command()
def serve(
    options: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[KEY=VALUE]…", help="Options of the backend, such as image=NAME."),
    ] = None,
    backend: Annotated[str, typer.Option(help="Which sandboxes to lend: docker, process, …")] = "docker",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8765,
    token_file: TokenFile = None,
    expose: Annotated[bool, typer.Option("--expose", help="Let other machines reach this one.")] = False,
    limit: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="KEY=VALUE", help="A bound for clients, such as sandboxes=64; may be repeated."),
    ] = None,
) -> None:
    """Lend this machine's sandboxes over HTTP to `--sandbox remote` of other processes and machines.

    Clients need the token. One that dies or falls silent loses its sandboxes, and nobody else's.

    Example: `agentgym sandbox serve --backend docker --token-file ~/.agentgym-token`
    """
    from agentgym.cli import serving

    serving.serve(
        backend,
        options or [],
        host=host,
        port=port,
        token_file=token_file,
        expose=expose,
        limits=limit or [],
    )
