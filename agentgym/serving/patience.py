"""What a server puts up with: sizes, and how long a client may take to say what it wants and to read the answer."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

KEPT_S = 30
"""For an idle connection. Clients that forget it sooner, as httpx does after 5 s, never write to a closing one."""
_DISCARDED = 8
"""So many times the largest body are read and thrown away, for a client to hear the answer."""


class _Impatient(H11Protocol):
    """Uvicorn itself waits for ever for a connection's first request, and for the rest of a head that has begun."""

    head_s: float
    _silence: asyncio.TimerHandle | None = None
    _unread = 0
    """Bytes of the last answer that the client has not taken yet."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._listen()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy():
            self._stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy():
            self._listen()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _listen(self) -> None:
        self._stop()
        self._unread = self.transport.get_write_buffer_size()
        self._silence = self.loop.call_later(self.head_s, self._hang_up)

    def _stop(self) -> None:
        if self._silence is not None:
            self._silence.cancel()

    def _hang_up(self) -> None:
        # A WebSocket that was opened here has a protocol of its own by now.
        if self.transport.get_protocol() is not self or self._is_busy():
            return
        left = self.transport.get_write_buffer_size()
        if left == 0:
            self.transport.close()
        elif left < self._unread:
            self._listen()
        else:
            self.transport.abort()


def impatient(head_s: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol, hanging up where no whole request head came in so many seconds."""
    return type("Impatient", (_Impatient,), {"head_s": head_s})


class Bounded:
    """Lets in bodies up to a size, whether they tell it or not, and gives up on clients that neither send nor read."""

    def __init__(self, app: Any, limit: int, patience_s: float) -> None:
        """Stand before an ASGI application.

        Args:
            app: the application.
            limit: bytes of a body.
            patience_s: for a whole body to come, and for each part of an answer to be taken.
        """
        self._app = app
        self._limit = limit
        self._patience_s = patience_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_soon(message: Any) -> None:
            async with asyncio.timeout(self._patience_s):
                await send(message)

        try:
            async with asyncio.timeout(self._patience_s):
                body = await self._body(receive)
        except TimeoutError:
            told = f"wanted the whole request within {self._patience_s:g} s"
            await _refuse(408, told)(scope, receive, send_soon)
            return
        if body is None:
            return
        if len(body) > self._limit:
            await _refuse(413, f"wanted a body of at most {self._limit} bytes")(scope, receive, send_soon)
            return
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Any:
            return next(whole, None) or await receive()

        await self._app(scope, replay, send_soon)

    async def _body(self, receive: Any) -> bytes | None:
        """Return the body, all of it or just more than the limit; None if the client has gone."""
        found = bytearray()
        size, more = 0, True
        while more and size <= _DISCARDED * self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            found += part[: self._limit + 1 - len(found)]
        return bytes(found)


def _refuse(status: int, told: str) -> JSONResponse:
    return JSONResponse({"detail": told, "error": "Refused"}, status, headers={"connection": "close"})
