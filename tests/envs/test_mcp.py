"""Tools over the Model Context Protocol: servers of the official package outside, a plain program in a sandbox."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentgym import registry
from agentgym.errors import CapabilityError, InfrastructureError, TaskError, VerifierError
from agentgym.sandbox import SandboxSpec
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.testing import ToyEnv, check_environment, toy_task
from agentgym_envs.mcp.client import McpSession
from agentgym_envs.mcp.env import McpEnv
from agentgym_envs.mcp.server import Episode, mcp_server

pytest.importorskip("mcp")

COUNTER = '''
"""A server as small as the protocol allows: it counts, and can die."""
import json, sys
tools = [{"name": "add", "description": "Add to the count.",
          "inputSchema": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}},
         {"name": "die", "description": "End.", "inputSchema": {"type": "object", "properties": {}}}]
count = 0
for line in sys.stdin:
    asked = json.loads(line)
    method, params = asked.get("method"), asked.get("params", {})
    if "id" not in asked:
        continue
    error = None
    if method == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "counter", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": tools}
    elif method == "tools/call" and params["name"] == "add":
        print("a log line", file=sys.stderr, flush=True)
        count += params["arguments"]["number"]
        text = "x" * 20000 if count == 20000 else "too much" if count > 99999 else "count\\u00e9 %d" % count
        result = {"content": [{"type": "text", "text": text}], "isError": count > 99999}
    elif method == "tools/call":
        sys.exit(3)
    else:
        error = {"code": -32601, "message": "no such method"}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **({"error": error} if error else {"result": result})}),
          flush=True)
'''


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def counting() -> TaskSet:
    task = Task(
        id="count",
        split="train",
        public=Public(prompt="Count to 7, then hand in the count.", files={"counter.py": COUNTER}),
        hidden=Hidden(data={"kind": "exact", "golds": ["7"]}),
        grader="answer",
        sandbox=SandboxSpec(),
    )
    return TaskSet("counting", lambda: [task])


@pytest.fixture(scope="module")
def toy_url() -> Iterator[str]:
    """A streamable HTTP server of the official package that serves the toy environment's tools."""
    import uvicorn

    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = mcp_server(lambda: Episode(ToyEnv(), toy_task(0), 0)).streamable_http_app()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/mcp"
    server.should_exit = True
    thread.join(10)


def test_a_servers_tools_are_an_environments_tools(toy_url: str) -> None:
    tasks = TaskSet(
        "toys",
        lambda: [
            Task(id="t", split="train", public=Public(prompt="Reverse."), grader="answer",
                 hidden=Hidden(data={"kind": "exact", "golds": ["elbram"]}))
        ],
    )  # fmt: skip
    env = McpEnv(tasks, url=toy_url)
    env.reset(seed=0)
    assert set(env.tools) == {"reverse", "answer", "submit"}
    observation, *_, info = env.step(call("reverse", text="marble"))
    assert (observation[0].role, observation[0].content) == ("tool", "elbram")
    assert info["signals"]["valid_calls"] == 1.0
    observation, *_ = env.step(call("reverse", text=3))
    assert "is not of type 'string'" in observation[0].content
    *_, terminated, _, info = env.step(call("submit", answer="elbram"))
    assert (terminated, info["verdict"].value) == (True, 1.0)
    env.close()
    check_environment(lambda: McpEnv(tasks, url=toy_url))


def test_an_empty_answer_scores_nothing_and_is_no_lost_verdict(toy_url: str) -> None:
    task = next(iter(counting()))
    env = McpEnv(TaskSet("one", lambda: [task]), url=toy_url)
    env.reset(seed=0)
    *_, info = env.step(call("submit", answer="  "))
    assert (info["verdict"].value, info["verdict"].level) == (0.0, "empty")
    foreign = task.model_copy(update={"grader": "sql"})
    with pytest.raises(VerifierError, match=r"reaches refused, broken, slow, which McpEnv does not declare"):
        env.reset(options={"task": foreign})
    env.close()


@pytest.mark.docker
def test_a_server_runs_inside_the_episodes_sandbox() -> None:
    backend = registry.create("sandboxes", "docker")
    env = McpEnv(counting(), command=["python3", "counter.py"], sandbox=backend)
    try:
        for wanted in ("counté 3", "counté 3"):  # each episode has a server of its own
            env.reset(seed=0)
            assert set(env.tools) == {"add", "die", "submit"}
            observation, *_ = env.step(call("add", number=3))
            assert observation[0].content == wanted
        observation, *_ = env.step(call("add", number=19997))
        assert len(observation[0].content) > 4000
        assert set(observation[0].content[:2000]) == {"x"}
        observation, *_ = env.step(call("add", number=100000))
        assert observation[0].content == "error: too much"
        *_, info = env.step(call("submit", answer="7"))
        assert info["verdict"].value == 1.0
    finally:
        env.close()
        backend.close()


@pytest.mark.docker
def test_a_server_that_dies_ends_nothing_but_itself() -> None:
    backend = registry.create("sandboxes", "docker")
    env = McpEnv(counting(), command=["python3", "counter.py"], sandbox=backend, timeout_s=20)
    try:
        env.reset(seed=0)
        observation, *_ = env.step(call("die"))
        assert observation[0].content.startswith("error: ")
        for _ in range(2):
            observation, *_ = env.step(call("add", number=1))
            assert observation[0].content.startswith("error: ")
        *_, info = env.step(call("submit", answer="7"))
        assert info["verdict"].value == 1.0
    finally:
        env.close()
        backend.close()


@pytest.mark.docker
def test_a_program_that_does_not_start_is_told_in_one_sentence() -> None:
    backend = registry.create("sandboxes", "docker")
    env = McpEnv(counting(), command=["python3", "nowhere.py"], sandbox=backend, timeout_s=20)
    try:
        with pytest.raises(InfrastructureError, match="no MCP server answers"):
            env.reset(seed=0)
    finally:
        env.close()
        backend.close()


@pytest.mark.docker
def test_a_server_that_does_not_start_is_no_agents_fault() -> None:
    whole = next(iter(counting()))
    bare = whole.model_copy(update={"id": "bare", "public": Public(prompt="Count.")})
    backend = registry.create("sandboxes", "docker")
    command = ["python3", "counter.py"]
    env = McpEnv(TaskSet("both", lambda: [whole, bare]), command=command, sandbox=backend, timeout_s=20)
    try:
        env.reset(options={"task": whole})
        with pytest.raises(InfrastructureError, match="no MCP server answers"):
            env.reset(options={"task": bare})
    finally:
        env.close()
        backend.close()


def test_a_backend_without_sessions_is_refused() -> None:
    backend = registry.create("sandboxes", "process")
    env = McpEnv(counting(), command=["python3", "counter.py"], sandbox=backend)
    with pytest.raises((CapabilityError, InfrastructureError), match="session"):
        env.reset(seed=0)
    env.close()
    backend.close()


def test_nobody_at_an_address_is_told_in_one_sentence() -> None:
    with pytest.raises(InfrastructureError, match="no MCP server answers"):
        McpSession(lambda: "http://127.0.0.1:9/mcp", timeout_s=20)


def test_an_episode_is_played_over_the_protocol_to_its_verdict() -> None:
    server = mcp_server(lambda: Episode(ToyEnv(), toy_task(0), 0))
    results: list[Any] = []

    async def play() -> None:
        from mcp import Client

        async with Client(server) as client:
            assert "Reverse the word 'marble'." in (client.instructions or "")
            for name, arguments in (("reverse", {"text": "ab"}), ("nothing", {}), ("answer", {"text": "elbram"}),
                                    ("reverse", {"text": "ab"})):  # fmt: skip
                results.append(await client.call_tool(name, arguments))

    anyio.run(play)
    texts = [one.content[0].text for one in results]
    assert texts[0] == "ba"
    assert texts[1].startswith("error: ")
    assert texts[2] == "The episode has ended: passed."
    assert texts[3].startswith("error: the episode has ended")
    assert results[2].structured_content == {
        "terminated": True, "truncated": False, "reward": 1.0, "value": 1.0, "level": "passed",
    }  # fmt: skip
    assert [one.is_error for one in results] == [False, True, False, True]


def test_the_command_serves_over_standard_streams(tmp_path: Path) -> None:
    async def play() -> str:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        arguments = [
            "-c",
            "from agentgym.cli import main; main()",
            "mcp",
            "serve",
            "agentgym/Calculator-v0",
            "--seed",
            "3",
        ]
        async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=arguments))) as client:
            found = await client.call_tool("calc", {"expression": "38+47"})
            return str(found.content[0].text)  # type: ignore[union-attr]

    assert anyio.run(play) == "85"


def test_options_that_make_no_server_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted either url or command"):
        McpEnv(counting())
    with pytest.raises(TaskError, match="wanted tasks, or path"):
        McpEnv(url="http://127.0.0.1:9/mcp")
