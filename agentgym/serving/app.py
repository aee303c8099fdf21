"""The web application around sessions: HTTP, OpenEnv's WebSocket protocol, health and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, WebSocket
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agentgym.listening import Door
from agentgym.serving.conversation import Conversation
from agentgym.serving.patience import Bounded
from agentgym.serving.problems import answer_problems, references, responses
from agentgym.serving.sessions import Sessions
from agentgym.serving.wire import Action, Begun, Health, Metadata, Reset, Schemas, Seen, State

SessionId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


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
    answer_problems(app)
    app.add_middleware(Bounded, limit=sessions.bounds.message_bytes, patience_s=sessions.bounds.patience_s)
    paths = _Paths(sessions, name, description)
    app.add_api_route("/health", paths.health, responses=responses(408, 413))
    guards = [Depends(admit)] if door is None else [Depends(HTTPBearer(auto_error=False)), Depends(admit)]
    always = (408, 413) if door is None else (401, 408, 413)
    refusals = references(*always)
    app.add_api_route(
        "/metrics", paths.metrics, response_class=PlainTextResponse, responses=refusals, dependencies=guards
    )
    inside = APIRouter(dependencies=guards, responses=responses(*always))
    inside.add_api_route("/openapi.json", lambda: app.openapi(), include_in_schema=False)
    _route(inside, paths)
    app.include_router(inside)

    @app.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        if door is not None and not door.opens(websocket.headers.get("authorization", "")):
            await websocket.close(1008, "wanted the server's token")
            return
        await websocket.accept()
        await Conversation(sessions, websocket).run()

    return app


def _route(inside: APIRouter, paths: _Paths) -> None:
    inside.add_api_route("/metadata", paths.metadata)
    inside.add_api_route("/schema", paths.schema)
    begins, turns = responses(400, 422, 500, 503, 504), responses(400, 404, 409, 422, 500, 503, 504)
    inside.add_api_route("/sessions", paths.begin, methods=["POST"], status_code=201, responses=begins)
    one = "/sessions/{session_id}"
    inside.add_api_route(one, paths.state, responses=responses(404, 422))
    inside.add_api_route(one, paths.end, methods=["DELETE"], status_code=204, responses=responses(404, 422))
    inside.add_api_route(f"{one}/reset", paths.reset, methods=["POST"], responses=turns)
    inside.add_api_route(f"{one}/step", paths.step, methods=["POST"], responses=turns)


class _Paths:
    """What each path does."""

    def __init__(self, sessions: Sessions, name: str, description: str) -> None:
        self._sessions = sessions
        self._name = name
        self._description = description

    async def health(self) -> Health:
        return Health()

    async def metadata(self) -> Metadata:
        return Metadata(name=self._name, description=self._description)

    async def schema(self) -> Schemas:
        kinds = (Action, Seen, State)
        action, observation, state = (one.model_json_schema() for one in kinds)
        return Schemas(action=action, observation=observation, state=state)

    async def metrics(self) -> PlainTextResponse:
        return PlainTextResponse(generate_latest(_registry(self._sessions)), media_type=CONTENT_TYPE_LATEST)

    async def begin(self, asked: Reset) -> Begun:
        session = await self._sessions.begin()
        try:
            shown = await self._sessions.reset(session, asked)
        except BaseException:
            await asyncio.shield(self._sessions.end(session))
            raise
        return Begun(session_id=session.id, **shown.model_dump())

    async def state(self, session_id: SessionId) -> State:
        return self._sessions.find(session_id).state()

    async def reset(self, session_id: SessionId, asked: Reset) -> Seen:
        return await self._sessions.reset(self._sessions.find(session_id), asked)

    async def step(self, session_id: SessionId, action: Action) -> Seen:
        return await self._sessions.step(self._sessions.find(session_id), action)

    async def end(self, session_id: SessionId) -> None:
        await self._sessions.end(self._sessions.find(session_id))


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
