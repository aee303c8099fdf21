"""Sessions: one environment each, one turn at a time, ended by their clients or by silence."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, TypeVar

import gymnasium
from pydantic import Field

from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError
from agentgym.serving.refusals import CrashError, EndingError, FullError, TurnTimeoutError, UnknownSessionError
from agentgym.serving.shared_tasks import shared
from agentgym.serving.wire import Action, Reset, Seen, State, seen
from agentgym.task import TaskSet
from agentgym.types import Record

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Bounds(Record):
    """What clients may take."""

    sessions: Annotated[int, Field(ge=1)] = 256
    session_ttl_s: Annotated[float, Field(gt=0)] = 600.0
    """A session that nothing was asked of for so long is ended."""
    turn_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """A turn that takes longer, from when it has a thread, ends its session."""
    wait_s: Annotated[float, Field(gt=0)] = 1500.0
    """A turn that waits longer for a thread is refused."""
    patience_s: Annotated[float, Field(gt=0)] = 30.0
    """For a request to come whole, and for each part of an answer to be taken; then the client is hung up on."""
    message_bytes: Annotated[int, Field(ge=1024)] = 4 << 20
    threads: Annotated[int, Field(ge=1)] = 64
    """Turns at once."""


_ENDS = "the server ends and begins no more sessions"
_CLOSERS = 16
"""Environments that are closed at the same time: that is mostly waiting for their sandboxes."""


@dataclass(eq=False)
class Session:
    """One client's environment."""

    id: str
    env: AgentEnv
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    used_at: float = field(default_factory=time.monotonic)
    episode_id: str | None = None
    task_id: str | None = None
    step_count: int = 0
    done: bool = False

    def state(self) -> State:
        """Return what a client may know of its session."""
        return State(
            session_id=self.id,
            episode_id=self.episode_id,
            task_id=self.task_id,
            step_count=self.step_count,
            done=self.done,
        )


class Sessions:
    """All sessions of a server. Its methods belong to one event loop; environments run in threads of their own."""

    def __init__(self, make_env: Callable[[], AgentEnv], bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._make_env = make_env
        self._open: dict[str, Session] = {}
        self._beginning: set[asyncio.Task[Session]] = set()
        self._letting_go: set[asyncio.Task[None]] = set()
        self._ends = False
        self._tasks: TaskSet | None = None
        self._making = threading.Lock()
        self._threads = ThreadPoolExecutor(self.bounds.threads, thread_name_prefix="turn")
        # Of their own: a turn that hangs holds its thread until its sandbox is gone.
        self._closers = ThreadPoolExecutor(_CLOSERS, thread_name_prefix="closing")
        self.counts = {"begun": 0, "ended": 0, "expired": 0, "refused": 0, "turns": 0, "episodes": 0, "errors": 0}
        self.turn_seconds = 0.0

    def __len__(self) -> int:
        return len(self._open)

    async def begin(self) -> Session:
        """Open a session.

        Raises:
            FullError: there are as many as allowed.
            EndingError: the server ends.
        """
        if self._ends:
            raise EndingError(_ENDS)
        if len(self._open) + sum(not one.done() for one in self._beginning) >= self.bounds.sessions:
            self.counts["refused"] += 1
            raise FullError(f"the server has {self.bounds.sessions} sessions, as many as it allows; try again later")
        # A task of its own, for what a thread is making must be closed even if its client goes meanwhile.
        beginning = asyncio.create_task(self._begun())
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            if beginning.cancelled():  # no thread was free before the server ended
                raise EndingError(_ENDS) from None
            beginning.add_done_callback(self._let_go)
            raise

    def find(self, session_id: str) -> Session:
        """Return an open session.

        Raises:
            UnknownSessionError: there is none of that id.
        """
        session = self._open.get(session_id)
        if session is None:
            raise UnknownSessionError("there is no such session; it was ended, was silent for too long, or never began")
        session.used_at = time.monotonic()
        return session

    async def reset(self, session: Session, asked: Reset) -> Seen:
        """Begin an episode."""
        options = {name: value for name, value in (("task", asked.task), ("hint", asked.hint)) if value is not None}
        messages, info = await self._turn(session, partial(session.env.reset, seed=asked.seed, options=options))
        session.episode_id = asked.episode_id or secrets.token_hex(8)
        session.task_id, session.step_count, session.done = info["task_id"], 0, False
        self.counts["episodes"] += 1
        return seen(messages, info, None, (False, False))

    async def step(self, session: Session, action: Action) -> Seen:
        """Take one turn."""
        messages, reward, terminated, truncated, info = await self._turn(
            session, partial(session.env.step, action.message())
        )
        session.step_count += 1
        session.done = terminated or truncated
        return seen(messages, info, reward, (terminated, truncated))

    async def end(self, session: Session, how: str = "ended") -> None:
        """Close a session; a turn that still runs loses its sandbox and ends by itself."""
        if self._open.pop(session.id, None) is not None:
            self.counts[how] += 1
            ended = asyncio.get_running_loop().run_in_executor(self._closers, session.env.close)
            await asyncio.shield(ended)

    async def sweep(self) -> None:
        """End silent sessions, for ever."""
        while True:
            await asyncio.sleep(min(1.0, self.bounds.session_ttl_s / 4))
            now = time.monotonic()
            for one in [*self._open.values()]:
                if not one.turn.locked() and now - one.used_at > self.bounds.session_ttl_s:
                    logger.info("a silent session is ended session=%s", one.id[:8])
                    await self._end_anyway(one, "expired")

    async def close(self) -> None:
        """End all sessions, also those that are only beginning."""
        self._ends = True
        await asyncio.gather(*(self._end_anyway(one) for one in [*self._open.values()]))
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*self._beginning, *self._letting_go, return_exceptions=True)  # their clients are told
        self._closers.shutdown(wait=False)

    async def _begun(self) -> Session:
        session = Session(secrets.token_urlsafe(24), await self._in_thread(self._made))
        self._open[session.id] = session
        self.counts["begun"] += 1
        if self._ends:
            await self._end_anyway(session)
            raise EndingError(_ENDS)
        return session

    def _let_go(self, beginning: asyncio.Task[Session]) -> None:
        """End what was begun for a client that has gone."""
        if not beginning.cancelled() and beginning.exception() is None:
            ending = asyncio.create_task(self._end_anyway(beginning.result()))
            self._letting_go.add(ending)
            ending.add_done_callback(self._letting_go.discard)

    async def _end_anyway(self, session: Session, how: str = "ended") -> None:
        try:
            await self.end(session, how)
        except Exception:
            logger.exception("a session could not be closed session=%s", session.id[:8])

    def _made(self) -> AgentEnv:
        env = self._make_env()
        with self._making:
            if self._tasks is None:
                self._tasks = shared(env.tasks)
        env.tasks = self._tasks
        return env

    async def _turn(self, session: Session, call: Callable[[], Result]) -> Result:
        async with session.turn:
            self.find(session.id)  # it may have ended while this turn waited
            loop, began = asyncio.get_running_loop(), time.monotonic()
            deadline, waits = asyncio.timeout(self.bounds.wait_s), True
            runs = False

            def start_clock() -> None:
                nonlocal began, runs
                if waits:
                    began, runs = time.monotonic(), True
                    deadline.reschedule(loop.time() + self.bounds.turn_timeout_s)

            def timed() -> Result:
                # Not before: where many turns wait for few threads, their waiting is nobody's fault.
                loop.call_soon_threadsafe(start_clock)
                if self._open.get(session.id) is not session:  # ended meanwhile, and its environment closed
                    raise UnknownSessionError("the session was ended while its turn waited")
                return call()

            try:
                async with deadline:
                    try:
                        return await self._in_thread(timed)
                    finally:
                        waits = False
            except TimeoutError as error:
                if not deadline.expired():  # somebody else's, such as a socket's
                    raise self._crash(session) from error
                if not runs:
                    self.counts["refused"] += 1
                    raise FullError(
                        f"the turn waited {self.bounds.wait_s:g} s for a thread and none was free; try again later"
                    ) from None
                await self.end(session, "expired")
                raise TurnTimeoutError(
                    f"the turn took longer than {self.bounds.turn_timeout_s:g} s; its session is ended"
                ) from None
            except (AgentgymError, gymnasium.error.ResetNeeded):
                self.counts["errors"] += 1
                raise
            except Exception as error:
                raise self._crash(session) from error
            finally:
                session.used_at = time.monotonic()
                self.counts["turns"] += 1
                self.turn_seconds += time.monotonic() - began

    def _crash(self, session: Session) -> CrashError:
        self.counts["errors"] += 1
        logger.exception("an environment raised session=%s", session.id[:8])
        return CrashError("the environment raised an error; the server's log has it")

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
