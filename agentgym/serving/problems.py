"""How errors are told to clients: one sentence, the error's name, and a status or a code of OpenEnv's."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from agentgym.errors import AgentgymError, CapabilityError, InfrastructureError, UnknownNameError
from agentgym.serving.refusals import FullError, TurnTimeoutError, UnknownSessionError
from agentgym.serving.wire import Problem

_NOT_ALLOWED = 405
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
_MEANINGS = {
    400: "the body cannot be read",
    401: "no token, or a wrong one",
    404: "no such session",
    408: "the request did not come in time",
    409: "no episode that could go on",
    413: "the body is too large",
    422: "what was asked is malformed, or there is no such task",
    500: "the environment raised an error, or its verifier failed",
    503: "the server is full, or its infrastructure failed",
    504: "the turn took too long, and its session is ended",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses."""
    return {one: {"model": Problem, "description": _MEANINGS[one]} for one in statuses}


def references(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the same for a path that answers with another type of content when all is well."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {one: {"description": _MEANINGS[one], "content": content} for one in statuses}


def answer_problems(app: FastAPI) -> None:
    """Have every error answered as a `Problem`."""
    for kind, status, _ in _STATUS:
        app.add_exception_handler(kind, _answer(status))

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _problem(422, _sentence(error.errors()[0]), "ValidationError")

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == _NOT_ALLOWED:  # each route knows its own method only
            headers["Allow"] = ", ".join(_methods(app.openapi(), request.url.path))
        return _problem(error.status_code, error.detail, "Refused", headers)

    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, refused)


def message_of(error: Exception) -> dict[str, Any]:
    """Return an error as a message of OpenEnv's protocol."""
    if isinstance(error, ValidationError):
        told, code = _sentence(error.errors(include_url=False)[0]), "VALIDATION_ERROR"
    else:
        told, code = str(error), next(code for kind, _, code in _STATUS if isinstance(error, kind))
    return {"type": "error", "data": {"message": told, "code": code}}


def _methods(document: dict[str, Any], path: str) -> list[str]:
    """Return what may be done at a path."""
    patterns = {one: re.sub(r"\{\w+\}", "[^/]+", one) for one in document["paths"]}
    return sorted(
        method.upper()
        for one, item in document["paths"].items()
        if re.fullmatch(patterns[one], path)
        for method in item
    )


def _answer(status: int) -> Any:
    async def answer(_: Request, error: Exception) -> JSONResponse:
        return _problem(status, str(error), type(error).__name__)

    return answer


def _problem(status: int, told: Any, name: str, headers: Any = None) -> JSONResponse:
    # What a client wrote may hold halves of characters, which no answer can.
    clean = str(told).encode("utf-8", "backslashreplace").decode()
    return JSONResponse(Problem(detail=clean, error=name).model_dump(), status, headers)


def _sentence(first: Any) -> str:
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{where or 'data'}: {first['msg']}"
