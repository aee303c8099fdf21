"""A real server of environments in a thread of the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from agentgym.env import AgentEnv
from agentgym.serving.app import create_app
from agentgym.serving.patience import KEPT_S, impatient
from agentgym.serving.sessions import Bounds, Sessions
from agentgym.testing import ToyEnv

TOKEN = "a-token-of-some-length"


@contextmanager
def running(make_env: Callable[[], AgentEnv] = ToyEnv, *, token: str | None = TOKEN, **bounds: Any) -> Iterator[str]:
    """Run a real server in a thread and yield its URL."""
    sessions = Sessions(make_env, Bounds(**bounds))
    config = uvicorn.Config(create_app(sessions, token, name="toy"), port=0, log_config=None,
                            http=impatient(sessions.bounds.patience_s), timeout_keep_alive=KEPT_S,
                            ws_max_size=sessions.bounds.message_bytes)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def ask(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False, timeout=30)
