"""The web application around sessions: HTTP, OpenEnv's WebSocket protocol, health and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import gymnasium
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import ValidationError

from agentgym.errors import AgentgymError, CapabilityError, InfrastructureError, UnknownNameError
from agentgym.listening import Door
from agentgym.serving.sessions import FullError, Session, Sessions, TurnTimeoutError, UnknownSessionError
from agentgym.serving.wire import Action, Reset, Seen

logger = logging.getLogger(__name__)
SessionId = Annotated[str, Path(max_length=64, pattern=r"^[\w-]+$")]
_SEND_S = 30.0
_DISCARDED = 8
"""So many times the largest body are read and thrown away, for a client to hear the answer."""
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownSessionError, 404, "SESSION_ERROR"),
    (FullError, 503, "CAPACITY_REACHED"),
    (TurnTimeoutError, 504, "EXECUTION_ERROR"),
    (UnknownNameError, 422, "VALIDATION_ERROR"),
    (gymnasium.error.ResetNeeded, 409, "EXECUTION_ERROR"),
    (CapabilityError, 422, "EXECUTION_ERROR"),
    (InfrastructureError, 503, "SESSION_ERROR"),
    (AgentgymError, 500, "EXECUTION_ERROR"),
)


def create_app(sessions: Sessions, token: str | None, *, name: str, description: str = "") -> FastAPI:
    """Return the application; every path but `/health` wants the token, if there is one."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(sessions.sweep())
        yield
        sweeping.cancel()
        await sessions.close()

    door = Door(token) if token is not None else None

    def admit(request: Request) -> None:
        if door is not None and not door.opens(request.headers.get("authorization", "")):
            raise HTTPException(401, "wanted the header `Authorization: Bearer TOKEN` with the server's token")

    app = FastAPI(title=f"agentgym {name}", description=description, lifespan=lifespan, openapi_url=None)
    for kind, status, _ in _STATUS:
        app.add_exception_handler(kind, _answer(status))
    app.add_middleware(_Bounded, limit=sessions.bounds.message_bytes)
    paths = _Paths(sessions, name, description)
    app.add_api_route("/health", paths.health)
    inside = APIRouter(dependencies=[Depends(admit)], responses={401: {"description": "no token"}})
    inside.add_api_route("/openapi.json", lambda: app.openapi(), include_in_schema=False)
    inside.add_api_route("/metadata", paths.metadata)
    inside.add_api_route("/schema", paths.schema)
    inside.add_api_route("/metrics", paths.metrics, response_class=PlainTextResponse)
    gone: dict[int | str, dict[str, Any]] = {404: {"description": "no such session"}}
    refused = {**gone, 409: {"description": "no episode"}, 503: {"description": "unscored, or full"}}
    inside.add_api_route("/sessions", paths.begin, methods=["POST"], status_code=201, responses=refused)
    inside.add_api_route("/sessions/{session_id}", paths.state, responses=gone)
    inside.add_api_route("/sessions/{session_id}", paths.end, methods=["DELETE"], status_code=204, responses=gone)
    inside.add_api_route("/sessions/{session_id}/reset", paths.reset, methods=["POST"], responses=refused)
    inside.add_api_route("/sessions/{session_id}/step", paths.step, methods=["POST"], responses=refused)
    app.include_router(inside)

    @app.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        if door is not None and not door.opens(websocket.headers.get("authorization", "")):
            await websocket.close(1008, "wanted the server's token")
            return
        await websocket.accept()
        await _Conversation(sessions, websocket).run()

    return app


class _Bounded:
    """Lets in bodies up to a size, whether they tell it or not."""

    def __init__(self, app: Any, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= _DISCARDED * self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size <= self._limit:
                parts.append(message.get("body", b""))
        if size > self._limit:
            told = {"detail": f"wanted a body of at most {self._limit} bytes"}
            await JSONResponse(told, 413)(scope, receive, send)
            return
        whole = iter([{"type": "http.request", "body": b"".join(parts), "more_body": False}])

        async def replay() -> Any:
            return next(whole, None) or await receive()

        await self._app(scope, replay, send)


class _Paths:
    """What each path does."""

    def __init__(self, sessions: Sessions, name: str, description: str) -> None:
        self._sessions = sessions
        self._name = name
        self._description = description

    async def health(self) -> dict[str, str]:
        return {"status": "healthy"}

    async def metadata(self) -> dict[str, Any]:
        return {"name": self._name, "description": self._description}

    async def schema(self) -> dict[str, Any]:
        return {"action": Action.model_json_schema(), "observation": Seen.model_json_schema(), "state": {}}

    async def metrics(self) -> PlainTextResponse:
        return PlainTextResponse(generate_latest(_registry(self._sessions)), media_type=CONTENT_TYPE_LATEST)

    async def begin(self, asked: Reset) -> dict[str, Any]:
        session = await self._sessions.begin()
        try:
            shown = await self._sessions.reset(session, asked)
        except BaseException:
            await self._sessions.end(session)
            raise
        return {"session_id": session.id, **shown.model_dump()}

    async def state(self, session_id: SessionId) -> dict[str, Any]:
        return self._sessions.find(session_id).state()

    async def reset(self, session_id: SessionId, asked: Reset) -> Seen:
        return await self._sessions.reset(self._sessions.find(session_id), asked)

    async def step(self, session_id: SessionId, action: Action) -> Seen:
        return await self._sessions.step(self._sessions.find(session_id), action)

    async def end(self, session_id: SessionId) -> None:
        await self._sessions.end(self._sessions.find(session_id))


class _Conversation:
    """One WebSocket, which owns one session: OpenEnv's messages `reset`, `step`, `state` and `close`."""

    def __init__(self, sessions: Sessions, websocket: WebSocket) -> None:
        self._sessions = sessions
        self._websocket = websocket

    async def run(self) -> None:
        session: Session | None = None
        try:
            session = await self._sessions.begin()
            while (answer := await self._answered(session, await self._websocket.receive_text())) is not None:
                # A client that does not read must not keep its session for ever.
                await asyncio.wait_for(self._websocket.send_text(json.dumps(answer)), _SEND_S)
            await self._websocket.close()
        except (WebSocketDisconnect, TimeoutError):
            logger.info("a client is gone")
        except AgentgymError as error:  # no session could be had
            await self._websocket.send_text(json.dumps(_error(error)))
            await self._websocket.close(1013)
        finally:
            if session is not None:
                await asyncio.shield(self._sessions.end(session))

    async def _answered(self, session: Session, text: str) -> dict[str, Any] | None:
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError) as error:
            return {"type": "error", "data": {"message": f"not JSON: {error}", "code": "INVALID_JSON"}}
        if not isinstance(asked, dict):
            return {"type": "error", "data": {"message": "wanted an object", "code": "VALIDATION_ERROR"}}
        try:
            data = asked.get("data", {})
            match asked.get("type"):
                case "reset":
                    shown = await self._sessions.reset(session, Reset.model_validate(data))
                    return {"type": "observation", "data": shown.model_dump()}
                case "step":
                    shown = await self._sessions.step(session, Action.model_validate(data))
                    return {"type": "observation", "data": shown.model_dump()}
                case "state":
                    return {"type": "state", "data": session.state()}
                case "close":
                    return None
                case kind:
                    told = f"wanted the type reset, step, state or close, found {str(kind)[:80]!r}"
                    return {"type": "error", "data": {"message": told, "code": "UNKNOWN_TYPE"}}
        except UnknownSessionError:
            raise
        except (AgentgymError, gymnasium.error.ResetNeeded, ValidationError) as error:
            return _error(error)


def _error(error: Exception) -> dict[str, Any]:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc'])) or 'data'}: {first['msg']}"
        return {"type": "error", "data": {"message": told, "code": "VALIDATION_ERROR"}}
    code = next(code for kind, _, code in _STATUS if isinstance(error, kind))
    return {"type": "error", "data": {"message": str(error), "code": code}}


def _answer(status: int) -> Any:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error), "error": type(error).__name__}, status)

    return answer


def _registry(sessions: Sessions) -> CollectorRegistry:
    class Collector:
        def collect(self) -> Any:
            yield GaugeMetricFamily("agentgym_sessions", "Open sessions", value=len(sessions))
            for name, value in sessions.counts.items():
                yield CounterMetricFamily(f"agentgym_{name}", f"How many {name}", value=value)
            yield CounterMetricFamily("agentgym_turn_seconds", "Time in environments", value=sessions.turn_seconds)

    registry = CollectorRegistry()
    registry.register(Collector())
    return registry
