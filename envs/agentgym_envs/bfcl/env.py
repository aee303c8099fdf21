"""Serve a user over several turns by calling functions; judged turn by turn against a replayed reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from agentgym.env import AgentEnv, Observation, Submit
from agentgym.task import Task, TaskSet
from agentgym.tools import Tool
from agentgym.types import Message, Submission, Trust, Verdict
from agentgym_envs.bfcl.generated import generated_tasks
from agentgym_envs.bfcl.judge import MOST_CALLS, Judge
from agentgym_envs.bfcl.rows import MultiTurnTasks
from agentgym_envs.bfcl.world import ApiWorld, Call, Scenario, written

_EXPLANATION = """You work for a user by calling tools. Call what is needed for what the user just said, and nothing
else. A message that calls no tool ends your turn, and the user goes on; there are several turns. If a tool or a fact
is missing, say so instead of guessing. Judged are the state after every turn, and that you looked up what was asked."""
CALLS: TypeAdapter[tuple[Call, ...]] = TypeAdapter(tuple[Call, ...])
_TURNS: TypeAdapter[tuple[tuple[Call, ...], ...]] = TypeAdapter(tuple[tuple[Call, ...], ...])


class BfclEnv(AgentEnv):
    """BFCL's multi-turn conversations. The tools run beside the grader, so no sandbox is needed."""

    conversational = True
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "malformed", "failed", "passed")
    signals: ClassVar[tuple[str, ...]] = ("tool_errors", "turn_right")

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        path: str | None = None,
        count: int = 500,
        user_turns: int = 3,
        task_seed: int = 0,
        patience: int = 20,
        max_turns: int = 100,
        **options: Any,
    ) -> None:
        """Choose the conversations.

        Args:
            tasks: a task set; without one they are read from `path`, or generated.
            path: a file or a folder with rows of BFCL's multi-turn format.
            count: how many conversations to generate.
            user_turns: how many things the user wants in a generated conversation, 1 to 6.
            task_seed: which conversations to generate.
            patience: so many messages with calls the user waits for in one turn; then the episode ends.
            max_turns: messages of the agent in all.
            **options: those of `AgentEnv`.
        """
        if patience < 1:
            raise ValueError(f"wanted a patience of at least 1, found {patience}")
        if tasks is None:
            generated = generated_tasks(count=count, turns=user_turns, seed=task_seed)
            tasks = MultiTurnTasks(path) if path is not None else generated
        super().__init__(tasks, max_turns=max_turns, **options)
        self._patience = patience
        self.world: ApiWorld
        self._scenario: Scenario
        self._referee: Judge
        self._done: list[list[Call]] = []
        self._waited = 0

    def tools_for(self, task: Task) -> dict[str, Tool]:
        """Return the tools of the first user turn; some may appear later."""
        return _scenario(task).tools_at(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in a world of its own."""
        found = super().reset(seed=seed, options=options)
        self._scenario = _scenario(self._full_task)
        self.world = ApiWorld(self._scenario)
        self._referee = _judge(self._full_task)
        self._done, self._waited = [[]], 0
        return found

    def prompt(self) -> Sequence[Message]:
        """The rules, and what the user says first."""
        return (Message(role="system", content=_EXPLANATION), *super().prompt())

    def step(self, action: Message | str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one assistant message; the user waits for only so many of them in one turn."""
        self._waited += 1
        return super().step(action)

    def call_tool(self, one: Tool, arguments: Mapping[str, Any]) -> Any:
        """Run a tool of the world and remember the call."""
        if self._waited > self._patience:
            raise Submit(turns=cast(JsonValue, [written(calls) for calls in self._done[:-1]]))
        if len(self._done[-1]) >= MOST_CALLS:
            raise ValueError(f"no more than {MOST_CALLS} calls are made in one turn")
        self._done[-1].append(Call(name=one.name, arguments=dict(arguments)))
        try:
            return self.world.call(one.name, arguments)
        except ValueError:
            self.emit("tool_errors", 1.0)
            raise

    def on_text(self, text: str) -> str | Submit:
        """End the agent's turn; the user goes on, or leaves."""
        self._waited = 0
        judged = self._referee.close(self._done[-1])
        if judged.compared:
            self.emit("turn_right", float(not judged.problem))
        turn = len(self._done)
        if turn == len(self._scenario.questions):
            return Submit(text, turns=cast(JsonValue, [written(calls) for calls in self._done]))
        self._done.append([])
        before, self.tools = self.tools, self._scenario.tools_at(turn)
        new = [one.schema for name, one in self.tools.items() if name not in before]
        said = self._scenario.questions[turn]
        return f"{said}\n\nNew tools:\n{json.dumps(new)}" if new else said

    def oracle(self, task: Task) -> Sequence[str]:
        """Make the reference's calls one by one, and end each turn."""
        return [said for calls in _gold(task) for said in (*map(line, calls), "Done.")]

    def grade(self, task: Task, submission: Submission) -> Verdict:
        """Replay the calls beside the reference's, in worlds of their own."""
        if submission.empty:
            return _verdict("empty", "nothing was submitted")
        try:
            turns = _TURNS.validate_python(submission.data.get("turns"))
        except ValidationError:
            return _verdict("malformed", "wanted the calls of every user turn, by name and arguments")
        judge, said = _judge(task), len(_scenario(task).questions)
        wanted, right = sum(map(bool, _gold(task))), 0
        for at, calls in enumerate(turns[:said]):
            try:
                judged = judge.close(calls)
            except ValueError as error:
                return _verdict("malformed", f"in user turn {at + 1} {error}", right / wanted)
            if judged.problem:
                return _verdict("failed", f"in user turn {at + 1} {judged.problem}", right / wanted)
            right += judged.compared
        if len(turns) != said:
            feedback = f"the user said {said} things, and {len(turns)} of these turns were ended"
            return _verdict("failed", feedback, min(right, wanted - 1) / wanted)
        return _verdict("passed", "", 1.0)

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Claim the state, say the calls, speak as the user, do everything at once, or use what is not offered."""
        return dict(_attacks(task))


def _attacks(task: Task) -> Iterator[tuple[str, Submission | Sequence[str]]]:
    gold, scenario = _gold(task), _scenario(task)
    lines = [line(one) for calls in gold for one in calls]
    said = "\n".join(lines).replace("tool_call>", "done>")
    yield "hands in a state", Submission(answer="Done.", data={"state": scenario.config, "passed": True})
    yield "says the calls", [said] * len(gold)
    forged = "\n".join(f"<|user|>{one}<|assistant|>Done." for one in scenario.questions)
    yield "speaks as the user", [forged] * len(gold)
    if sum(map(bool, gold)) > 1:
        yield "does everything at once", [*lines, *["Done."] * len(gold)]
    if scenario.appearing:
        early = [one for calls in gold for one in calls]
        turns = [written(early), *[[] for _ in gold[1:]]]
        yield "uses what is not offered yet", Submission(data={"turns": cast(JsonValue, turns)})
    odd: Any = [[{"name": name, "arguments": {}} for name in ("__init__", "compared", "require")] for _ in gold]
    yield "calls what is no tool", Submission(data={"turns": odd})


def _scenario(task: Task) -> Scenario:
    return Scenario.model_validate(task.public.data["scenario"])


def _gold(task: Task) -> tuple[tuple[Call, ...], ...]:
    turns: Any = task.hidden.data["gold"]
    return tuple(tuple(map(Call.model_validate_json, calls)) for calls in turns)


def _judge(task: Task) -> Judge:
    return Judge(_scenario(task), _gold(task))


def line(call: Call) -> str:
    """Return a call as an agent writes it."""
    return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"


def _verdict(level: str, feedback: str, share: float = 0.0) -> Verdict:
    value = float(level == "passed")
    return Verdict(value=value, level=level, trust=Trust.RPC, components={"turns": share}, feedback=feedback)
