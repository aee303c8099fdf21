"""The stdio transport of MCP, with the server inside a sandbox."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from agentgym.errors import InfrastructureError
from agentgym.sandbox import Sandbox, Terminal

_READY = b"\x01ready\x02"
# A terminal that neither echoes nor rewrites is a byte stream; what the server logs must not run into it.
_RAW = f"stty raw -echo && printf '{_READY.decode()}' && exec \"$@\" 2>/dev/null"
_START_S = 30.0
_MAX_LINE = 8 << 20


@contextlib.asynccontextmanager
async def sandboxed_server(box: Sandbox, command: Sequence[str]) -> AsyncIterator[Any]:
    """Start a server in a sandbox and yield its streams, as `mcp.Client` wants a transport.

    Raises:
        CapabilityError: the sandbox's backend has no `session`.
        InfrastructureError: the program does not start.
    """
    import anyio

    start = partial(box.terminal, ("/bin/sh", "-c", _RAW, "sh", *command))
    terminal = await anyio.to_thread.run_sync(start)
    try:
        rest = await anyio.to_thread.run_sync(_wait_until_raw, terminal)
        to_client, from_server = anyio.create_memory_object_stream[Any](16)
        to_server, from_client = anyio.create_memory_object_stream[Any](16)
        async with anyio.create_task_group() as tasks, to_client, from_server, to_server, from_client:
            tasks.start_soon(_receive, terminal, rest, to_client)
            tasks.start_soon(_send, terminal, from_client)
            try:
                yield from_server, to_server
            finally:
                tasks.cancel_scope.cancel()
    finally:
        terminal.close()


def _wait_until_raw(terminal: Terminal) -> bytes:
    """Wait for the terminal to become a byte stream, and return what came after that."""
    deadline, seen = time.monotonic() + _START_S, b""
    while _READY not in seen:
        found = terminal.read(timeout=1.0, quiet=0.01, until=_READY)
        seen += found.data
        if _READY not in seen and (found.exit_code is not None or time.monotonic() > deadline):
            raise InfrastructureError(f"the MCP server does not start: {seen[-200:].decode(errors='replace')!r}")
    return seen.partition(_READY)[2]


async def _receive(terminal: Terminal, rest: bytes, to_client: Any) -> None:
    import anyio
    from mcp import types
    from mcp.shared.message import SessionMessage

    while True:
        *lines, rest = rest.split(b"\n")
        for line in filter(bytes.strip, lines):
            try:
                await to_client.send(SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False)))
            except ValueError as malformed:
                await to_client.send(malformed)
        found = await anyio.to_thread.run_sync(partial(terminal.read, timeout=0.5, quiet=0.002, until=b"\n"))
        rest += found.data
        if (found.exit_code is not None and not found.data) or len(rest) > _MAX_LINE:
            await to_client.aclose()  # which tells every waiting call that nobody will answer
            return


async def _send(terminal: Terminal, from_client: Any) -> None:
    import anyio

    async for one in from_client:
        line = one.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        await anyio.to_thread.run_sync(partial(terminal.send, line))
