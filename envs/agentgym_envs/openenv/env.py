"""The environment `agentgym/OpenEnv-v0`: play episodes on an OpenEnv server over its WebSocket protocol."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

from agentgym.env import AgentEnv, Observation, Submit
from agentgym.errors import AgentFault, InfrastructureError, MissingExtraError, TaskError, VerifierError
from agentgym.task import Hidden, Public, Task, TaskSet, scripted_messages
from agentgym.types import Message, Split, Submission, Trust, Verdict

try:
    from websockets.exceptions import ConnectionClosed, InvalidHandshake
    from websockets.sync.client import ClientConnection, connect
except ImportError as missing:
    raise MissingExtraError("websockets", "serve") from missing

_SHOWN = 20_000
_LARGEST = 64 << 20
_TOO_DEEP = "wanted a JSON object with the fields of an action, found one that is nested too deeply"


class OpenEnv(AgentEnv):
    """A message is an action: a JSON object of the server's action fields, or, with `field`, that field's text.

    The server decides when the episode is over and what it was worth; its rewards are summed, divided by `best` and cut
    to 0..1. Nobody here can vouch for them, so the verdict's trust is the lowest that a program's word has, `shared`.
    """

    conversational = True
    levels = ("no_submission", "failed", "partial", "passed")
    signals = ("server_reward",)

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        path: str | None = None,
        url: str,
        field: str | None = None,
        best: float = 1.0,
        count: int = 1000,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        **options: Any,
    ) -> None:
        """Choose the server.

        Args:
            tasks: a task set; `public.data["reset"]` of a task is what the server's reset gets. Without one, a task
                is a seed.
            path: JSON Lines of such tasks instead.
            url: of the server, `http://…` or `ws://…`.
            field: the field of an action that a message's text fills.
            best: the sum of rewards that counts as solved.
            count: how many seeds, 80% of them for training.
            headers: for the handshake, such as an Authorization.
            timeout_s: of each answer.
            **options: those of `AgentEnv`.
        """
        if best <= 0:
            raise ValueError(f"wanted best above 0, found {best}")
        if tasks is None and path is not None:
            tasks = TaskSet.from_jsonl(path)
        super().__init__(tasks or _seeds(count), **options)
        self._url = _socket_url(url)
        self._field, self._best, self._timeout_s = field, best, timeout_s
        self._headers = dict(headers or {})
        self._line = ExitStack()
        self._socket: ClientConnection | None = None
        self._reward = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode on the server, on a connection of its own.

        Raises:
            InfrastructureError: the server does not answer.
        """
        self._hang_up()
        self._reward = 0.0
        return super().reset(seed=seed, options=options)

    def prompt(self) -> Sequence[Message]:
        """The task's own words, and what the server shows first."""
        given: Any = self.task.data.get("reset", {})
        try:
            self._socket = self._line.enter_context(
                connect(self._url, additional_headers=self._headers, open_timeout=self._timeout_s, max_size=_LARGEST)
            )
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise InfrastructureError(f"the OpenEnv server at {self._url} does not answer: {error}") from error
        found = self._ask("reset", given)
        shown = _text(found["observation"])
        how = f"Answer with {self._field}." if self._field else "Answer with a JSON object: the fields of an action."
        return (Message(role="user", content="\n\n".join(one for one in (self.task.prompt, shown, how) if one)),)

    def on_text(self, text: str) -> str | Submit:
        """Take one step on the server.

        Raises:
            AgentFault: the server fails at this action, or does not answer it in time.
            InfrastructureError: the connection is gone, or what answers does not speak OpenEnv's protocol.
            VerifierError: the server pays what is no finite number.
        """
        action: Any = {self._field: text} if self._field else _object(text)
        found = self._ask("step", action)
        paid = _number(found.get("reward"))
        if paid is None or not math.isfinite(self._reward + paid):
            raise VerifierError(f"the OpenEnv server at {self._url} pays {str(found.get('reward'))[:80]!r}, no number")
        self._reward += paid
        self.emit("server_reward", paid)
        if found.get("done"):
            return Submit(_text(found["observation"]))
        return _text(found["observation"])

    def oracle(self, task: Task) -> Sequence[str]:
        """Say what the task's `hidden.reference["messages"]` holds; seeds have no such thing."""
        return scripted_messages(task)

    def grade(self, task: Task, submission: Submission) -> Verdict:  # noqa: ARG002
        """Return what the server's rewards of this episode make; nothing that is handed in can add to them."""
        value = min(1.0, max(0.0, self._reward / self._best))
        level = "passed" if value == 1.0 else "failed" if value == 0.0 else "partial"
        return Verdict(value=value, level=level, trust=Trust.SHARED)

    def close(self) -> None:
        """End the server's session."""
        self._hang_up()
        super().close()

    def _ask(self, kind: str, data: Any) -> Mapping[str, Any]:
        if self._socket is None:
            raise InfrastructureError("there is no connection to the OpenEnv server")
        try:
            asked = json.dumps({"type": kind, "data": data})
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
        try:
            self._socket.send(asked)
            answer = json.loads(self._socket.recv(self._timeout_s))
        except TimeoutError as error:
            if kind == "step":
                raise AgentFault(f"the server did not answer this action within {self._timeout_s:g} s") from error
            raise InfrastructureError(
                f"the OpenEnv server at {self._url} did not answer within {self._timeout_s:g} s"
            ) from error
        except (ConnectionClosed, ValueError, RecursionError) as error:
            raise InfrastructureError(f"the OpenEnv server at {self._url} failed: {error}") from error
        body = answer.get("data", {}) if isinstance(answer, dict) else {}
        if isinstance(answer, dict) and answer.get("type") == "error":
            told = str(body.get("message", body))[:500]
            if kind == "step" and body.get("code") == "VALIDATION_ERROR":
                raise ValueError(f"the action is refused: {told} {_first_errors(body)}".strip())
            if kind == "step" and body.get("code") == "EXECUTION_ERROR":
                raise AgentFault(f"the server failed at this action: {told}")
            raise InfrastructureError(f"the OpenEnv server at {self._url} answers: {told}")
        if not isinstance(body, dict) or not isinstance(body.get("observation"), dict):
            raise InfrastructureError(f"what answers at {self._url} does not speak OpenEnv's protocol")
        return body

    def _hang_up(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            with suppress(ConnectionClosed, OSError):
                socket.send(json.dumps({"type": "close"}))
        self._line.close()


def _number(reward: object) -> float | None:
    """Return a reward as a number, nothing as 0.0; None if it is no finite number."""
    if reward is None:
        return 0.0
    known = isinstance(reward, (int, float)) and abs(reward) <= sys.float_info.max
    return float(cast(float, reward)) if known else None


def _object(text: str) -> Any:
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"wanted a JSON object with the fields of an action: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"wanted a JSON object, found {type(found).__name__}")
    return found


def _text(observation: Mapping[str, Any]) -> str:
    """Return an observation as text: its only field that holds something, or all of them as JSON."""
    shown = {name: value for name, value in observation.items() if value not in (None, {}, [], "") and name != "done"}
    if len(shown) == 1 and isinstance(only := next(iter(shown.values())), str):
        return only[:_SHOWN]
    return json.dumps(shown, ensure_ascii=False)[:_SHOWN]


def _first_errors(body: Mapping[str, Any]) -> str:
    errors = body.get("errors", [])
    return "; ".join(f"{'.'.join(map(str, one.get('loc', ())))}: {one.get('msg')}" for one in errors[:3])


def _socket_url(url: str) -> str:
    for scheme, other in (("http://", "ws://"), ("https://", "wss://"), ("ws://", "ws://"), ("wss://", "wss://")):
        if url.startswith(scheme):
            return f"{other}{url[len(scheme) :].rstrip('/')}/ws"
    raise TaskError(f"wanted the URL of an OpenEnv server, such as http://127.0.0.1:8000, found {url!r}")


def _seeds(count: int) -> TaskSet:
    def source() -> Iterator[Task]:
        for seed in range(count):
            split: Split = "train" if seed % 10 < 8 else "validation" if seed % 10 == 8 else "test"
            yield Task(id=f"seed-{seed}", split=split, public=Public(prompt="", data={"reset": {"seed": seed}}),
                       hidden=Hidden())  # fmt: skip

    return TaskSet("openenv", source)
