"""One connection to the filtering proxy: CONNECT, or one plain HTTP request that is written anew for the server.

Nothing of a request reaches a server as it came: it is parsed strictly and serialised again, so that no two readers can
disagree on where it ends; after its answer the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Protocol

import h11

from agentgym_sandboxes._allowlist_dial import Refused
from agentgym_sandboxes._allowlist_message import Ambiguous, end_to_end, refusal, target_of
from agentgym_sandboxes._allowlist_tunnel import Tunnel

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
_FAREWELL_S = 2.0


class Upstream(Protocol):
    """What lies behind the proxy."""

    head_bytes: int
    head_s: float
    idle_s: float

    async def dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect if the list permits it; Refused otherwise."""
        ...

    def release(self) -> None:
        """Learn that the connection is over; others may wait for its place."""
        ...

    def refuse(self, host: str, port: int, why: str) -> None:
        """Count a request that is not even one."""
        ...

    def spend(self, size: int) -> None:
        """Count bytes that go either way; Refused once there are too many."""
        ...


async def serve(tunnel: Tunnel, upstream: Upstream) -> None:
    """Answer one connection."""
    exchange = _Exchange(tunnel, upstream)
    try:
        await exchange.run()
    except Refused as refused:
        if not exchange.has_answered:
            await _answer(tunnel, refused.status, str(refused), has_body=exchange.method != b"HEAD")
    except TimeoutError:
        if not exchange.has_answered:
            await _answer(tunnel, HTTPStatus.GATEWAY_TIMEOUT, "the server does not answer", has_body=True)
    except (OSError, h11.ProtocolError) as error:
        logger.debug("a connection of a sandbox broke: %s", error)
    finally:
        exchange.hang_up()
        tunnel.close()


class _Exchange:
    def __init__(self, tunnel: Tunnel, upstream: Upstream) -> None:
        self._tunnel = tunnel
        self._upstream = upstream
        self._writer: asyncio.StreamWriter | None = None
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=upstream.head_bytes)
        self.method = b""
        self.has_answered = False

    async def run(self) -> None:
        request = await self._request()
        self.method = request.method
        try:
            target = target_of(request)
        except Ambiguous as error:
            self._upstream.refuse(error.host, error.port, str(error))
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        reader, self._writer = await self._upstream.dial(target.host, target.port)
        if self.method == b"CONNECT":
            await self._tunnel_bytes(reader, self._writer)
        else:
            await self._forward(request, target.path, reader, self._writer)
        self.hang_up()
        await self._tunnel.finish(_FAREWELL_S)

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
            self._upstream.release()

    async def _request(self) -> h11.Request:
        try:
            async with asyncio.timeout(self._upstream.head_s):
                event = await _next(self._client, self._tunnel.read)
        except TimeoutError:
            self._upstream.refuse("", 0, "no request came")
            seconds = self._upstream.head_s
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"no whole request came within {seconds:g} s") from None
        except h11.RemoteProtocolError as error:
            raise self._malformed(str(error)) from error
        if isinstance(event, h11.Request):
            return event
        raise ConnectionResetError("nothing was asked")

    def _malformed(self, why: str) -> Refused:
        self._upstream.refuse("", 0, why)
        return Refused(HTTPStatus.BAD_REQUEST, why)

    async def _tunnel_bytes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.has_answered = True
        await self._tunnel.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        early = self._client.trailing_data[0]

        async def out(timer: asyncio.Timeout) -> None:
            data = early or await self._tunnel.read()
            while data:
                self._move(data, timer)
                writer.write(data)
                await writer.drain()
                data = await self._tunnel.read()
            writer.write_eof()

        async def back(timer: asyncio.Timeout) -> None:
            while data := await reader.read(_CHUNK):
                self._move(data, timer)
                await self._tunnel.write(data)
            self._tunnel.write_eof()

        async with asyncio.timeout(self._upstream.idle_s) as timer:
            await _both(out(timer), back(timer))

    async def _forward(
        self, request: h11.Request, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        server = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._upstream.head_bytes)
        async with asyncio.timeout(self._upstream.idle_s) as timer:

            async def say(event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
                data = server.send(event) or b""
                self._move(data, timer)
                writer.write(data)
                await writer.drain()

            async def read() -> bytes:
                try:
                    data = await reader.read(_CHUNK)
                except OSError as error:
                    raise Refused(HTTPStatus.BAD_GATEWAY, "the server broke the connection") from error
                self._move(data, timer)
                return data

            headers = [*end_to_end(request), (b"Connection", b"close")]
            await say(h11.Request(method=request.method, target=path, headers=headers))
            asking = asyncio.ensure_future(self._send_body(say))
            answering = asyncio.ensure_future(self._answer_with(server, read))
            try:
                await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    asking.result()
                await answering  # which may well come before the whole request was sent
            finally:
                await _cancel((asking, answering))

    async def _send_body(self, say: Callable[[h11.Data | h11.EndOfMessage], Awaitable[None]]) -> None:
        event: object = None
        while not isinstance(event, h11.EndOfMessage):
            try:
                event = await _next(self._client, self._tunnel.read)
            except h11.RemoteProtocolError as error:
                raise self._malformed(str(error)) from error
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                return
            with suppress(OSError):  # a server may answer and hang up before it has read all
                await say(h11.Data(bytes(event.data)) if isinstance(event, h11.Data) else h11.EndOfMessage())

    async def _answer_with(self, server: h11.Connection, read: Callable[[], Awaitable[bytes]]) -> None:
        while True:
            try:
                event = await _next(server, read)
            except h11.RemoteProtocolError as error:
                raise Refused(HTTPStatus.BAD_GATEWAY, f"the server's answer is not HTTP: {error}") from error
            if isinstance(event, h11.InformationalResponse):
                if self._client.their_http_version != b"1.0":
                    headers = end_to_end(event)
                    await self._say(h11.InformationalResponse(status_code=event.status_code, headers=headers))
            elif isinstance(event, h11.Response):
                headers = [*end_to_end(event), (b"Connection", b"close")]
                self.has_answered = True
                await self._say(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
            elif isinstance(event, h11.Data):
                await self._say(h11.Data(bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self._say(h11.EndOfMessage())
                return
            else:
                raise Refused(HTTPStatus.BAD_GATEWAY, "the server hung up without an answer")

    async def _say(self, event: h11.Event) -> None:
        if data := self._client.send(event):
            await self._tunnel.write(data)

    def _move(self, data: bytes, timer: asyncio.Timeout) -> None:
        timer.reschedule(asyncio.get_running_loop().time() + self._upstream.idle_s)
        self._upstream.spend(len(data))


async def _both(one: Coroutine[None, None, None], other: Coroutine[None, None, None]) -> None:
    """Run two directions until both end; if one breaks, so does the other."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(connection: h11.Connection, read: Callable[[], Awaitable[bytes]]) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await read())
    return event


async def _answer(tunnel: Tunnel, status: HTTPStatus, why: str, *, has_body: bool) -> None:
    with suppress(ConnectionResetError):
        await tunnel.write(refusal(status, why, has_body=has_body))
        await tunnel.finish(_FAREWELL_S)
