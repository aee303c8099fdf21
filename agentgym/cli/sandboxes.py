"""`agentgym sandbox`: the commands about the places where agent code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

_HELP = """See, mend and lend the places where agent code runs.

Example: `agentgym sandbox doctor`
"""
group = typer.Typer(help=_HELP, no_args_is_help=True)

TokenFile = Annotated[
    Optional[Path],  # noqa: UP045 -- read by typer at run time
    typer.Option(help="Holds the token; by default AGENTGYM_SANDBOX_TOKEN does, or a new one is printed."),
]

Backends = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--backend", help="docker, process, …; by default all that are installed. May be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would go, and touch nothing.")]


@group.command()
def ps(backend: Backends = None) -> None:
    """List the sandboxes of every run: whose they are, how old, when they end, and what memory they use.

    Example: `agentgym sandbox ps --backend docker`
    """
    from agentgym.cli import upkeep

    upkeep.ps(backend or [])


@group.command()
def gc(
    backend: Backends = None,
    dry_run: DryRun = False,
    images: Annotated[bool, typer.Option("--images", help="Also images built from tasks that nothing uses.")] = False,
    expired: Annotated[
        bool,
        typer.Option("--expired", help="Also what ended by its time limit and whose owner is not on this machine."),
    ] = False,
) -> None:
    """Remove what provably has no living owner, and say of everything why it went or stayed.

    A living run's sandboxes are never touched, and nothing that agentgym did not make.

    Example: `agentgym sandbox gc --dry-run`
    """
    from agentgym.cli import upkeep

    upkeep.gc(backend or [], images=images, expired=expired, dry_run=dry_run)


@group.command()
def doctor(backend: Backends = None) -> None:
    """Look at everything that sandboxes need of this machine, and say how to mend what is missing. Exit code 1 if so.

    Example: `agentgym sandbox doctor --backend docker`
    """
    from agentgym.cli import upkeep

    upkeep.doctor(backend or [])


@group.command(name="build-base")
def build_base(
    name: Annotated[Optional[str], typer.Argument(help="By default agentgym-base:latest.", show_default=False)] = None,  # noqa: UP045
    base: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--from", help="A Debian-like image with Python, such as python:3.11-slim; needs a registry."),
    ] = None,
    backend: Annotated[str, typer.Option(help="Whose base image.")] = "docker",
) -> None:
    """Build the image of tasks that name none, by default without a registry: from this machine's own apt sources.

    That takes about a minute, root, and debootstrap. PACKAGES, SUITE and MIRROR in the environment say what is in it.

    Example: `agentgym sandbox build-base`, or `agentgym sandbox build-base --from python:3.11-slim`
    """
    from agentgym.cli import upkeep

    upkeep.build_base(backend, name, base)


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
