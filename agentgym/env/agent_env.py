"""How an episode is played: every message of the agent becomes calls, and the last one a verdict."""

from __future__ import annotations

from typing import Any

import gymnasium

from agentgym.env.contract import EnvContract
from agentgym.env.messages import Observation, shortened, with_hint
from agentgym.errors import AgentFault, SandboxError, TaskError, UnknownNameError, VerifierError
from agentgym.grading_sandboxes import GradingSandboxes
from agentgym.noise import Case
from agentgym.rewards import settlement
from agentgym.task import Task
from agentgym.toolcalls import parse_calls
from agentgym.tools import Submit
from agentgym.types import EndReason, Message, Submission, ToolCall, Trajectory, Trust, Turn, Verdict


class AgentEnv(EnvContract):
    """Write tools as typed methods marked `@tool`, and one `grade`; everything else is done here.

    An instance runs one episode at a time and may be reset for the next. It never computes the training reward: it
    emits signals, and what `step` pays is what `scheme` says once the episode is settled, all of it on the last step.
    """

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
        self._prompt = with_hint(tuple(self.prompt()), hint)
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
                observation.append(Message(role="user", content=shortened(said, self.observation_limit)))
        for call in calls:
            text, ok, submission = self._call(call)
            valid += ok
            if submission is not None:
                break
            observation.append(
                Message(
                    role="tool",
                    content=shortened(text, self.observation_limit),
                    name=call.name,
                    tool_call_id=call.id or None,
                )
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
