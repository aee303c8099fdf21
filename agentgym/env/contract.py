"""What the author of an environment declares, uses and overrides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import gymnasium
import numpy as np

from agentgym import registry
from agentgym.env.messages import Observation
from agentgym.errors import SandboxError, TaskError, VerifierError
from agentgym.grading_sandboxes import GradingSandboxes
from agentgym.noise import Review
from agentgym.rewards import OutcomeOnly, RewardScheme, check_levels, check_signals
from agentgym.sandbox import Sandbox, SandboxBackend
from agentgym.spaces import ActionSpace, ObservationSpace
from agentgym.task import Public, Task, TaskSet
from agentgym.tools import Submit, Tool, tools_of
from agentgym.types import Message, Signal, Split, Submission, ToolCall, Turn, Verdict

Guard = Callable[[ToolCall, Sequence[Turn]], str | None]
"""Asked before every well-formed call runs, with the episode so far: a reason refuses it, and the agent reads that
(after VeriGuard: a policy's predicate stands between what an agent proposes and what happens)."""


class EnvContract(gymnasium.Env[Observation, Message | str]):
    """What an environment is made with, and what its author may use or override; `AgentEnv` plays episodes with it."""

    metadata = {"render_modes": ["ansi"], "render_fps": 1}
    tasks: TaskSet
    """The default tasks; a constructor argument replaces them."""
    sandboxed: bool = False
    """Whether the tools need `self.sandbox`."""
    paced: bool = False
    """Whether it changes with training's `progress`; a trainer that cannot tell it how far it is refuses such a one."""
    sandbox_at: ClassVar[Literal["reset", "first use"]] = "reset"
    """When an episode's sandbox is started: `first use` saves it where the agent hands in without ever needing it."""
    tools_elsewhere: ClassVar[bool] = False
    """Whether `tools_for` asks another process; a rollout then waits for it in a thread."""
    grader: ClassVar[str | None] = None
    """A registered grader, for environments that do not override `grade`."""
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "failed", "passed")
    """The verdict levels that this environment can reach, worst first."""
    conversational: ClassVar[bool] = False
    """Whether a message that calls no tool is said to somebody, and so is not malformed."""
    signals: ClassVar[tuple[str, ...]] = ("malformed", "refused", "valid_calls")
    """The turn signals that this class emits beside those of its bases; a reward scheme can read only these."""

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        split: Split | None = None,
        quarantine: str | Path | None = None,
        sandbox: SandboxBackend | str = "process",
        scheme: RewardScheme | None = None,
        guard: Guard | None = None,
        max_turns: int = 8,
        observation_limit: int = 4096,
        render_mode: str | None = None,
    ) -> None:
        if tasks is None and not hasattr(self, "tasks"):
            raise TaskError(f"{type(self).__name__} has no tasks; set the class's `tasks` or pass tasks=…")
        if max_turns < 1:
            raise ValueError(f"wanted max_turns of at least 1, found {max_turns}")
        chosen = tasks if tasks is not None else self.tasks
        self.tasks = chosen.quarantine(quarantine) if quarantine is not None else chosen
        self.split = split
        self.scheme: RewardScheme = scheme or OutcomeOnly()
        check_levels(self.scheme, self.levels)
        check_signals(self.scheme, (name for owner in type(self).__mro__ for name in vars(owner).get("signals", ())))
        self.guard = guard
        self.max_turns = max_turns
        self.observation_limit = observation_limit
        self.render_mode = render_mode
        self.action_space = ActionSpace()
        self.observation_space = ObservationSpace()
        self.tools: dict[str, Tool] = tools_of(type(self))
        self._backend = sandbox
        self._box: Sandbox | None = None
        self._pool: list[Task] | None = None
        self._task: Task | None = None
        self._running = False
        self._episode: object | None = None
        self.judging = False
        self.review: Review | None = None
        """What training does to a verdict: injected noise, and appeals. Evaluations leave it None."""
        self.progress: float | None = None
        """How far training has come, from 0 to 1, for curricula inside environments. Evaluations leave it None."""
        self._grading: GradingSandboxes | None = None
        self._signals: list[Signal] = []
        self._refused = 0
        self.turns: list[Turn] = []
        self._prompt: Observation = ()

    # ------------------------------------------------------------------ what an author uses or overrides

    @property
    def task(self) -> Public:
        """What the agent may see of the present task."""
        return self._full_task.public

    @property
    def sandbox(self) -> Sandbox:
        """The agent's sandbox in this episode; set `sandboxed = True` to have one."""
        if not self.sandboxed:
            raise TaskError(f"{type(self).__name__} uses a sandbox; declare it with `sandboxed = True`")
        if self._box is None and self._running:
            self._start_sandbox()
        if self._box is None:
            raise gymnasium.error.ResetNeeded("there is no sandbox outside an episode; call reset() first")
        return self._box

    @property
    def sandboxes(self) -> SandboxBackend:
        """Where fresh sandboxes come from, for grading."""
        grading = self._grading
        # A cast, for what the real backend is called and can do is only read here, and a protocol's fields may be set.
        return cast(SandboxBackend, grading) if grading is not None else self._sandboxes()

    def prompt(self) -> Sequence[Message]:
        """The opening messages."""
        return (Message(role="user", content=self.task.prompt),)

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        """Judge a submission; by default with the task's or the environment's registered grader."""
        name = task.grader or self.grader
        if name is None:
            raise VerifierError(f"{type(self).__name__} has no grade method and task {task.id!r} names no grader")
        return cast(Verdict, registry.create("graders", name).grade(task, submission, self.sandboxes))

    def check_task(self, task: Task) -> None:
        """Refuse a task that its registered grader cannot judge; asked at reset, and of all tasks before a run.

        Raises:
            VerifierError: saying what is malformed, such as a gold that an empty answer would match.
            UnknownNameError: the task names a grader that does not exist.
        """
        name = task.grader or self.grader
        check = getattr(registry.create("graders", name), "check", None) if name else None
        if check is not None:
            check(task)

    def oracle(self, task: Task) -> Sequence[str]:
        """Return the messages of a scripted expert; `validate` demands that they score 1."""
        raise TaskError(f"{type(self).__name__} has no oracle for task {task.id!r}; write one to validate the tasks")

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:  # noqa: ARG002
        """Return the messages of one demonstration for a supervised warm start; by default the oracle's."""
        return self.oracle(task)

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:  # noqa: ARG002 -- for subclasses
        """Return attacks on this environment, by name: submissions, or an agent's messages, that must score nothing.

        `agentgym redteam` and `agentgym validate` run them beside those that fit the task's grader.
        """
        return {}

    def tools_for(self, task: Task) -> Mapping[str, Tool]:  # noqa: ARG002 -- for subclasses
        """Return a task's tools, by name; by default the same for all. `reset` keeps them in `self.tools`."""
        return self.tools

    def call_tool(self, one: Tool, arguments: Mapping[str, Any]) -> Any:
        """Run a tool with checked arguments; by default the method of its name. What it returns is shown as text.

        Environments whose tools live elsewhere, in a world of records or on another server, override this.
        """
        return getattr(self, one.name)(**arguments)

    def on_text(self, text: str) -> str | Submit:  # noqa: ARG002 -- for subclasses
        """Answer a message that calls no tool, or take it as the end; a ValueError is told to the agent."""
        return f"error: no tool call found; call one of: {', '.join(self.tools)}"

    def on_verdict(self, verdict: Verdict) -> None:
        """Emit signals of the turn that handed something in, of what only its judging measured; by default none."""

    def emit(self, name: str, value: float) -> None:
        """Record a signal of the present turn, in place of one of the same name."""
        self._signals = [one for one in self._signals if one.name != name]
        self._signals.append(Signal(name=name, value=value))

    # ------------------------------------------------------------------ its task and its sandboxes

    @property
    def _full_task(self) -> Task:
        if self._task is None:
            raise gymnasium.error.ResetNeeded("there is no task before reset()")
        return self._task

    def _sandboxes(self) -> SandboxBackend:
        if isinstance(self._backend, str):
            self._backend = cast(SandboxBackend, registry.create("sandboxes", self._backend))
        return self._backend

    def _start_sandbox(self) -> None:
        episode, task = self._episode, self._full_task
        self._box = box = self.sandboxes.start(task.sandbox)
        if self._episode is not episode or episode is None:
            self._end_sandbox()
            raise SandboxError("the environment was closed while its sandbox started")
        if task.public.files:
            box.upload({path: text.encode() for path, text in task.public.files.items()})

    def _end_sandbox(self) -> None:
        box, self._box = self._box, None
        if box is not None:
            box.close()
