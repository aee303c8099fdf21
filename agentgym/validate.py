"""Tell an environment that can be trusted from one that cannot, task by task, without any model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentgym import scripted
from agentgym.env import AgentEnv
from agentgym.guidance import RolloutRequest
from agentgym.policy import Policy, ScriptedPolicy
from agentgym.rollout import Limits, Rollouts
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.testing import check_environment
from agentgym.types import Group, Record, Submission, Trajectory, Verdict

SHORT, LONG = 8, 24
"""Hidden texts below SHORT characters prove nothing; below LONG an oracle may have found them out by itself."""


class Finding(Record):
    """One broken promise."""

    check: str
    task: str
    problem: str


class Validation(Record):
    """What was asked of an environment, and what it failed."""

    tasks: int
    checks: dict[str, int]
    """How often each check was asked: once for the environment or once or more per task."""
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every check held for every task, and there was a task."""
        return self.tasks > 0 and not self.findings

    def failed(self, check: str) -> list[Finding]:
        """Return what was found by one check."""
        return [one for one in self.findings if one.check == check]


class _Checks:
    """The checks of one environment, and what they found so far."""

    def __init__(
        self,
        make_env: Callable[[], AgentEnv],
        tasks: Sequence[Task],
        limits: Limits,
        on_done: Callable[[], None],
    ) -> None:
        self.make_env = make_env
        self.tasks = tasks
        self.limits = limits
        self.on_done = on_done
        self.counts: dict[str, int] = {}
        self.findings: list[Finding] = []

    def note(self, check: str, task: str, problem: str | None) -> None:
        self.counts[check] = self.counts.get(check, 0) + 1
        if problem is not None:
            self.findings.append(Finding(check=check, task=task, problem=problem))

    def play(self, policy: Policy, attempts: int = 1) -> list[Group]:
        requests = [RolloutRequest(task, attempts, derive_seed(0, "validate")) for task in self.tasks]
        rollouts = Rollouts(self.make_env, policy, self.limits, lambda _: self.on_done())
        return asyncio.run(rollouts.run(requests))

    def oracle(self, env: AgentEnv) -> None:
        lines: dict[str, Sequence[str]] = {}
        for task in self.tasks:
            try:
                lines[task.id] = env.oracle(task)
            except Exception as error:  # noqa: BLE001 -- whatever an author's code raises is a finding
                self.note("oracle has a script", task.id, f"{type(error).__name__}: {error}")
            else:
                self.note("oracle has a script", task.id, None)
        policy = ScriptedPolicy(lambda episode: lines.get(episode.task_id, ()))
        for task, group in zip(self.tasks, self.play(policy, attempts=2), strict=True):
            if task.id not in lines:
                continue
            first, second = group.trajectories
            self.note("oracle scores 1", task.id, _not_worth(first, 1.0))
            same = _outcome(first) == _outcome(second)
            problem = None if same else f"verdicts differ: {_outcome(first)}, then {_outcome(second)}"
            self.note("oracle repeats", task.id, problem)
            self.note("nothing hidden is shown", task.id, _leak(task, first, LONG))

    def ignorant(self, check: str, policy: Policy) -> None:
        for task, group in zip(self.tasks, self.play(policy), strict=True):
            self.note(check, task.id, _not_worth(group.trajectories[0], 0.0))
            self.note("nothing hidden is shown", task.id, _leak(task, group.trajectories[0], SHORT))

    def direct(self) -> None:
        with ThreadPoolExecutor(max_workers=4) as pool:
            for task, (empty, seen) in zip(self.tasks, pool.map(self._look, self.tasks), strict=True):
                self.note("empty submission scores 0", task.id, empty)
                self.note("nothing hidden is shown", task.id, seen)
                self.on_done()

    def _look(self, task: Task) -> tuple[str | None, str | None]:
        env = self.make_env()
        try:
            observation, info = env.reset(seed=0, options={"task": task})
            shown = "\n".join([*(one.content for one in observation), str(info), *_sandbox_texts(env)])
            found = env.grade(task, Submission())
        except Exception as error:  # noqa: BLE001 -- whatever an author's code raises is a finding
            return f"{type(error).__name__}: {error}", None
        finally:
            env.close()
        value = found.value if isinstance(found, Verdict) else float(found)
        seen = next((secret for secret in _secrets(task, SHORT) if secret in shown), None)
        return None if value == 0.0 else f"scored {value}", None if seen is None else f"at reset: {_quote(seen)}"

    def environment(self) -> None:
        try:
            check_environment(self.make_env)
        except Exception as error:  # noqa: BLE001 -- whatever an author's code raises is a finding
            self.note("gymnasium's contract holds", "-", f"{type(error).__name__}: {error}")
        else:
            self.note("gymnasium's contract holds", "-", None)


def rounds(env: AgentEnv) -> int:
    """Return how many times `validate` visits each task, for a progress bar."""
    return 5 + len(env.tools)


def validate(
    make_env: Callable[[], AgentEnv],
    tasks: Sequence[Task],
    *,
    limits: Limits | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Validation:
    """Check every task: what an expert gets, what ignorance gets, and what shows.

    Args:
        make_env: builds the environment.
        tasks: what to check.
        limits: budgets of the scripted episodes.
        on_done: called after each of `rounds(env) * len(tasks)` visits.
    """
    checks = _Checks(make_env, tasks, limits or Limits(), on_done)
    env = make_env()
    checks.environment()
    if not checks.findings:  # episodes of an environment that breaks the contract may never end
        checks.oracle(env)
        checks.ignorant("no-op scores 0", scripted.noop())
        checks.ignorant("spam of all tools scores 0", scripted.spam(env))
        for name in env.tools:
            checks.ignorant(f"spam of {name} scores 0", scripted.spam(env, name))
        checks.direct()
    env.close()
    return Validation(tasks=len(tasks), checks=checks.counts, findings=tuple(checks.findings))


def _not_worth(found: Trajectory, wanted: float) -> str | None:
    if found.verdict is None or found.verdict.value is None:
        return f"unscored: {found.error or found.end}"
    if found.verdict.value != wanted:
        return f"scored {found.verdict.value:g} ({found.verdict.level}): {found.verdict.feedback or found.end}"
    return None


def _outcome(found: Trajectory) -> tuple[float | None, str]:
    return (found.verdict.value, found.verdict.level) if found.verdict else (None, "none")


def _leak(task: Task, found: Trajectory, shortest: int) -> str | None:
    said = "\n".join(turn.action.content for turn in found.turns)
    messages = [*found.prompt, *(message for turn in found.turns for message in turn.observation)]
    shown = "\n".join([*(message.content for message in messages), found.verdict.feedback if found.verdict else ""])
    for secret in _secrets(task, shortest):
        if secret in shown and secret not in said:
            return f"after {len(found.turns)} turns: {_quote(secret)}"
    return None


def _secrets(task: Task, shortest: int) -> Iterator[str]:
    """Yield the texts that only the grader may know, and the longer lines of each."""
    public = "\n".join([*_texts(task.public.model_dump()), *task.hints])
    for text in _texts([task.hidden.data, task.hidden.reference]):
        for part in {text.strip(), *(line.strip() for line in text.splitlines() if len(line.strip()) >= LONG)}:
            if len(part) >= shortest and part not in public:
                yield part


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _sandbox_texts(env: AgentEnv) -> list[str]:
    if not env.sandboxed:
        return []
    files = env.sandbox.download(env.sandbox.workdir)
    return [*files, *(data.decode("utf-8", "replace") for data in files.values())]


def _quote(secret: str) -> str:
    return json.dumps(secret if len(secret) <= 40 else secret[:40] + "…", ensure_ascii=False)
