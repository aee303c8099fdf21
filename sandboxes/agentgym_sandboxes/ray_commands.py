"""`agentgym ray`: the nodes of a Ray cluster that lend sandboxes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Look after the nodes that lend sandboxes.\n\nExample: `agentgym ray drain node-7`"
)

Address = Annotated[str, typer.Option(help="Of the cluster; auto is RAY_ADDRESS or the one on this machine.")]
Backend = Annotated[str, typer.Option(help="Of the nodes.")]
Node = Annotated[str, typer.Argument(help="A node's name, or the beginning of its id.", show_default=False)]


@app.callback()
def _group() -> None:
    """Look after the nodes that lend sandboxes."""


@app.command()
def nodes(address: Address = "auto") -> None:
    """List the nodes that lend sandboxes, how full they are, and which of them drain.

    Example: `agentgym ray nodes`
    """
    from agentgym.cli.console import say
    from agentgym_sandboxes.ray_cluster import connect
    from agentgym_sandboxes.ray_fleet import states

    connect(address)
    for view in states():
        say(view.told)


@app.command()
def drain(
    node: Node,
    back: Annotated[bool, typer.Option("--back", help="Let it take sandboxes again.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Return once it is empty, or after so many seconds.")] = 0.0,
    address: Address = "auto",
) -> None:
    """Let a node take no new sandboxes of anybody; those that it has go on until they end.

    Example: `agentgym ray drain node-7`
    """
    from agentgym.cli.console import say
    from agentgym_sandboxes.ray import RayBackend

    backend = RayBackend(address=address)
    deadline = time.monotonic() + wait
    view = backend.drain(node, is_draining=not back)
    while not back and view.report.used and time.monotonic() < deadline:
        time.sleep(1.0)
        view = backend.drain(view.id)
    say(view.told)


@app.command()
def ps(backend: Backend = "docker", address: Address = "auto") -> None:
    """List the sandboxes of every run on the nodes, as `agentgym sandbox ps` does on each of them.

    Example: `agentgym ray ps`
    """
    from agentgym.cli import upkeep
    from agentgym_sandboxes.ray_cluster import connect
    from agentgym_sandboxes.ray_upkeep import inventory

    connect(address)
    told = list(inventory(backend))
    upkeep.show((f"{backend} on {one.node}", one.kept) for one in told)
    _complain((one.node, one.failure) for one in told)


@app.command()
def gc(
    backend: Backend = "docker",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    images: Annotated[bool, typer.Option("--images", help="Also images built from tasks that nothing uses.")] = False,
    expired: Annotated[
        bool, typer.Option("--expired", help="Also what ended by its time limit and whose owner is not on its node.")
    ] = False,
    address: Address = "auto",
) -> None:
    """Remove from the nodes what provably has no living owner, such as what an actor that crashed has left.

    Sandboxes of a driver that died are no such thing: they end by themselves, with its lease.

    Example: `agentgym ray gc --dry-run`
    """
    from agentgym.cli import upkeep
    from agentgym_sandboxes.ray_cluster import connect
    from agentgym_sandboxes.ray_upkeep import collect

    connect(address)
    told = list(collect(backend, images=images, expired=expired, dry_run=dry_run))
    upkeep.tell(((f"{one.node}: ", one.decisions) for one in told), dry_run=dry_run)
    _complain((one.node, one.failure) for one in told)


def _complain(nodes: Iterable[tuple[str, str]]) -> None:
    """Say what went wrong on which node, and leave with exit code 1 if anything did."""
    from agentgym.cli.console import errors

    failed = [(name, failure) for name, failure in nodes if failure]
    for name, failure in failed:
        errors.console.print(f"{name}: {failure}", markup=False)
    if failed:
        raise typer.Exit(1)
