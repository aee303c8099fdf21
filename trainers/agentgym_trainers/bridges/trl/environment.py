"""An environment of ours as TRL's environment class: TRL renders, samples and calls; we judge."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from agentgym.env import AgentEnv
from agentgym.errors import CapabilityError, InfrastructureError, RecipeError, VerifierError
from agentgym.policy import ToolSchema
from agentgym.recipe import Prepared
from agentgym.rewards import AttemptScheme
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.types import Group, Message, ToolCall, Trajectory, Trust, Verdict
from agentgym_trainers.bridges.trl.rows import prices
from agentgym_trainers.bridges.trl.signatures import method_of
from agentgym_trainers.bridges.trl.tasks import Tasks

logger = logging.getLogger(__name__)
_OVER = "the episode is over"


@dataclass(frozen=True, slots=True)
class _Episode:
    """One that has begun and was not judged yet."""

    env: AgentEnv
    task: Task
    prompt: tuple[Message, ...]


class _TurnTimeout(Exception):  # noqa: N818 -- a signal, not an error
    """One environment step outlasted its budget."""


class TrlEnvironment:
    """Base of the classes that `environment_class` makes; an instance plays one episode after another."""

    _prepared: ClassVar[Prepared]
    _tasks: ClassVar[Tasks]
    _schemas: ClassVar[Mapping[str, ToolSchema]]
    _numbers: ClassVar[count[int]]

    def __init__(self) -> None:
        self._episode: _Episode | None = None
        self._reward: float | None = None
        self._error: Exception | None = None

    def reset(self, *, task: str, **_: Any) -> str:
        """Begin an episode of a row's task, and return what the agent reads first.

        Raises:
            HeldOutError: the task is not for training.
            CapabilityError: its tools are not those of this class.
        """
        self._close()
        self._reward = self._error = None
        chosen, limits = self._tasks[task], self._prepared.recipe.limits
        retrying = Retrying(
            retry=retry_if_exception_type(InfrastructureError),
            stop=stop_after_attempt(limits.retries + 1),
            wait=wait_random_exponential(multiplier=limits.retry_wait_s, max=10),
            reraise=True,
        )
        try:
            self._episode = retrying(self._begin, chosen)
        except (CapabilityError, RecipeError):  # every episode would fail the same way
            raise
        except Exception as error:  # noqa: BLE001 -- the others of TRL's batch go on
            self._fail(error)
            return chosen.public.prompt
        return _text(self._episode.prompt)

    def get_reward(self) -> float | None:
        """Return what the episode is worth under the environment's scheme; None if it could not be judged.

        One that the agent left without handing anything in is judged as such.
        """
        if self._episode is not None:
            self._settle(self._episode, _nothing("the agent stopped before anything was submitted"))
        if isinstance(self._error, CapabilityError | RecipeError):
            raise self._error
        return self._reward

    def _begin(self, task: Task) -> _Episode:
        env = self._prepared.make_training_env()
        try:
            seed = derive_seed(self._prepared.recipe.seed, "trl", task.id, next(self._numbers))
            prompt, _ = env.reset(seed=seed, options={"task": task})
            if {name: one.schema for name, one in env.tools.items()} != self._schemas:
                raise CapabilityError(
                    f"TRL's environments have the same tools for every task, and those of {task.id!r} differ; "
                    "use rollout_func"
                )
        except BaseException:
            env.close()
            raise
        return _Episode(env, task, prompt)

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        """Take a turn of one call, whose errors TRL would show to the model as the tool's answer."""
        episode = self._episode
        if episode is None:
            return _OVER
        message = Message(role="assistant", tool_calls=(ToolCall(name=name, arguments=arguments),))
        try:
            observation, _, terminated, truncated, info = self._step(episode.env, message)
            if terminated or truncated:
                self._settle(episode, info["verdict"])
        except _TurnTimeout:
            if episode.env.judging:
                self._fail(VerifierError("grading took longer than a turn may; raise limits.turn_timeout_s"))
            else:
                self._settle(episode, _nothing("out of time before anything was submitted"))
            return _OVER
        except Exception as error:  # noqa: BLE001 -- told by get_reward
            self._fail(error)
            return _OVER
        return _text(observation) or _OVER

    def _step(self, env: AgentEnv, message: Message) -> tuple[Any, ...]:
        """Take a message within a turn's time, in a thread that may hang until its sandbox is gone."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="trl-step")
        try:
            taken = pool.submit(env.step, message)
            if wait([taken], self._prepared.recipe.limits.turn_timeout_s).not_done:
                raise _TurnTimeout
            return taken.result()
        finally:
            pool.shutdown(wait=False)

    def _settle(self, episode: _Episode, verdict: Verdict) -> None:
        played = Trajectory(episode.task.id, episode.task.split, episode.prompt, episode.env.turns, verdict)
        (self._reward,) = prices(self._prepared.scheme, Group(episode.task.id, [played]))
        self._close()

    def _fail(self, error: Exception) -> None:
        logger.warning("episode unscored reason=%r", error)
        self._reward, self._error = None, error
        self._close()

    def _close(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.env.close()


def environment_class(prepared: Prepared, tasks: Tasks) -> type[TrlEnvironment]:
    """Return a class with the tools of a recipe's environment as its public methods, for `environment_factory`.

    Raises:
        CapabilityError: TRL cannot play this environment in this way.
    """
    probe = prepared.make_env()
    if probe.conversational:
        raise CapabilityError(
            f"{type(probe).__name__} talks with its agent, and TRL's environments hear calls only; use rollout_func"
        )
    if probe.paced:
        raise CapabilityError(
            f"{type(probe).__name__} changes as training goes on, and TRL does not tell its environments how far it "
            "is; use rollout_func"
        )
    if not isinstance(prepared.scheme, AttemptScheme):
        raise CapabilityError(
            f"{type(prepared.scheme).__name__} compares the attempts of a group, and TRL's environments are priced one "
            "by one; use rollout_func"
        )
    if getattr(prepared.scheme, "cancelled_by", None) is not None:
        raise CapabilityError(
            f"{type(prepared.scheme).__name__} corrects rewards, which TRL's advantages may undo; use rollout_func, "
            "which looks at them"
        )
    schemas = {name: one.schema for name, one in probe.tools_for(tasks.first).items()}
    methods = {name: method_of(schema, TrlEnvironment._call) for name, schema in schemas.items()}
    members = {"_prepared": prepared, "_tasks": tasks, "_schemas": schemas, "_numbers": count(), **methods}
    return type(type(probe).__name__, (TrlEnvironment,), {"__doc__": type(probe).__doc__, **members})


def _nothing(feedback: str) -> Verdict:
    return Verdict(value=0.0, level="no_submission", trust=Trust.RPC, feedback=feedback)


def _text(messages: Iterable[Message]) -> str:
    return "\n\n".join(message.content for message in messages)
