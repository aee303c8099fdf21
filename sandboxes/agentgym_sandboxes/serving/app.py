"""The HTTP side of a server: who may come in, what a request looks like, how long an answer may take."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from agentgym.errors import SandboxError
from agentgym.listening import Door
from agentgym_sandboxes.remote_wire import (
    ABANDONED_HEADER,
    CONTENT_TYPE,
    DONE_HEADER,
    LEASE_HEADER,
    PROTOCOL,
    PROTOCOL_HEADER,
    describe,
)
from agentgym_sandboxes.serving.calls import parse
from agentgym_sandboxes.serving.desk import Desk
from agentgym_sandboxes.serving.leases import GoneError, Lease, Operation

_LONGEST_WAIT_S = 30.0
_SLOWEST_BYTES_PER_S = 1 << 15
_KEY = re.compile(r"[0-9a-f]{64}")


class Refusal(Exception):  # noqa: N818 -- an answer
    """A request that is not carried out, and why."""

    def __init__(self, status: int, error: Exception) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error


def create_app(desk: Desk, token: str) -> FastAPI:
    """Return the application around a desk; every path but `/health` wants the token."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(desk.sweep())
        yield
        sweeping.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(Exception, _crashed)
    paths = _Paths(desk)
    app.add_api_route("/health", paths.health)
    inside = APIRouter(prefix="/v1", dependencies=[Depends(_Door(token))])
    inside.add_api_route("/backend", paths.backend)
    inside.add_api_route("/lease", paths.begin, methods=["PUT"])
    inside.add_api_route("/lease", paths.keep, methods=["POST"])
    inside.add_api_route("/lease", paths.end, methods=["DELETE"])
    inside.add_api_route("/calls/{number}", paths.call, methods=["POST"])
    inside.add_api_route("/calls/{number}", paths.look)
    app.include_router(inside)
    return app


class _Door:
    """Lets in who has the token and speaks our protocol."""

    def __init__(self, token: str) -> None:
        self._door = Door(token)

    async def __call__(self, request: Request) -> None:
        if not self._door.opens(request.headers.get("authorization", "")):
            raise Refusal(401, SandboxError("the sandbox server refuses the token: it is not the one it was given"))
        spoken = request.headers.get(PROTOCOL_HEADER, "nothing")
        if spoken != str(PROTOCOL):
            sentence = f"the sandbox server speaks protocol {PROTOCOL} and its client {spoken}"
            raise Refusal(426, SandboxError(f"{sentence}: install the same release of agentgym on both sides"))


class _Paths:
    """What each path does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def health(self) -> JSONResponse:
        is_draining = self._desk.is_draining
        return JSONResponse({"status": "draining" if is_draining else "ok"}, 503 if is_draining else 200)

    async def backend(self) -> JSONResponse:
        backend, limits = self._desk.backend, self._desk.limits
        try:
            await asyncio.get_running_loop().run_in_executor(self._desk.pools.calls, backend.check)
        except SandboxError as error:
            raise Refusal(500, error) from error
        return JSONResponse(
            {
                "backend": backend.name,
                "capabilities": sorted(backend.capabilities),
                "body_bytes": limits.body_mb << 20,
                "lease_s": limits.lease_s,
            }
        )

    async def begin(self, request: Request) -> JSONResponse:
        key = request.headers.get(LEASE_HEADER, "")
        if not _KEY.fullmatch(key):
            raise Refusal(422, ValueError(f"{LEASE_HEADER} must be 64 random hexadecimal digits"))
        with _refusals():
            self._desk.begin(key)
        return JSONResponse({})

    async def keep(self, request: Request, wait: float = 0.0) -> JSONResponse:
        lease = _lease(self._desk, request)
        await request.body()
        lease.watch()
        listening = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((listening, lease.over), timeout=_bounded(wait), return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_broken = listening.done()
            lease.unwatch(broken=is_broken)
            listening.cancel()
        if not is_broken:
            _lease(self._desk, request)
        return JSONResponse({})

    async def end(self, request: Request) -> JSONResponse:
        await self._desk.end(request.headers.get(LEASE_HEADER, ""), "its client ended it")
        return JSONResponse({})

    async def call(self, request: Request, number: int, wait: float = 0.0) -> Response:
        lease = _lease(self._desk, request)
        with _refusals():
            operation = lease.find(number)
        if operation is None:
            operation = await _submitted(self._desk, lease, request, number)
        else:
            await _discard(self._desk, request)
        return await _answer(lease, operation, wait)

    async def look(self, request: Request, number: int, wait: float = 0.0) -> Response:
        lease = _lease(self._desk, request)
        with _refusals():
            operation = lease.find(number)
        if operation is None:
            raise Refusal(404, SandboxError(f"call {number} never came"))
        return await _answer(lease, operation, wait)


def _lease(desk: Desk, request: Request) -> Lease:
    with _refusals():
        lease = desk.find(request.headers.get(LEASE_HEADER, ""))
    lease.settle(_numbers(request, DONE_HEADER), _numbers(request, ABANDONED_HEADER))
    return lease


async def _submitted(desk: Desk, lease: Lease, request: Request, number: int) -> Operation:
    """Read a call's body within its bounds and let it wait for its turn."""
    size = _announced(desk, request)
    if not desk.reserve(size):
        # Read it, and keep nothing: a client that is cut off while it sends would take that for a broken connection.
        await _discard(desk, request)
        sentence = "the sandbox server has no room for more requests now; send fewer at once, or serve with a larger"
        raise Refusal(503, SandboxError(f"{sentence} limit pending_mb"))
    try:
        body = await _body(desk, request, size)
        try:
            call = parse(body)
        except ValueError as error:
            raise Refusal(422, error) from error
        with _refusals():
            operation = lease.submit(number, call)
    except BaseException:
        desk.release(size)
        raise
    operation.answer.add_done_callback(lambda _: desk.release(size))
    return operation


def _announced(desk: Desk, request: Request) -> int:
    most = desk.limits.body_mb << 20
    text = request.headers.get("content-length", "")
    if not text.isdecimal():
        raise Refusal(411, ValueError("a call must say its length in Content-Length"))
    if int(text) > most:
        raise Refusal(
            413,
            ValueError(
                f"the request has {text} bytes, more than the {most} that this sandbox server takes at once; send "
                "less, or serve with a larger limit body_mb"
            ),
        )
    return int(text)


async def _body(desk: Desk, request: Request, size: int) -> bytes:
    body = bytearray()
    async for piece in _pieces(desk, request):
        body += piece
    if len(body) != size:
        raise Refusal(400, SandboxError(f"the request had {len(body)} bytes and announced {size}"))
    return bytes(body)


async def _discard(desk: Desk, request: Request) -> None:
    async for _ in _pieces(desk, request):
        continue


async def _pieces(desk: Desk, request: Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes; one that stands still, or trickles, is given up."""
    loop = asyncio.get_running_loop()
    pieces = request.stream()
    began, seen = loop.time(), 0
    while True:
        latest = min(loop.time(), began + seen / _SLOWEST_BYTES_PER_S) + desk.limits.stall_s
        try:
            async with asyncio.timeout_at(latest):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            sentence = f"the request came too slowly: it stood still for {desk.limits.stall_s:g} s, or trickled"
            raise Refusal(408, SandboxError(sentence)) from None
        except ClientDisconnect:
            raise Refusal(400, SandboxError("the connection ended before the request did")) from None
        seen += len(piece)
        yield piece


async def _answer(lease: Lease, operation: Operation, wait: float) -> Response:
    await asyncio.wait((operation.answer, lease.over), timeout=_bounded(wait), return_when=asyncio.FIRST_COMPLETED)
    if operation.answer.done() and not operation.answer.cancelled():
        return Response(operation.answer.result(), media_type=CONTENT_TYPE)
    if lease.over.done():
        raise Refusal(410, GoneError(f"the lease on the sandbox server is over: {lease.over.result()}"))
    return Response(status_code=202)


def _numbers(request: Request, header: str) -> list[int]:
    text = request.headers.get(header, "")
    if text and not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise Refusal(422, ValueError(f"{header} must hold numbers of calls, separated by commas"))
    return [int(one) for one in text.split(",")] if text else []


def _bounded(wait: float) -> float:
    return min(max(wait, 0.0), _LONGEST_WAIT_S)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except GoneError as error:
        raise Refusal(410, error) from error
    except SandboxError as error:
        raise Refusal(429, error) from error


async def _refused(_: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    # The body may be unread: the next request must not begin in the middle of it.
    return JSONResponse({"error": describe(refusal.error)}, refusal.status, {"Connection": "close"})


async def _crashed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": describe(error)}, 500)
