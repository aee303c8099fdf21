"""What environments play on that bring no tasks of their own: servers on this machine, and a folder."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agentgym import registry
from agentgym.env import AgentEnv
from agentgym.task import Hidden, Public, Task, TaskSet
from benchmarks.workers import mcp_register
from benchmarks.workers.mcp_register import NAMES, code_of, friend_of, look_up

COLOURS = ("red", "blue", "green", "teal")
_WORDS = "".join(f"{COLOURS[(7 * at * at + at // 3) % 4]} {at}\n" for at in range(97))
_TOML = """version = "1.0"
[metadata]
difficulty = "easy"
[verifier]
timeout_sec = 60.0
env = {{ COLOUR = "{colour}", LEAST = "{least}" }}
[environment]
memory_mb = 256
"""
_COUNT = "grep -w {colour} words.txt | awk '$2 >= {least}' | wc -l >count.txt"
_TEST = """#!/bin/bash
wanted=$(grep -w "$COLOUR" /tests/words.txt | awk -v n="$LEAST" '$2 >= n' | wc -l)
if [ "$(tr -d ' ' </app/count.txt 2>/dev/null)" = "$wanted" ]; then
  echo 1 >/logs/verifier/reward.txt
else
  echo 0 >/logs/verifier/reward.txt
fi
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Options that only the place knows."""

    options: Mapping[str, Any] = field(default_factory=dict)
    backend: Mapping[str, Any] = field(default_factory=dict)
    """Of the sandbox backend."""


def mcp_outside(stack: ExitStack) -> Place:
    """Serve a register of people over streamable HTTP, with the official SDK."""
    app = register_server().streamable_http_app(stateless_http=False)
    return Place({"tasks": register_tasks(), "url": f"{stack.enter_context(serving(app))}/mcp"})


def mcp_inside(_: ExitStack) -> Place:
    """Put the same register, as a program, into every sandbox."""
    return Place({"tasks": register_tasks(inspect.getsource(mcp_register)), "command": ["python3", "register.py"]})


def openenv(stack: ExitStack) -> Place:
    """Serve the calculator with our own server, which speaks OpenEnv's protocol."""
    from agentgym.serving.app import create_app
    from agentgym.serving.sessions import Bounds, Sessions

    sessions = Sessions(lambda: registry.make("agentgym/Calculator-v0"), Bounds(sessions=1024))
    url = stack.enter_context(serving(create_app(sessions, None, name="calculator")))
    served = registry.make("agentgym/Calculator-v0")
    return Place({"tasks": TaskSet("served", lambda: (_served(served, task) for task in served.tasks)), "url": url})


def harbor(stack: ExitStack) -> Place:
    """Write a folder of Harbor tasks, all of which share one image."""
    root = Path(stack.enter_context(TemporaryDirectory(prefix="agentgym-harbor-")))
    for colour in COLOURS:
        for least in (10, 35, 60):
            _harbor_task(root / f"count-{colour}-{least}", colour, least)
    return Place({"path": str(root)}, {"contexts": str(root)})


def register_tasks(program: str | None = None) -> TaskSet:
    """Return one task for each name: the code of that person's friend, which takes two calls to learn."""

    def one(name: str) -> Task:
        friend = friend_of(name)
        calls = [_call("look_up", name=name), _call("look_up", name=friend), _call("submit", answer=code_of(friend))]
        return Task(
            id=name.lower(),
            split="train",
            public=Public(
                prompt=f"Hand in the code of the friend of {name}.",
                files={"register.py": program} if program is not None else {},
            ),
            hidden=Hidden(data={"kind": "exact", "golds": [code_of(friend)]}, reference={"messages": [*calls]}),
            grader="answer",
        )

    return TaskSet("register", lambda: map(one, NAMES))


def register_server() -> Any:
    """Return the register as a server of the official SDK."""
    from mcp import types
    from mcp.server import Server

    tool = types.Tool.model_validate(mcp_register.TOOL)

    async def list_tools(_: Any, __: Any) -> Any:
        return types.ListToolsResult(tools=[tool])

    async def call_tool(_: Any, asked: Any) -> Any:
        text, known = look_up(str((asked.arguments or {}).get("name")))
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=not known)

    return Server("register", on_list_tools=list_tools, on_call_tool=call_tool)


@contextmanager
def serving(app: Any, **config: Any) -> Iterator[str]:
    """Serve an application on a free loopback port from a thread, and yield its URL."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **config))
    thread = threading.Thread(target=server.run, name="serving", daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def _served(env: AgentEnv, task: Task) -> Task:
    messages = [json.dumps({"content": line}) for line in env.oracle(task)]
    return Task(
        id=task.id,
        split=task.split,
        public=Public(prompt="", data={"reset": {"task": task.id}}),
        hidden=Hidden(reference={"messages": [*messages]}),
    )


def _harbor_task(folder: Path, colour: str, least: int) -> None:
    solution = f"#!/bin/bash\n{_COUNT.format(colour=colour, least=least)}\n"
    files = {
        "task.toml": _TOML.format(colour=colour, least=least),
        "instruction.md": f"Write to count.txt how many lines of words.txt are {colour} and at least {least}.\n",
        "environment/Dockerfile": "FROM agentgym-base:latest\nUSER 0\nWORKDIR /app\nCOPY words.txt .\n",
        "environment/words.txt": _WORDS,
        "tests/test.sh": _TEST,
        "tests/words.txt": _WORDS,
        "solution/solve.sh": solution,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _call(tool: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"
