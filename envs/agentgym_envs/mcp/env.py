"""The environment `agentgym/Mcp-v0`: the tools of an MCP server, tasks of one's own, any registered grader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import InfrastructureError, TaskError, VerifierError
from agentgym.task import Task, TaskSet, scripted_messages
from agentgym.tools import Tool
from agentgym_envs.mcp.client import McpSession
from agentgym_envs.mcp.stdio import sandboxed_server


class McpEnv(AgentEnv):
    """Every episode has a session of its own with the server, and with `command` also a server of its own.

    Beside the server's tools there is `submit`, which hands in an answer; a server's tool of that name is hidden by it.
    """

    tools_elsewhere = True
    levels = ("no_submission", "empty", "malformed", "failed", "partial", "passed")
    """Those of graders that judge an answer: `answer`, `judge` and compositions of them."""

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        path: str | None = None,
        url: str | None = None,
        command: Sequence[str] | None = None,
        timeout_s: float = 60.0,
        **options: Any,
    ) -> None:
        """Choose the server and the tasks.

        Args:
            tasks: a task set.
            path: JSON Lines of tasks instead; each names its `grader`, or the class overrides `grade`.
            url: of a server that speaks streamable HTTP, outside of the sandbox.
            command: of a server that speaks over its standard streams, started inside each episode's sandbox.
            timeout_s: of the handshake, and of each call.
            **options: those of `AgentEnv`.
        """
        if (url is None) == (command is None):
            raise ValueError(f"wanted either url or command, found url={url!r} and command={command!r}")
        if tasks is None and path is None:
            raise TaskError("wanted tasks, or path: a file of JSON Lines with one task per line")
        super().__init__(tasks or TaskSet.from_jsonl(path or ""), **options)
        self.sandboxed = command is not None
        self._url, self._command, self._timeout_s = url, list(command or ()), timeout_s
        self._session: McpSession | None = None
        self._known: dict[str, Tool] | None = None

    def tools_for(self, task: Task) -> Mapping[str, Tool]:
        """Return the server's tools, listed once, and `submit`."""
        if self._known is None:
            self._known = self._listed(task)
        return {**self._known, **self.tools}

    def call_tool(self, one: Tool, arguments: Mapping[str, Any]) -> Any:
        """Call the server; `submit` is our own."""
        if one.name == "submit":
            return super().call_tool(one, arguments)
        try:
            return self.session.call(one.name, arguments)
        except InfrastructureError as error:
            if not self.sandboxed:
                raise
            # Whatever runs beside the agent may be the agent's doing, and must not void its episode.
            raise ValueError(f"the tools are gone for this episode: {error}") from error

    @property
    def session(self) -> McpSession:
        """The episode's session, begun at reset where the server runs in the sandbox, else at the first call."""
        if self._session is None:
            self._session = self._begin(self.sandbox if self.sandboxed else None)
        return self._session

    @tool
    def submit(self, answer: str) -> Submit:
        """Hand in the answer; the episode ends."""
        return Submit(answer)

    def check_task(self, task: Task) -> None:
        """Refuse a task whose grader cannot judge it, or reaches levels that the class does not declare.

        Raises:
            VerifierError: saying what is wrong; else an agent could void its attempt by what it hands in.
        """
        name = task.grader or self.grader
        reached: Sequence[str] = getattr(registry.lookup("graders", name), "levels", ()) if name else ()
        if foreign := [level for level in reached if level not in self.levels]:
            raise VerifierError(
                f"the grader {name!r} of task {task.id!r} reaches {', '.join(foreign)}, which {type(self).__name__}"
                " does not declare; take a grader of answers, or name them in `levels` of a subclass"
            )
        super().check_task(task)

    def oracle(self, task: Task) -> Sequence[str]:
        """Say what the task's `hidden.reference["messages"]` holds."""
        return scripted_messages(task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode, and its server where that runs in the sandbox.

        Raises:
            InfrastructureError: the server does not start; no agent has done anything yet.
        """
        self._end_session()
        found = super().reset(seed=seed, options=options)
        if self.sandboxed:
            _ = self.session
        return found

    def close(self) -> None:
        """End the episode's session and sandbox."""
        self._end_session()
        super().close()

    def _begin(self, box: Any) -> McpSession:
        connect = partial(sandboxed_server, box, self._command) if box is not None else lambda: self._url
        return McpSession(connect, timeout_s=self._timeout_s)

    def _listed(self, task: Task) -> dict[str, Tool]:
        if not self.sandboxed:
            session = self._begin(None)
            session.close()
            return session.tools
        with self.sandboxes.start(task.sandbox) as box:
            box.upload({path: text.encode() for path, text in task.public.files.items()})
            session = self._begin(box)
            session.close()
            return session.tools

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
