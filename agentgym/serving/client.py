"""An environment on a server, with the interface that it has here."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import gymnasium

from agentgym.env import Observation
from agentgym.errors import InfrastructureError, MissingExtraError, TaskError
from agentgym.serving.server import TOKEN_VARIABLE
from agentgym.spaces import ActionSpace, ObservationSpace
from agentgym.types import Message, Verdict

_CONNECT_S = 30.0


class RemoteEnv(gymnasium.Env[Observation, Message | str]):
    """One session on a server: `reset` and `step` take and return what they do locally.

    Args:
        url: where the server is, such as `http://127.0.0.1:8000`.
        token: the server's token; by default from AGENTGYM_ENV_TOKEN, none if that is not set.
        timeout_s: of each request. A turn may wait for others on a crowded server, and has its own limit there once it
            begins.

    Raises:
        MissingExtraError: httpx is not installed.
        InfrastructureError: from `reset` and `step`: the server is not reached, is full, or failed.
        TaskError: from `reset`: the server knows no such task.
    """

    metadata = {"render_modes": []}

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 1800.0) -> None:
        if find_spec("httpx") is None:
            raise MissingExtraError("httpx", "remote")
        import httpx

        given = token if token is not None else os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        base = url.rstrip("/")
        # Certificates take a while to load, and a server without TLS needs none.
        verify = base.startswith("https:")
        patience = httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S))
        self._http = httpx.Client(base_url=base, headers=headers, timeout=patience, verify=verify, trust_env=False)
        self._session: str | None = None
        self.action_space = ActionSpace()
        self.observation_space = ObservationSpace()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `options` may hold the id of a `task`, and a `hint`."""
        super().reset(seed=seed)
        body = {"seed": seed, **(options or {})}
        if self._session is None:
            found = self._ask("POST", "/sessions", body)
            self._session = found["session_id"]
        else:
            found = self._ask("POST", f"/sessions/{self._session}/reset", body)
        observation = found["observation"]
        info = _info(observation)
        del info["terminated"], info["truncated"]
        return _messages(observation), {**info, "tools": observation["tools"]}

    def step(self, action: Message | str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one assistant message."""
        if self._session is None:
            raise gymnasium.error.ResetNeeded("the episode has not begun; call reset() first")
        message = Message(role="assistant", content=action) if isinstance(action, str) else action
        calls = [one.model_dump(include={"name", "arguments", "id"}) for one in message.tool_calls]
        body = {"content": message.content, "tool_calls": calls, "call_format": message.call_format}
        found = self._ask("POST", f"/sessions/{self._session}/step", body)
        observation = found["observation"]
        info = _info(observation)
        terminated, truncated = info.pop("terminated"), info.pop("truncated")
        return _messages(observation), found["reward"], terminated, truncated, info

    def close(self) -> None:
        """End the session, and every connection."""
        import httpx

        session, self._session = self._session, None
        try:
            if session is not None:
                self._http.delete(f"/sessions/{session}")
        except httpx.HTTPError:
            return  # the server ends a silent session by itself
        finally:
            self._http.close()

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            found = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise InfrastructureError(
                f"the server at {self._http.base_url} does not answer: {type(error).__name__}: {error}"
            ) from error
        if found.is_success:
            return dict(found.json())
        told, kind = _told(found)
        if found.status_code == 409:
            raise gymnasium.error.ResetNeeded(told)
        if kind == "UnknownSessionError":
            self._session = None  # the next reset opens another
        elif found.status_code == 422:
            raise TaskError(f"the server at {self._http.base_url} refuses: {told}")
        raise InfrastructureError(f"the server at {self._http.base_url} answers {found.status_code}: {told}")


def _messages(observation: dict[str, Any]) -> Observation:
    return tuple(Message.model_validate(one) for one in observation["messages"])


def _info(observation: dict[str, Any]) -> dict[str, Any]:
    info = dict(observation["info"])
    if isinstance(info.get("verdict"), dict):
        info["verdict"] = Verdict.model_validate(info["verdict"])
    return info


def _told(found: Any) -> tuple[str, str]:
    """Return what an answer says, and the name of its error."""
    try:
        body = found.json()
    except ValueError:
        body = {"detail": found.text}
    return str(body.get("detail", body))[:300], str(body.get("error", ""))
