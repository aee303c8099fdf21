"""Serve a retriever as Search-R1's `POST /retrieve`, with bounds on what one request may ask for."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field, ValidationError

from agentgym.errors import InfrastructureError, MissingExtraError
from agentgym.types import Record
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.query import MAX_CHARACTERS
from agentgym_envs.search.retriever import MAX_K, Hit, Retriever

try:
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse
except ImportError as error:
    raise MissingExtraError("fastapi", "serve") from error


class Bounds(Record):
    """What clients may ask for."""

    queries: Annotated[int, Field(ge=1)] = 512
    """In one request."""
    body: Annotated[int, Field(ge=1024)] = 1 << 20
    """Bytes of one request."""
    busy: Annotated[int, Field(ge=1)] = 32
    """Requests that are answered at once; more are told to come again."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long one request may take."""


class Asked(Record):
    """The body of `POST /retrieve`."""

    queries: list[str]
    topk: Annotated[int, Field(ge=1, le=MAX_K)] | None = None
    """3 if it is not said, as in Search-R1's server."""
    return_scores: bool = False


_DEFAULT_K = 3


def create_app(retriever: Retriever, bounds: Bounds | None = None) -> FastAPI:
    """Return the server of a retriever, which stays the caller's to close."""
    app = FastAPI(title="agentgym search", docs_url=None, redoc_url=None, openapi_url=None)
    desk = _Desk(retriever, bounds or Bounds())

    @app.post("/retrieve")
    async def retrieve(request: Request) -> JSONResponse:
        return await desk.retrieve(request)

    @app.get("/document")
    async def document(name: str) -> JSONResponse:
        return await desk.document(name)

    return app


class _Refused(Exception):  # noqa: N818 -- an answer
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Desk:
    def __init__(self, retriever: Retriever, bounds: Bounds) -> None:
        self.retriever = retriever
        self.bounds = bounds
        self._busy = 0

    async def retrieve(self, request: Request) -> JSONResponse:
        try:
            asked = _read(await self._body(request))
            if len(asked.queries) > self.bounds.queries:
                raise _Refused(413, f"wanted at most {self.bounds.queries} queries, found {len(asked.queries)}")
            found = await self._work(self._search, asked)
        except _Refused as refused:
            return _refusal(refused)
        shown = [[_scored(one) if asked.return_scores else _shown(one.passage) for one in hits] for hits in found]
        return JSONResponse({"result": shown})

    async def document(self, name: str) -> JSONResponse:
        try:
            found = await self._work(self.retriever.get, name[:MAX_CHARACTERS])
        except _Refused as refused:
            return _refusal(refused)
        return JSONResponse(_shown(found)) if found else _refusal(_Refused(404, "no document has that id or title"))

    def _search(self, asked: Asked) -> list[list[Hit]]:
        return [self.retriever.search(one, asked.topk or _DEFAULT_K) for one in asked.queries]

    async def _work(self, work: Any, argument: Any) -> Any:
        if self._busy >= self.bounds.busy:
            raise _Refused(503, "too many requests at once; come again")
        self._busy += 1
        try:
            return await asyncio.wait_for(run_in_threadpool(work, argument), self.bounds.seconds)
        except TimeoutError:
            raise _Refused(504, f"the search took longer than {self.bounds.seconds:g} s") from None
        except ValueError as error:
            raise _Refused(422, str(error)) from error
        except InfrastructureError as error:
            raise _Refused(502, str(error)) from error
        finally:
            self._busy -= 1

    async def _body(self, request: Request) -> bytes:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > self.bounds.body:
                raise _Refused(413, f"wanted at most {self.bounds.body} bytes")
        return bytes(data)


def _read(body: bytes) -> Asked:
    try:
        return Asked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise _Refused(422, f"{where}: {first['msg']}") from error


def _refusal(refused: _Refused) -> JSONResponse:
    headers = {"Retry-After": "1"} if refused.status == 503 else {}
    return JSONResponse({"detail": str(refused)}, refused.status, headers)


def _shown(one: Passage) -> dict[str, Any]:
    return {"id": one.id, "contents": f'"{one.title}"\n{one.text}', "title": one.title, "text": one.text}


def _scored(hit: Hit) -> dict[str, Any]:
    return {"document": _shown(hit.passage), "score": hit.score}
