"""The base of every environment: one episode of one task, as a synchronous `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import gymnasium
import numpy as np

from agentgym import registry
from agentgym.errors import AgentFault, SandboxError, TaskError, UnknownNameError, VerifierError
from agentgym.grading_sandboxes import GradingSandboxes
from agentgym.noise import Case, Review
from agentgym.rewards import OutcomeOnly, RewardScheme, check_levels, check_signals, settlement
from agentgym.sandbox import Sandbox, SandboxBackend
from agentgym.spaces import ActionSpace, ObservationSpace
from agentgym.task import Public, Task, TaskSet
from agentgym.toolcalls import parse_calls
from agentgym.tools import Submit, Tool, tool, tools_of
from agentgym.types import EndReason, Message, Signal, Split, Submission, ToolCall, Trajectory, Trust, Turn, Verdict

__all__ = ["AgentEnv", "Observation", "Submit", "tool"]

Observation = tuple[Message, ...]
Guard = Callable[[ToolCall, Sequence[Turn]], str | None]
"""Asked before every well-formed call runs, with the episode so far: a reason refuses it, and the agent reads that
(after VeriGuard: a policy's predicate stands between what an agent proposes and what happens)."""


class AgentEnv(gymnasium.Env[Observation, Message | str]):
    """Write tools as typed methods marked `@tool`, and one `grade`; everything else is done here.

    An instance runs one episode at a time and may be reset for the next. It never computes the training reward: it
    emits signals, and what `step` pays is what `scheme` says once the episode is settled, all of it on the last step.
    """

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

    def _sandboxes(self) -> SandboxBackend:
        if isinstance(self._backend, str):
            self._backend = cast(SandboxBackend, registry.create("sandboxes", self._backend))
        return self._backend

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

    # ------------------------------------------------------------------ gymnasium's interface

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds `self.np_random`, which also picks the task unless `options` names one.
            options: `task` (a `Task` or its id) and `hint` (guidance shown with the prompt).

        Raises:
            UnknownNameError: for a task id that is not in the set.
            CapabilityError: if the sandbox backend cannot give what the task needs.
            VerifierError: if the task's grader cannot judge it.
        """
        super().reset(seed=seed)
        chosen = dict(options or {})
        picked, hint = chosen.pop("task", None), chosen.pop("hint", None)
        if chosen:
            raise UnknownNameError("reset option", next(iter(chosen)), ("task", "hint"))
        self._end_sandbox()
        self._task = self._pick(picked)
        self.check_task(self._task)
        self.tools = dict(self.tools_for(self._task))
        self.turns, self._signals = [], []
        self._episode = object()
        if self.sandboxed and self.sandbox_at == "reset":
            self._start_sandbox()
        elif self.sandboxed:
            self.sandboxes.accept(self._task.sandbox)
        self._prompt = _with_hint(tuple(self.prompt()), hint)
        self._running = True
        schemas = [one.schema for one in self.tools.values()]
        return self._prompt, {"task_id": self._task.id, "split": self._task.split, "tools": schemas}

    def step(self, action: Message | str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one assistant message.

        Returns:
            The new messages; the reward (0.0 until the episode is settled); whether the agent ended it; whether the
            turn limit did; and info with this turn's `signals`, at the end also `verdict` and `end`.
        """
        if not self._running:
            raise gymnasium.error.ResetNeeded("the episode has not begun or has ended; call reset() first")
        message = Message(role="assistant", content=action) if isinstance(action, str) else action
        self._signals = []
        submission, fault = None, None
        try:
            observation, submission = self._act(message)
        except AgentFault as error:
            observation, fault = (Message(role="user", content=f"error: {error}"),), error
        self.turns.append(Turn(message, observation, tuple(self._signals)))
        info: dict[str, Any] = {"signals": {one.name: one.value for one in self._signals}}
        terminated = submission is not None or fault is not None
        truncated = not terminated and len(self.turns) >= self.max_turns
        if not (terminated or truncated):
            return observation, 0.0, False, False, info
        end: EndReason = "submitted" if submission is not None else "agent_fault" if fault else "turns"
        verdict = self._judge(submission)
        if submission is not None:
            self.on_verdict(verdict)
            self.turns[-1].signals = tuple(self._signals)
        self._running = False
        self._end_sandbox()
        info |= {"signals": {one.name: one.value for one in self._signals}, "verdict": verdict, "end": end}
        return observation, self.settle(verdict), terminated, truncated, info

    def render(self) -> str | None:
        """Return the transcript so far, in `ansi` mode."""
        if self.render_mode != "ansi":
            return None
        shown = list(self._prompt)
        for turn in self.turns:
            shown += [turn.action, *turn.observation]
        return "\n".join(f"[{one.role}] {one.content}{one.guidance}" for one in shown)

    def close(self) -> None:
        """End the episode's sandbox; may be called twice, and from another thread than `reset` or `step`."""
        self._running = False
        self._episode = None
        grading = self._grading
        if grading is not None:
            grading.close()
        self._end_sandbox()

    # ------------------------------------------------------------------ the rest

    def settle(self, verdict: Verdict) -> float:
        """Return what the whole episode is worth under the environment's scheme."""
        task = self._full_task
        return settlement(self.scheme, Trajectory(task.id, task.split, self._prompt, self.turns, verdict))

    @property
    def _full_task(self) -> Task:
        if self._task is None:
            raise gymnasium.error.ResetNeeded("there is no task before reset()")
        return self._task

    def _pick(self, picked: Task | str | None) -> Task:
        if isinstance(picked, Task):
            return picked
        if isinstance(picked, str):
            return self.tasks[picked]
        if self._pool is None:
            self._pool = list(self.tasks.split(self.split) if self.split else self.tasks)
        if not self._pool:
            raise TaskError(
                f"the task set {self.tasks.name!r} has no task" + (f" in {self.split!r}" if self.split else "")
            )
        return self._pool[int(self.np_random.integers(len(self._pool)))]

    def _act(self, message: Message) -> tuple[Observation, Submission | None]:
        calls: tuple[ToolCall, ...] = message.tool_calls
        problems: tuple[str, ...] = ()
        if not calls:
            parsed = parse_calls(message.content, self.tools, message.call_format)
            calls, problems = parsed.calls, parsed.problems
        unread = len(problems) + sum(bool(one.problem) for one in calls)
        self.emit("malformed", float(unread or not (calls or self.conversational)))
        observation = [Message(role="user", content=f"error: {one}") for one in problems]
        valid, submission, self._refused = 0, None, 0
        if not calls and not problems:
            said = self._heard(message.content)
            if isinstance(said, Submit):
                submission = said.submission
            else:
                observation.append(Message(role="user", content=self._cut(said)))
        for call in calls:
            text, ok, submission = self._call(call)
            valid += ok
            if submission is not None:
                break
            observation.append(
                Message(role="tool", content=self._cut(text), name=call.name, tool_call_id=call.id or None)
            )
        self.emit("valid_calls", float(valid))
        if self.guard is not None:
            self.emit("refused", float(self._refused))
        return tuple(observation), submission

    def _heard(self, text: str) -> str | Submit:
        try:
            return self.on_text(text)
        except ValueError as error:  # a word for input that cannot be used
            self.emit("malformed", 1.0)
            return f"error: {error}"

    def _call(self, call: ToolCall) -> tuple[str, bool, Submission | None]:
        if call.problem:
            return f"error: {call.problem}", False, None
        if call.name not in self.tools:
            return f"error: {UnknownNameError('tool', call.name, self.tools)}", False, None
        one = self.tools[call.name]
        try:
            arguments = one.check(call.arguments)
        except ValueError as error:
            return f"error: {error}", False, None
        reason = self.guard(call, self.turns) if self.guard is not None else None
        if reason is not None:
            self._refused += 1
            return f"error: refused: {reason}", False, None
        try:
            result = self.call_tool(one, arguments)
        except Submit as handed_in:
            result = handed_in
        except ValueError as error:  # a tool's word for input that it cannot use
            return f"error: {error}", False, None
        if isinstance(result, Submit):
            return "", True, result.submission
        return str(result), True, None

    def _judge(self, submission: Submission | None) -> Verdict:
        if submission is None:
            return Verdict(value=0.0, level="no_submission", trust=Trust.RPC, feedback="nothing was submitted")
        self.judging = True
        self._grading = GradingSandboxes(self._sandboxes)
        try:
            if not self._running:
                raise SandboxError("the environment was closed before it was graded")
            found = self.grade(self._full_task, submission)
        finally:
            self.judging, self._grading = False, None
        if isinstance(found, Verdict):
            verdict = found
        else:
            value = float(found)
            level = "passed" if value == 1.0 else "failed"
            verdict = Verdict(value=value, level=level, trust=Trust.RPC)
        if verdict.value is not None and verdict.level not in self.levels:
            raise VerifierError(
                f"the grader reached the level {verdict.level!r}; this environment declares {self.levels}"
            )
        verdict = verdict.model_copy(update={"grader": self._full_task.grader or self.grader or "grade"})
        return self._reviewed(verdict, submission)

    def _reviewed(self, verdict: Verdict, submission: Submission) -> Verdict:
        if self.review is None:
            return verdict
        return self.review(verdict, Case(self._full_task, submission, lambda: self.sandboxes, self.np_random_seed))

    def _cut(self, text: str) -> str:
        if len(text) <= self.observation_limit:
            return text
        half = self.observation_limit // 2
        return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"

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


def _with_hint(prompt: Observation, hint: Any) -> Observation:
    if hint is None:
        return prompt
    if not isinstance(hint, str):
        raise TypeError(f"wanted the hint as text, found {type(hint).__name__}")
    return (*prompt[:-1], prompt[-1].model_copy(update={"guidance": f"\n{hint}"}))


def as_messages(texts: Iterable[str | Message]) -> list[Message]:
    """Return assistant messages, whatever way they were written."""
    return [one if isinstance(one, Message) else Message(role="assistant", content=one) for one in texts]


def info_signals(info: Mapping[str, Any]) -> tuple[Signal, ...]:
    """Return the signals that a step reported."""
    return tuple(Signal(name=name, value=value) for name, value in info.get("signals", {}).items())
