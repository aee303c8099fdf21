"""One session with an MCP server, from code that is not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from importlib.util import find_spec
from typing import Any

from agentgym.errors import InfrastructureError, MissingExtraError
from agentgym.tools import SchemaTool, Tool

_CLOSING_S = 10.0
_MAX_TOOLS = 1000


class McpSession:
    """A session that lives in a thread of its own; safe to use from many threads, and to close twice.

    Args:
        connect: returns what `mcp.Client` connects to: the URL of a streamable HTTP server, a transport, or a server of
            this process. It is called in the session's thread.
        timeout_s: of the handshake, and of each call.

    Raises:
        MissingExtraError: the package `mcp` is not installed.
        InfrastructureError: nobody answers, or not in this protocol.
    """

    def __init__(self, connect: Callable[[], Any], *, timeout_s: float = 60.0) -> None:
        if find_spec("mcp") is None:
            raise MissingExtraError("mcp", "mcp")
        self._connect = connect
        self._timeout_s = timeout_s
        self._ready: Future[dict[str, Tool]] = Future()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._client: Any = None
        self._thread = threading.Thread(target=self._live, name="mcp-session", daemon=True)
        self._thread.start()
        try:
            self.tools = self._ready.result(timeout_s)
        except FutureTimeoutError:
            self.close()
            raise InfrastructureError(f"the MCP server did not shake hands within {timeout_s:g} s") from None
        except InfrastructureError:
            self.close()
            raise

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool and return what it says as text; parts that are not text are named by their kind.

        Raises:
            ValueError: the tool reports an error, in its own words.
            InfrastructureError: the session has ended, or the answer did not come in time.
        """
        if self._loop.is_closed() or self._ending.is_set():
            raise InfrastructureError("the MCP session has ended")
        task = asyncio.run_coroutine_threadsafe(self._client.call_tool(name, dict(arguments)), self._loop)
        try:
            found = task.result(self._timeout_s)
        except FutureTimeoutError:
            task.cancel()
            raise ValueError(f"the tool {name!r} did not answer within {self._timeout_s:g} s") from None
        except Exception as error:
            raise self._told(name, error) from error
        text = "\n".join(_text(one) for one in found.content)
        if found.is_error:
            raise ValueError(text or f"the tool {name!r} failed without a word")
        return text

    def close(self) -> None:
        """End the session."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(_CLOSING_S)

    def _told(self, name: str, error: Exception) -> Exception:
        """Return an error of the protocol as the tool's word, and any other as the infrastructure's."""
        from mcp import MCPError

        if isinstance(error, MCPError):
            return ValueError(f"the tool {name!r} was refused: {error}")
        return InfrastructureError(f"the MCP server is gone: {_innermost(error)}")

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._session())
        finally:
            self._loop.close()

    async def _session(self) -> None:
        from mcp import Client

        try:
            async with Client(self._connect()) as self._client:
                self._ready.set_result(await self._list())
                await self._ending.wait()
        except Exception as error:  # noqa: BLE001 -- transports raise groups of whatever their tasks raised
            if not self._ready.done():
                self._ready.set_exception(InfrastructureError(f"no MCP server answers: {_innermost(error)}"))
        finally:
            self._ending.set()

    async def _list(self) -> dict[str, Tool]:
        found: dict[str, Tool] = {}
        cursor = None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            for one in page.tools:
                found[one.name] = SchemaTool(one.name, one.description or one.name, one.input_schema)
            cursor = page.next_cursor
            if not cursor or len(found) >= _MAX_TOOLS:
                return found


def _text(part: Any) -> str:
    return str(part.text) if part.type == "text" else f"[{part.type}]"


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
