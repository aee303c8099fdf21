"""OpenEnv, from its own package in its own virtual environment: its client plays here, and we play on its server."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import InfrastructureError, TaskError
from agentgym.serving.app import create_app
from agentgym.serving.sessions import Sessions
from agentgym.testing import ToyEnv, check_environment
from agentgym_envs.openenv.env import OpenEnv

pytestmark = pytest.mark.slow

CLIENT = """
import json, sys
from openenv.core import GenericEnvClient

with GenericEnvClient(base_url=sys.argv[1], headers={"Authorization": "Bearer a-token-of-some-length"}).sync() as env:
    first = env.reset(seed=3, task="toy-0")
    seen = env.step({"tool_calls": [{"name": "reverse", "arguments": {"text": "marble"}}]})
    last = env.step({"content": '<tool_call>{"name": "answer", "arguments": {"text": "elbram"}}</tool_call>'})
    print(json.dumps([first.observation["messages"][0]["content"], seen.observation["messages"][0]["content"],
                      seen.done, last.reward, last.done, env.state()["step_count"]]))
"""

SERVER = """
import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

class Echo(Action):
    message: str

class Heard(Observation):
    echoed_message: str

class EchoEnvironment(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self):
        super().__init__()
        self._state = State(episode_id="e", step_count=0)
    def reset(self, seed=None, episode_id=None, **_):
        self._state = State(episode_id=f"seed {seed}", step_count=0)
        return Heard(echoed_message=f"say {seed} twice", done=False, reward=0.0)
    def step(self, action, **_):
        self._state.step_count += 1
        right = action.message == self._state.episode_id.split()[1]
        return Heard(echoed_message=action.message, reward=0.5 if right else 0.0, done=self._state.step_count == 2)
    @property
    def state(self):
        return self._state

app = create_fastapi_app(EchoEnvironment, Echo, Heard, max_concurrent_envs=8)
server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
import asyncio
async def main():
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print("port", server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def python(install: Callable[..., Path]) -> Path:
    return install("openenv==0.10.0")


def test_an_openenv_client_plays_an_episode_on_our_server(python: Path) -> None:
    import uvicorn

    app = create_app(Sessions(ToyEnv), "a-token-of-some-length", name="toy")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        command = [str(python), "-c", CLIENT, f"http://127.0.0.1:{port}"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        server.should_exit = True
        thread.join(20)
    assert found.returncode == 0, found.stderr
    prompt, seen, done, reward, ended, steps = json.loads(found.stdout.splitlines()[-1])
    assert "Reverse the word 'marble'." in prompt
    assert (seen, done, reward, ended, steps) == ("elbram", False, 1.0, True, 2)


@pytest.fixture(scope="module")
def echo(python: Path) -> Iterator[str]:
    with subprocess.Popen([str(python), "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"port (\d+)\n", process.stdout.readline())
        assert found
        yield f"http://127.0.0.1:{found[1]}"
        process.terminate()


def play(env: OpenEnv, lines: list[str]) -> dict[str, Any]:
    for line in lines:
        observation, *_, terminated, truncated, info = env.step(line)
        if terminated or truncated:
            return info
    return {**info, "shown": [one.content for one in observation]}


def test_we_play_episodes_on_an_openenv_server(echo: str) -> None:
    env = OpenEnv(url=echo, field="message")
    try:
        for task, lines, value in (
            ("seed-3", ["3", "3"], 1.0),
            ("seed-4", ["4", "3"], 0.5),
            ("seed-5", ["", "x"], 0.0),
        ):
            observation, _ = env.reset(options={"task": task})
            assert f"say {task[5:]} twice" in observation[0].content
            info = play(env, lines)
            assert (info["verdict"].value, info["verdict"].trust) == (value, "shared")
    finally:
        env.close()
    check_environment(lambda: OpenEnv(url=echo, field="message"))


def test_a_malformed_action_is_told_and_ends_nothing(echo: str) -> None:
    env = OpenEnv(url=echo)
    try:
        env.reset(options={"task": "seed-3"})
        for bad, told in (("no json", "wanted a JSON object"), ("[1]", "found list"), ('{"mesage": "3"}', "refused")):
            info = play(env, [bad])
            assert told in info["shown"][0]
            assert info["signals"]["malformed"] == 1.0
        assert play(env, ['{"message": "3"}', '{"message": "3"}'])["verdict"].value == 1.0
    finally:
        env.close()


def test_nobody_at_an_address_and_no_address_are_told() -> None:
    env = OpenEnv(url="http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="does not answer"):
        env.reset()
    with pytest.raises(TaskError, match="wanted the URL of an OpenEnv server"):
        OpenEnv(url="127.0.0.1:9")
