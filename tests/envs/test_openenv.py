"""Who is to blame where an OpenEnv server refuses, fails, says nothing or is gone; the server is scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from agentgym.errors import InfrastructureError
from agentgym_envs.openenv.env import OpenEnv

pytest.importorskip("websockets")
from websockets.sync.server import ServerConnection, serve

BEGUN = {"type": "observation", "data": {"observation": {"text": "begin"}, "reward": 0.0, "done": False}}
WON = {"type": "observation", "data": {"observation": {"text": "done"}, "reward": 1.0, "done": True}}


def answer(line: ServerConnection) -> None:
    """Do what the action says."""
    for text in line:
        asked = json.loads(text)
        match asked["data"].get("do") if asked["type"] == "step" else asked["type"]:
            case "reset":
                line.send(json.dumps(BEGUN))
            case "win":
                line.send(json.dumps(WON))
            case "fail":
                told = {"message": "division by zero", "code": "EXECUTION_ERROR"}
                line.send(json.dumps({"type": "error", "data": told}))
            case "leave":
                return
            case "mumble":
                line.send("no JSON")


@pytest.fixture
def env() -> Iterator[OpenEnv]:
    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        made = OpenEnv(url=f"http://127.0.0.1:{server.socket.getsockname()[1]}", count=10, timeout_s=1.0)
        made.reset(seed=0)
        yield made
        made.close()
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("action", "told"),
    [("fail", "the server failed at this action: division by zero"), ("hang", "did not answer this action within 1 s")],
)
def test_an_action_at_which_the_server_fails_or_hangs_loses_the_episode(env: OpenEnv, action: str, told: str) -> None:
    observation, _, terminated, _, info = env.step(json.dumps({"do": action}))
    assert told in observation[0].content
    assert (terminated, info["end"], info["verdict"].value) == (True, "agent_fault", 0.0)


@pytest.mark.parametrize("action", ["leave", "mumble"])
def test_a_server_that_is_gone_or_speaks_otherwise_is_infrastructure(env: OpenEnv, action: str) -> None:
    with pytest.raises(InfrastructureError, match="failed"):
        env.step(json.dumps({"do": action}))


def test_an_action_that_is_nested_too_deeply_is_told_and_the_episode_goes_on(env: OpenEnv) -> None:
    for text in ("[" * 100_000, '{"do": ' + "[" * 100_000, "[1]"):
        observation, _, terminated, _, _ = env.step(text)
        assert observation[0].content.startswith("error: wanted a JSON object")
        assert not terminated
    *_, terminated, _, info = env.step(json.dumps({"do": "win"}))
    assert (terminated, info["verdict"].value) == (True, 1.0)
