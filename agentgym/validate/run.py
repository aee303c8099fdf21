"""Check an environment and each of its tasks: what an expert gets, what ignorance and attacks get, and what shows."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from agentgym import redteam
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError, CapabilityError, SandboxError
from agentgym.guidance import RolloutRequest
from agentgym.policy import ScriptedPolicy
from agentgym.redteam.episodes import OFTEN, spam
from agentgym.rollout import Limits, Rollouts
from agentgym.sampling import derive_seed
from agentgym.task import Hidden, Task, TaskSet
from agentgym.testing import check_environment
from agentgym.types import Submission, Trajectory, Verdict
from agentgym.validate.inside import future_in, hidden_in
from agentgym.validate.report import Notes, Validation
from agentgym.validate.secrets import LONG, SHORT, quote, secrets, shown

_ORDERLESS = {"function": ("cases",), "stdio": ("cases",), "pytest_ids": ("fail_to_pass", "pass_to_pass")}
"""What the order of these lists is may not matter to the grader."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How thoroughly to check."""

    jobs: int = 4
    """Tasks that are checked at once."""
    attacks: int | None = 5
    """Attacks on each task, other ones each time; None is all of them."""
    calls: int = OFTEN
    """How often a tool is called when it is called often."""
    seed: int = 0
    """Decides the shuffled order."""


def rounds(env: AgentEnv, tasks: Iterable[Task]) -> int:
    """Return how many visits `validate` pays these tasks, for a progress bar."""
    return sum(7 + len(env.tools_for(task)) for task in tasks)


def validate(
    make_env: Callable[[], AgentEnv],
    tasks: Sequence[Task],
    *,
    limits: Limits | None = None,
    plan: Plan | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Validation:
    """Check every task; an interrupt ends it early, and what was found until then is returned.

    Args:
        make_env: builds the environment.
        tasks: what to check.
        limits: budgets of the scripted episodes.
        plan: how thoroughly.
        on_done: called after each of `rounds(env, tasks)` visits.
    """
    checks = _Checks(make_env, limits or Limits(), plan or Plan(), on_done)
    try:
        if checks.environment(tasks):  # episodes of an environment that breaks the contract may never end
            checks.all((index, checks.task, task) for index, task in enumerate(tasks))
            shuffled = random.Random(checks.plan.seed).sample(tasks, len(tasks))
            checks.all((index, checks.again, task) for index, task in enumerate(shuffled))
    except KeyboardInterrupt:
        return checks.notes.report(len(tasks), complete=False)
    return checks.notes.report(len(tasks), complete=True)


class _Stopped(Exception):  # noqa: N818 -- a signal between threads
    """The validation was interrupted."""


class _Checks:
    """The checks of one environment."""

    def __init__(
        self, make_env: Callable[[], AgentEnv], limits: Limits, plan: Plan, on_done: Callable[[], None]
    ) -> None:
        self._make = make_env
        self.limits = limits.model_copy(update={"concurrency": 1})
        self.plan = plan
        self.on_done = on_done
        self.notes = Notes()
        self._golds: dict[str, tuple[float | None, str]] = {}
        self._stopped = threading.Event()

    def all(self, jobs: Iterable[tuple[int, Callable[[int, Task], None], Task]]) -> None:
        """Do many jobs, `plan.jobs` at a time; the first error of ours, and an interrupt, end them all."""
        # Threads named like an episode's: the command line does not wait for one that never returns.
        pool = ThreadPoolExecutor(self.plan.jobs, thread_name_prefix="episode-validate")
        left = {pool.submit(job, index, task) for index, job, task in jobs}
        try:
            while left:
                done, left = wait(left, timeout=0.5, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
        except BaseException:
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()

    def make_env(self) -> AgentEnv:
        if self._stopped.is_set():
            raise _Stopped
        return self._make()

    def environment(self, tasks: Sequence[Task]) -> bool:
        """Whether the environment keeps Gymnasium's contract, with those tasks whose sandbox can be had."""
        env = self._make()
        usable = [task for task in tasks if _missing(env, task) is None]
        env.close()

        def make() -> AgentEnv:
            made = self._make()
            made.tasks = TaskSet(made.tasks.name, lambda: usable)
            return made

        try:
            check_environment(make if usable else self._make)
        except Exception as error:  # noqa: BLE001 -- whatever an author's code raises is a finding
            self.notes.note("gymnasium's contract holds", "-", f"{type(error).__name__}: {error}")
            return False
        self.notes.note("gymnasium's contract holds", "-", None)
        return True

    def task(self, index: int, task: Task) -> None:
        """Ask everything of one task but the same again."""
        env = self.make_env()
        try:
            if not self.sandbox(env, task):
                self.visited(rounds(env, [task]) - 1)
                return
            self.oracle(env, task)
            self.ignorant("no-op scores 0", task, ("",))
            tools = env.tools_for(task)
            self.ignorant("spam of all tools scores 0", task, spam([*tools], tools))
            for name in tools:
                self.ignorant(f"spam of {name} scores 0", task, spam([name] * self.plan.calls, tools))
            self.look(task)
            self.attack(index, env, task)
        finally:
            env.close()

    def again(self, _: int, task: Task) -> None:
        """Let the oracle play a third time, now that other tasks stand before and after, and cases in another order."""
        if task.id in self._golds:
            first = self._golds[task.id]
            env = self.make_env()
            mixed = reordered(task, task.grader or env.grader, self.plan.seed)
            found = _outcome(self.play(mixed, _script(env, task)))
            env.close()
            problem = None if found == first else f"verdicts differ: {first}, then {found}"
            self.notes.note("oracle repeats in another order", task.id, problem)
        self.visited()

    def sandbox(self, env: AgentEnv, task: Task) -> bool:
        """Whether the task's sandbox can be had: its image is there, and the machine gives what it asks for."""
        missing = _missing(env, task)
        if env.sandboxed:
            self.notes.note("its sandbox can be had", task.id, missing)
        return missing is None

    def oracle(self, env: AgentEnv, task: Task) -> None:
        try:
            lines = _script(env, task)
        except Exception as error:  # noqa: BLE001 -- whatever an author's code raises is a finding
            self.notes.note("oracle has a script", task.id, f"{type(error).__name__}: {error}")
            self.visited(2)
            return
        self.notes.note("oracle has a script", task.id, None)
        first, second = self.play(task, lines), self.play(task, lines)
        self.visited(2)
        self.notes.note("oracle scores 1", task.id, _not_worth(first, 1.0))
        same = _outcome(first) == _outcome(second)
        problem = None if same else f"verdicts differ: {_outcome(first)}, then {_outcome(second)}"
        self.notes.note("oracle repeats", task.id, problem)
        self.notes.note("nothing hidden is shown", task.id, shown(task, first, LONG))
        self._golds[task.id] = _outcome(first)

    def ignorant(self, check: str, task: Task, messages: Sequence[str]) -> None:
        found = self.play(task, messages)
        self.visited()
        self.notes.note(check, task.id, _not_worth(found, 0.0))
        self.notes.note("nothing hidden is shown", task.id, shown(task, found, SHORT))

    def look(self, task: Task) -> None:
        """Ask what is there when an episode begins, and what an empty submission gets."""
        env = self.make_env()
        try:
            observation, info = env.reset(seed=0, options={"task": task})
            told = "\n".join([*(one.content for one in observation), str(info)])
            seen = next((one for one in secrets(task, SHORT) if one in told), None)
            self.notes.note("nothing hidden is shown", task.id, f"at reset: {quote(seen)}" if seen else None)
            if env.sandboxed:
                self.notes.note("nothing hidden is in the sandbox", task.id, hidden_in(env, task))
                futures = future_in(env.sandbox, task.sandbox.image is None)
                self.notes.note("no repository has a future", task.id, "; ".join(futures) or None)
            found = env.grade(task, Submission())
            value = found.value if isinstance(found, Verdict) else float(found)
            self.notes.note("empty submission scores 0", task.id, None if value == 0.0 else f"scored {value}")
        except Exception as error:  # noqa: BLE001 -- whatever an author's code raises is a finding
            self.notes.note("an episode can begin and end empty", task.id, f"{type(error).__name__}: {error}")
        else:
            self.notes.note("an episode can begin and end empty", task.id, None)
        finally:
            env.close()
            self.visited()

    def attack(self, index: int, env: AgentEnv, task: Task) -> None:
        if self.plan.attacks != 0 and task.id in self._golds:
            try:
                target = redteam.target_of(self.make_env, task, self.limits)
                attacks = redteam.attacks_on(target, env)
            except AgentgymError as error:
                self.notes.note("red team can attack", task.id, str(error))
                attacks = []
            for one in redteam.chosen(attacks, self.plan.attacks, index):
                found = redteam.run(self.make_env, target, one, self.limits)
                what = "voided its attempt" if found.end == "void" else f"scored {found.value}"
                problem = None if found.held else f"an attack that {one.name} {what}: {found.detail}"
                self.notes.note(f"red team, {one.family}: scores 0", task.id, problem)
        self.visited()

    def play(self, task: Task, lines: Sequence[str]) -> Trajectory:
        request = RolloutRequest(task, 1, derive_seed(0, "validate"))
        rollouts = Rollouts(self.make_env, ScriptedPolicy(lambda _: lines), self.limits)
        return asyncio.run(rollouts.run([request]))[0].trajectories[0]

    def visited(self, times: int = 1) -> None:
        for _ in range(times):
            self.on_done()


def reordered(task: Task, grader: str | None, seed: int) -> Task:
    """Return the task with its hidden cases in another order, where its grader may not mind."""
    data = dict(task.hidden.data)
    for name in _ORDERLESS.get(grader or "", ()):
        values = data.get(name)
        if isinstance(values, list):
            data[name] = random.Random(seed).sample(values, len(values))
    return task.model_copy(update={"hidden": Hidden(data=data, reference=task.hidden.reference)})


def _missing(env: AgentEnv, task: Task) -> str | None:
    """Return why a task's sandbox cannot be had; None if it can, or is not needed."""
    if env.sandboxed:
        try:
            env.sandboxes.accept(task.sandbox)
        except (CapabilityError, SandboxError) as error:
            return str(error)
    return None


def _script(env: AgentEnv, task: Task) -> tuple[str, ...]:
    return tuple(env.oracle(task))


def _not_worth(found: Trajectory, wanted: float) -> str | None:
    if found.verdict is None or found.verdict.value is None:
        return f"unscored: {found.error or found.end}"
    if found.verdict.value != wanted:
        return f"scored {found.verdict.value:g} ({found.verdict.level}): {found.verdict.feedback or found.end}"
    return None


def _outcome(found: Trajectory) -> tuple[float | None, str]:
    return (found.verdict.value, found.verdict.level) if found.verdict else (None, "none")
