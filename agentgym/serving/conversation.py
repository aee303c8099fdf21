"""One WebSocket, which owns one session and speaks OpenEnv's protocol."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any

import gymnasium
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from agentgym.errors import AgentgymError
from agentgym.serving.problems import message_of
from agentgym.serving.refusals import UnknownSessionError
from agentgym.serving.sessions import Session, Sessions
from agentgym.serving.wire import Action, Reset

logger = logging.getLogger(__name__)
_TRY_AGAIN, _GONE = 1013, 1001


class Conversation:
    """The messages `reset`, `step`, `state` and `close`, until the client goes, says nothing or never reads."""

    def __init__(self, sessions: Sessions, websocket: WebSocket) -> None:
        self._sessions = sessions
        self._websocket = websocket

    async def run(self) -> None:
        """Talk until the end; the session ends with it."""
        session: Session | None = None
        try:
            session = await self._sessions.begin()
            while (answer := await self._answered(session, await self._heard())) is not None:
                await self._say(answer)
            await self._websocket.close()
        except (WebSocketDisconnect, TimeoutError):
            logger.info("a client is gone, silent or deaf")
            await self._hang_up(_GONE)
        except AgentgymError as error:  # no session could be had, or it has ended
            with suppress(WebSocketDisconnect, TimeoutError):
                await self._say(message_of(error))
            await self._hang_up(_TRY_AGAIN)
        finally:
            if session is not None:
                await asyncio.shield(self._sessions.end(session))

    async def _heard(self) -> str:
        """Wait for a message no longer than a session may be silent, so that no socket outlives its session."""
        async with asyncio.timeout(self._sessions.bounds.session_ttl_s):
            while True:
                found = await self._websocket.receive()
                if found["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(found.get("code", _GONE))
                if isinstance(text := found.get("text"), str):
                    return text
                return bytes(found.get("bytes") or b"").decode("utf-8", "replace")

    async def _say(self, answer: dict[str, Any]) -> None:
        async with asyncio.timeout(self._sessions.bounds.patience_s):
            await self._websocket.send_text(json.dumps(answer))

    async def _hang_up(self, code: int) -> None:
        # A client that is gone cannot be told, and one that does not read would keep us waiting.
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._websocket.close(code)

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
                    return {"type": "state", "data": session.state().model_dump()}
                case "close":
                    return None
                case kind:
                    told = f"wanted the type reset, step, state or close, found {str(kind)[:80]!r}"
                    return {"type": "error", "data": {"message": told, "code": "UNKNOWN_TYPE"}}
        except UnknownSessionError:
            raise
        except (AgentgymError, gymnasium.error.ResetNeeded, ValidationError) as error:
            return message_of(error)
