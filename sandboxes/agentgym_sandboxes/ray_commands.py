"""`agentgym ray`: the nodes of a Ray cluster that lend sandboxes."""

from __future__ import annotations

import time
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Look after the nodes that lend sandboxes.\n\nExample: `agentgym ray drain node-7`"
)

Address = Annotated[str, typer.Option(help="Of the cluster; auto is RAY_ADDRESS or the one on this machine.")]
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
