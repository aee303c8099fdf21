"""`agentgym mcp`: play an environment from anything that speaks the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentgym import registry
from agentgym.cli.places import parse_options
from agentgym_envs.mcp.server import Episode, mcp_server

app = typer.Typer(help="Environments over the Model Context Protocol.", no_args_is_help=True)


@app.command()
def serve(
    env: Annotated[str, typer.Argument(help="A registered id.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Its options.")] = None,
    task: Annotated[str | None, typer.Option(help="The task's id; without it the seed picks one.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the episode.")] = 0,
    port: Annotated[int | None, typer.Option(help="Serve HTTP on this loopback port instead.")] = None,
) -> None:
    """Serve one episode's tools, over standard streams or HTTP.

    Example: agentgym mcp serve agentgym/Tools-v0 difficulty=2 --port 8765
    """
    import anyio

    made = registry.make(env, **parse_options(options or []))
    server = mcp_server(lambda: Episode(made, task, seed))
    try:
        if port is None:
            anyio.run(_over_standard_streams, server)
        else:
            import uvicorn

            uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=port, log_level="warning")
    finally:
        made.close()


async def _over_standard_streams(server: Any) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
