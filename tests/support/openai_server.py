"""An endpoint on the loopback that speaks the chat-completions protocol as strictly as the original."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the endpoint answers."""

    message: Mapping[str, Any] | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    raw: bytes | None = None
    """Sent instead of a completion."""
    delay_s: float = 0.0
    usage: Mapping[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 3})


def say(text: str, **options: Any) -> Reply:
    """Answer with text."""
    return Reply({"role": "assistant", "content": text}, **options)


def call(name: str, arguments: str, call_id: str = "c1", **options: Any) -> Reply:
    """Answer with one tool call."""
    return calls((name, arguments, call_id), **options)


def calls(*each: tuple[str, Any, str], **options: Any) -> Reply:
    """Answer with tool calls; their arguments are text, or an object where a server is that odd."""
    shown = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments, call_id in each
    ]
    message = {"role": "assistant", "content": None, "tool_calls": shown}
    return Reply(message, finish_reason="tool_calls", **options)


def refuse(status: int, code: str = "error", **headers: str) -> Reply:
    """Answer with an error."""
    body = json.dumps({"error": {"message": f"this is {code}", "code": code}}).encode()
    return Reply(status=status, raw=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


class Endpoint(ThreadingHTTPServer):
    """Answers by a function of the request's body; remembers bodies, headers and how many came at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Body], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.connections = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.now = 0

    @property
    def url(self) -> str:
        """The base that a client is given."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def setup(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.now += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.now)
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.times.append(time.monotonic())
        try:
            wrong = "" if self.path == "/v1/chat/completions" else f"no such path {self.path}"
            reply = (
                refuse(404, wrong)
                if wrong
                else refuse(400, wrong)
                if (wrong := _wrong(body))
                else self.server.answer(body)
            )
            time.sleep(reply.delay_s)
        finally:
            with self.server.lock:
                self.server.now -= 1
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        content = reply.raw
        if content is None:
            choice = {"index": 0, "message": reply.message, "finish_reason": reply.finish_reason}
            data = {"id": "x", "object": "chat.completion", "choices": [choice], "usage": reply.usage}
            content = json.dumps(data).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """The tests' output is not the place."""


def _wrong(body: Body) -> str:
    """Return what the original would refuse of a request."""
    allowed = {"model", "messages", "tools", "max_tokens", "max_completion_tokens", "seed", "temperature", "top_p"}
    if body.keys() - allowed:
        return f"unknown fields {sorted(body.keys() - allowed)}"
    waiting: list[str] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            if message.get("tool_call_id") not in waiting:
                return "a tool message that answers no call"
            waiting.remove(message["tool_call_id"])
        elif waiting:
            return f"calls without an answer: {waiting}"
        for one in message.get("tool_calls", ()):
            json.loads(one["function"]["arguments"])
            waiting.append(one["id"])
    return f"calls without an answer: {waiting}" if waiting else ""


@contextlib.contextmanager
def endpoint(answer: Callable[[Body], Reply]) -> Iterator[Endpoint]:
    """Serve until the block ends."""
    with Endpoint(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def script(*replies: Reply) -> Callable[[Body], Reply]:
    """Answer with one after the other, the last again and again."""
    left = list(replies)
    lock = threading.Lock()

    def answer(_: Body) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer
