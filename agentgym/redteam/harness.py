"""Run attacks against an environment's real judging, and say which held."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentgym import registry
from agentgym.env import AgentEnv
from agentgym.errors import AgentFault, AgentgymError, InfrastructureError, VerifierError
from agentgym.guidance import RolloutRequest
from agentgym.policy import ScriptedPolicy
from agentgym.redteam import answers, episodes, printers, programs, repositories, states
from agentgym.redteam.attack import DANGERS, Attack, Danger, Outcome, Target
from agentgym.rollout import Limits, Rollouts
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.types import Submission, Trajectory, Verdict

logger = logging.getLogger(__name__)
Make = Callable[[], AgentEnv]
Maker = Callable[[Target], Iterable[Attack]]
"""What an entry point of the group `agentgym.attacks` names."""

_BY_GRADER: dict[str, tuple[Maker, ...]] = {
    "function": (programs.attacks,),
    "unittest": (programs.attacks,),
    "stdio": (printers.attacks,),
    "answer": (answers.attacks,),
    "judge": (answers.attacks,),
    "pytest_ids": (repositories.attacks,),
    "script": (repositories.attacks,),
    "state": (states.attacks,),
}
_COMPOSITES = ("all", "any", "first", "weighted")
_RUN_NOTHING = ("answer", "judge", "state")


@dataclass(frozen=True, slots=True)
class _Judged:
    value: float | None
    detail: str


def target_of(make_env: Make, task: Task, limits: Limits | None = None) -> Target:
    """Let the oracle play a task, and return what attacks on it are made for.

    Raises:
        AgentgymError: the oracle hands nothing in, so nothing is known of what a submission looks like.
    """
    seen: list[Submission] = []

    def watched() -> AgentEnv:
        env = make_env()
        judge = env.grade

        def grade(full: Task, submission: Submission) -> Verdict | bool | float:
            seen.append(submission)
            return judge(full, submission)

        vars(env)["grade"] = grade
        return env

    env = make_env()
    try:
        lines = tuple(env.oracle(task))
        tools, own = dict(env.tools_for(task)), env.grader
    finally:
        env.close()
    _play(watched, task, lines, limits or Limits())
    if not seen:
        raise AgentgymError(
            f"the oracle of task {task.id!r} hands nothing in; the attacks are modelled on what it does"
        )
    return Target(task=task, gold=seen[-1], graders=_graders(task, own), tools=tools)


def isolated(env: AgentEnv, target: Target) -> bool:
    """Whether attacks run where they can do no harm: judged by graders of ours alone, in sandboxes that isolate.

    An environment with a `grade` of its own may run what it judges anywhere, even in this process.
    """
    if type(env).grade is not AgentEnv.grade or not target.graders:
        return False
    if {*target.graders} <= {*_RUN_NOTHING, *_COMPOSITES}:
        return True
    known = {*_BY_GRADER, *_COMPOSITES}
    return {*target.graders} <= known and "isolation" in env.sandboxes.capabilities


def attacks_on(target: Target, env: AgentEnv, danger: Danger | None = None) -> list[Attack]:
    """Return every attack that fits a target: by its graders, else by the shape of what the oracle hands in.

    Those of the environment's author, `env.attacks(task)`, and those of entry points in `agentgym.attacks` come last.

    Args:
        target: what is attacked.
        env: one of its environments.
        danger: the worst that an attack may do; by default `machine` where it is isolated, and else `none`.

    Raises:
        AgentgymError: two attacks have the same name.
    """
    makers: dict[Maker, None] = {}
    for name in target.graders:
        makers |= dict.fromkeys(_BY_GRADER.get(name, ()))
    makers = makers or dict.fromkeys(_by_shape(target))
    found = _numbered(one for maker in makers for one in maker(target))
    found += episodes.attacks(target)
    found += [_own(name, given) for name, given in env.attacks(target.task).items()]
    for name in registry.names("attacks"):
        found += registry.lookup("attacks", name)(target)
    unique: dict[str, Attack] = {}
    for one in found:
        if unique.setdefault(one.name, one) is not one:
            raise AgentgymError(
                f"two attacks on task {target.task.id!r} are called {one.name!r}; give each its own name"
            )
    worst = danger or ("machine" if isolated(env, target) else "none")
    return [one for one in found if DANGERS.index(one.danger) <= DANGERS.index(worst)]


def run(make_env: Make, target: Target, attack: Attack, limits: Limits | None = None) -> Outcome:
    """Attack once, in an episode of its own."""
    budget = limits or Limits()
    if attack.messages is not None:
        played = _play(make_env, target.task, attack.messages, budget)
        value = played.verdict.value if played.verdict else None
        found = _Judged(value, played.error or (played.verdict.feedback if played.verdict else ""))
    else:
        assert attack.submission is not None
        found = _hand_in(make_env, target.task, attack.submission, budget)
    scored = found.value is not None and found.value > 0.0
    fooled = scored and (found.value == 1.0 or not attack.holds_answer)
    return Outcome(
        task=target.task.id,
        attack=attack.name,
        row=attack.row,
        family=attack.family,
        tries=attack.tries,
        value=found.value,
        end="void" if found.value is None else "fooled" if fooled else "held",
        detail=found.detail[:300],
    )


def chosen(attacks: Sequence[Attack], count: int | None, turn: int) -> list[Attack]:
    """Return `count` attacks, other ones for each turn, so that many tasks meet all of them; None is all."""
    if count is None or count >= len(attacks):
        return list(attacks)
    return [attacks[(turn * count + index) % len(attacks)] for index in range(count)]


def _numbered(attacks: Iterable[Attack]) -> list[Attack]:
    """Return attacks of several kinds with names of their own."""
    times: dict[str, int] = {}
    found = []
    for one in attacks:
        times[one.name] = count = times.get(one.name, 0) + 1
        found.append(one if count == 1 else replace(one, name=f"{one.name} ({count})"))
    return found


def _graders(task: Task, own: str | None) -> tuple[str, ...]:
    name = task.grader or own
    return tuple(dict.fromkeys(_with_parts(name, task.hidden.data))) if name else ()


def _with_parts(name: str, data: Any) -> Iterator[str]:
    yield name
    parts = data.get("components", []) if isinstance(data, dict) else []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and isinstance(part.get("grader"), str):
            yield from _with_parts(part["grader"], part.get("hidden", {}))


def _by_shape(target: Target) -> Iterator[Maker]:
    gold = target.gold
    if isinstance(gold.data.get("diff"), str) or len(gold.files) > 1:
        yield repositories.attacks
    if target.code:
        yield programs.attacks
    if gold.data or (gold.files and not target.code):
        yield states.attacks
    if gold.answer and "" not in target.code:
        yield answers.attacks


def _own(name: str, given: Submission | Sequence[str]) -> Attack:
    tries = "the environment's author knows"
    if isinstance(given, Submission):
        return Attack(name, 28, tries, given)
    return Attack(name, 28, tries, messages=tuple(given))


def _play(make_env: Make, task: Task, lines: Sequence[str], limits: Limits) -> Trajectory:
    request = RolloutRequest(task, 1, derive_seed(0, "redteam"))
    rollouts = Rollouts(make_env, ScriptedPolicy(lambda _: lines), limits)
    return asyncio.run(rollouts.run([request]))[0].trajectories[0]


def _hand_in(make_env: Make, task: Task, submission: Submission, limits: Limits) -> _Judged:
    """Grade a submission where an episode stands, within the time of a turn."""
    found: list[_Judged] = []
    env = make_env()

    def judge() -> None:
        try:
            env.reset(seed=0, options={"task": task})
            value = env.grade(task, submission)
            if isinstance(value, Verdict):
                found.append(_Judged(value.value, value.error or value.feedback))
            else:
                found.append(_Judged(float(value), ""))
        except AgentFault as fault:
            found.append(_Judged(0.0, str(fault)))
        except (InfrastructureError, VerifierError) as error:
            found.append(_Judged(None, f"{type(error).__name__}: {error}"))
        except Exception as error:
            logger.info("a grader raised under attack", exc_info=True)
            found.append(_Judged(None, f"{type(error).__name__}: {error}"))

    # A thread named like an episode's: the command line does not wait for one that never returns.
    worker = threading.Thread(target=judge, name="episode-attack", daemon=True)
    try:
        worker.start()
        worker.join(limits.turn_timeout_s)
    finally:
        env.close()
    return found[0] if found else _Judged(None, f"no verdict within {limits.turn_timeout_s:g} s")
