"""An environment's tools on an MCP server: whatever speaks the protocol can play an episode."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from agentgym.env import AgentEnv
from agentgym.errors import MissingExtraError
from agentgym.task import Task
from agentgym.types import Message, ToolCall


class Episode:
    """One episode, played through calls instead of messages."""

    def __init__(self, env: AgentEnv, task: Task | str | None, seed: int) -> None:
        options = {"task": task} if task is not None else {}
        self.env = env
        self.prompt, self.info = env.reset(seed=seed, options=options)
        self.tools = dict(env.tools)
        self.over = False

    @property
    def instructions(self) -> str:
        """The opening messages, as text."""
        return "\n\n".join(one.content + one.guidance for one in self.prompt)

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Play one turn, and return the observation and what the step says of reward and end."""
        if self.over:
            return "error: the episode has ended; begin another session", {"terminated": True}
        action = Message(role="assistant", tool_calls=(ToolCall(name=name, arguments=arguments),))
        observation, reward, terminated, truncated, info = self.env.step(action)
        told: dict[str, Any] = {"terminated": terminated, "truncated": truncated, "reward": reward}
        lines = [one.content for one in observation]
        if terminated or truncated:
            self.over = True
            verdict = info["verdict"]
            told |= {"value": verdict.value, "level": verdict.level}
            lines.append(f"The episode has ended: {verdict.level}.")
        return "\n".join(lines), told


def mcp_server(begin: Callable[[], Episode]) -> Any:
    """Return an `mcp.server.Server` that plays one episode, begun now.

    Calls run one after another, as an environment plays one turn at a time; each result carries reward and end as
    structured content beside the text.

    Raises:
        MissingExtraError: the package `mcp` is not installed.
    """
    if find_spec("mcp") is None:
        raise MissingExtraError("mcp", "mcp")
    import anyio
    from mcp import types
    from mcp.server import Server

    episode = begin()
    turn = anyio.Lock()

    async def list_tools(_: Any, __: Any) -> Any:
        functions = [one.schema["function"] for one in episode.tools.values()]
        return types.ListToolsResult(
            tools=[
                types.Tool(name=one["name"], description=one["description"], input_schema=one["parameters"])
                for one in functions
            ]
        )

    async def call_tool(_: Any, asked: Any) -> Any:
        async with turn:
            text, told = await anyio.to_thread.run_sync(episode.call, asked.name, asked.arguments or {})
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=text)],
            structured_content=told,
            is_error=text.startswith("error: "),
        )

    return Server(
        f"agentgym {type(episode.env).__name__}",
        instructions=episode.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
