"""Generate with a transformers model in this process: the embedded default, no server and no second copy of weights."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling
from agentgym_trainers.engines.continuous import ContinuousBatch, Result
from agentgym_trainers.engines.decode import FixedBatches
from agentgym_trainers.engines.prefixes import PrefixStore
from agentgym_trainers.engines.sampler import Request, check_prompt
from agentgym_trainers.engines.slots import fits_slots
from agentgym_trainers.engines.weights import check_weights, copy_weights, frozen_copy

logger = logging.getLogger(__name__)

_Answer = tuple[asyncio.Future[Generation], Generation | Exception]


@dataclass(slots=True)
class _Update:
    """New weights that wait for the space between two tokens."""

    weights: list[tuple[str, Any]]
    version: int
    done: Future[None] = field(default_factory=Future)


class HFEngine:
    """Batches concurrent requests on one worker thread, so that environments run meanwhile.

    `eager` batches continuously: a request joins the running batch at its next token and leaves at its last, so nobody
    waits for a slow episode. `lockstep` forms a batch when every open session has a request, ordered by session name:
    what is computed together then depends on nothing but the episodes, so a run can be repeated bit for bit.

    The keys and values of an open session are kept for its next turn, and any request may begin with what another
    session has computed; requests with one and the same prompt compute it once.
    """

    def __init__(
        self,
        model: Any,
        *,
        batching: Literal["lockstep", "eager"] = "eager",
        max_batch: int = 256,
        patience_s: float = 120.0,
        weights: Literal["shared", "copied"] = "shared",
        prefix_cache_mb: float = 512.0,
        draft_tokens: Annotated[int, Field(ge=0)] = 6,
        dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> None:
        """Take a causal language model, already on its device.

        Args:
            model: a transformers causal language model.
            batching: how requests are put together.
            max_batch: rows computed at once.
            patience_s: after this long a lockstep batch leaves without the sessions that it waits for.
            weights: `shared` samples from the learner's own tensors, so nothing may be pending while they change;
                `copied` keeps a second copy, which `update_weights` refreshes between two tokens; lockstep and fixed
                batches end first.
            prefix_cache_mb: memory for keys and values of sessions between their turns; 0 keeps none.
            draft_tokens: how many tokens to guess for each row, at most, from what it has read before; 0 guesses none.
                Guesses are checked: they save calls of the model and change no token, up to rounding, which in bfloat16
                may. Fixed batches guess none.
            dtype: of the arithmetic, and of copied weights; by default the model's own. Shared weights stay what they
                are, and are computed with under autocast, like the learner's, which casts them for every token.

        Raises:
            ValueError: there is no such dtype, or fewer draft tokens than none.
        """
        if draft_tokens < 0:
            raise ValueError(f"wanted 0 draft_tokens or more, found {draft_tokens}")
        if dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"wanted dtype float32 or bfloat16 for the engine 'hf', found {dtype!r}")
        self.weight_version = 0
        self.owns_weights = weights == "copied"
        self.prefixes = PrefixStore(int(prefix_cache_mb * 2**20))
        self._source = model
        own_type = None if dtype is None else getattr(torch, dtype)
        self._model = frozen_copy(model, own_type) if self.owns_weights else model
        self._autocast = dtype == "bfloat16" and not self.owns_weights
        self.lockstep = batching == "lockstep"
        """Whether it waits for every open session."""
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._batch = (
            ContinuousBatch(self._model, self.prefixes, draft_tokens=draft_tokens, autocast=self._autocast)
            if fits_slots(self._model)
            else None
        )
        self._fixed = FixedBatches(self._model)
        if self._batch is None and not self.lockstep:
            logger.warning("%s keeps more than keys and values: its batches are fixed", type(model).__name__)
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._answers: dict[Request, asyncio.Future[Generation]] = {}
        self._waiting: dict[str, Request] = {}
        self._updates: list[_Update] = []
        self._busy = False
        self._closed = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentgym-hf")

    @property
    def pending(self) -> int:
        """Requests that wait or are under way."""
        return len(self._requests)

    def open(self, session: str) -> None:
        """Announce an episode; open all episodes of a lockstep rollout before the first one generates."""
        self.prefixes.open(session)
        with self._lock:
            self._open.add(session)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        """Sample until a stop id or the token limit; the result depends on prompt, seed and weights only.

        Cancelling this call takes the request out of its batch.

        Raises:
            InfrastructureError: the engine is closed, or the model failed.
            ValueError: the model cannot read the prompt, or the sampling has no limit of tokens.
        """
        check_prompt(prompt_ids, self._vocabulary)
        request = Request(session, list(prompt_ids), sampling, frozenset(stop_ids))
        with self._lock:
            if self._closed:
                raise InfrastructureError("the engine is closed; build a new HFEngine")
            if session in self._requests:
                raise ValueError(f"session {session!r} already has a request; await it before the next turn")
            self._requests[session] = self._waiting[session] = request
            answer = self._answers[request] = asyncio.get_running_loop().create_future()
        self._pump()
        try:
            with self._patience(request) if self.lockstep else nullcontext():
                made: Generation = await answer
                return made
        finally:
            self._drop(request)

    async def abort(self, session: str) -> None:
        """End the session's request; its `generate` returns what was sampled so far."""
        with self._lock:
            request = self._requests.get(session)
            waiting = self._waiting.pop(session, None)
        if request is not None:
            request.aborted = True
        if waiting is not None:
            self._hand_out([(waiting, Generation([], [], "abort", self.weight_version))])
            self._pump()

    def release(self, session: str) -> None:
        """Forget an episode, so that nobody waits for it and nothing of it is kept."""
        self.prefixes.close(session)
        with self._lock:
            self._open.discard(session)
            self._give_back()
        self._pump()

    async def update_weights(
        self, weights: Iterable[tuple[str, Any]] | None = None, version: int | None = None
    ) -> None:
        """Sample from new weights; a copied model takes them between two tokens, and computes contexts anew.

        Lockstep and fixed batches end before it takes any.

        The tensors are read until this returns: do not change them meanwhile.

        Raises:
            InfrastructureError: the engine is closed, or the model failed on the requests that go on.
            ValueError: requests are pending on shared weights, or the weights do not fit the model.
        """
        version = self.weight_version + 1 if version is None else version
        if not self.owns_weights:
            if self.pending:
                raise ValueError(
                    f"wanted no pending requests while shared weights change, found {self.pending}; await them, or "
                    "give the engine its own with weights='copied'"
                )
            if weights is not None:
                copy_weights(self._model, check_weights(weights, self._model))
            self.prefixes.clear()
            with self._lock:
                if self._batch is not None and not self._busy:
                    self._batch.clear()
            self.weight_version = version
            return
        own = self._source.state_dict().items()  # under the names of the copy, adapters and all
        update = _Update(list(own) if weights is None else check_weights(weights, self._model), version)
        with self._lock:
            if self._closed:
                raise InfrastructureError("the engine is closed and takes no weights; build a new HFEngine")
            self._updates.append(update)
        self._pump()
        await asyncio.wrap_future(update.done)

    async def close(self) -> None:
        """Abort what is pending and end the worker; may be called twice."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
            updates, self._updates = self._updates, []
        for update in updates:
            if update.done.set_running_or_notify_cancel():
                update.done.set_exception(InfrastructureError("the engine was closed before it took its new weights"))
        self._hand_out([(one, Generation([], [], "abort", self.weight_version)) for one in waiting])
        await asyncio.to_thread(self._worker.shutdown)
        self.prefixes.clear()
        with self._lock:
            self._open.clear()
            self._give_back()

    @contextmanager
    def _patience(self, request: Request) -> Iterator[None]:
        """While a request waits for those of other open sessions, let it go without them every so often."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def lose() -> None:
            nonlocal timer
            timer = loop.call_later(self._patience_s, lose)
            with self._lock:
                waiting = request.session in self._waiting and not self._busy
            if waiting:
                logger.warning("lockstep broken after %.0f s: some open sessions ask for nothing", self._patience_s)
                self._pump(forced=True)

        timer = loop.call_later(self._patience_s, lose)
        try:
            yield
        finally:
            timer.cancel()

    def _hand_out(self, results: Iterable[tuple[Request, Generation | Exception]]) -> None:
        """Tell those who wait, all of one event loop at once: each call to another thread costs as much as tokens."""
        found: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
        with self._lock:
            for request, result in results:
                answer = self._answers.pop(request, None)
                if answer is not None:
                    found.setdefault(answer.get_loop(), []).append((answer, result))
        for loop, answers in found.items():
            try:
                loop.call_soon_threadsafe(_answer, answers)
            except RuntimeError:
                if not loop.is_closed():  # or nobody is left who waits
                    raise

    def _drop(self, request: Request) -> None:
        request.aborted = request.forgotten = True
        with self._lock:
            self._answers.pop(request, None)
            for requests in (self._requests, self._waiting):
                if requests.get(request.session) is request:
                    del requests[request.session]
        self._pump()

    def _pump(self, *, forced: bool = False) -> None:
        """Set the idle worker going if there is something to do."""
        with self._lock:
            if self._busy or self._closed or not (self._waiting or self._updates):
                return
            if self.lockstep and not forced and not self._updates and not self._open <= self._waiting.keys():
                return
            self._busy = True
        self._worker.submit(self._work, forced)

    def _work(self, forced: bool) -> None:
        try:
            self._serve(forced)
        except BaseException as error:  # whoever waits must hear of it: nobody looks at a worker's end
            with self._lock:
                self._closed, self._busy = True, False
                requests, updates = list(self._requests.values()), list(self._updates)
            failure = _failure(error)
            self._hand_out([(one, failure) for one in requests])
            for update in updates:
                if not update.done.done():
                    update.done.set_exception(failure)
            raise
        self._pump()

    def _serve(self, forced: bool) -> None:
        """Compute until there is nothing left to do."""
        while True:
            with self._lock:
                update = self._updates.pop(0) if self._updates else None
                joining = self._joining(forced)
                if update is None and not joining and not (self._batch and self._batch.rows):
                    self._busy = False
                    self._give_back()
                    break
            forced = False
            done = [] if update is None else self._renew(update)
            if self.lockstep or self._batch is None:
                # Results come back together: a chunk that overtook the others would change who meets next.
                for start in range(0, len(joining), self._max_batch):
                    with self._arithmetic():
                        done += self._compute(joining[start : start + self._max_batch])
                with self._lock:
                    self._busy = False
                    self._give_back()
                self._hand_out(done)
                break
            with self._arithmetic():
                done += self._batch.tick(joining, self.weight_version)
            if self._closed:
                done += self._batch.end(self.weight_version)
            if done:
                self._hand_out(done)

    def _give_back(self) -> None:
        """Hold no memory for rows once the last episode is over; the caller has the lock."""
        if self._batch is not None and not self._open and not self._busy:
            self._batch.clear()

    def _joining(self, forced: bool) -> list[Request]:
        """Take from those who wait whoever may join now."""
        room = len(self._waiting)
        if self.lockstep:
            room = room if forced or self._open <= self._waiting.keys() else 0
        elif self._batch is not None:
            room = min(room, self._max_batch - len(self._batch.rows))
        names = sorted(self._waiting)[:room] if self.lockstep else list(self._waiting)[:room]
        return [self._waiting.pop(name) for name in names]

    def _compute(self, requests: list[Request]) -> list[Result]:
        """Run a batch that nobody joins to its end."""
        if self._batch is None:
            try:
                made = self._fixed.run(requests, self.weight_version, lambda: self._closed)
            except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
                failure = InfrastructureError(f"the model failed on a batch of {len(requests)}: {error}")
                failure.__cause__ = error
                return [(request, failure) for request in requests]
            return list(zip(requests, made, strict=True))
        found = dict(self._batch.tick(requests, self.weight_version))
        while self._batch.rows:
            found |= dict(
                self._batch.end(self.weight_version) if self._closed else self._batch.tick([], self.weight_version)
            )
        return [(request, found[request]) for request in requests]

    def _arithmetic(self) -> AbstractContextManager[object]:
        """Return what computes in the engine's type; it keeps casts of weights, so these must not change within it."""
        return torch.autocast(self._model.device.type, torch.bfloat16) if self._autocast else nullcontext()

    def _renew(self, update: _Update) -> list[Result]:
        if not update.done.set_running_or_notify_cancel():
            return []
        try:
            copy_weights(self._model, update.weights)
        except ValueError as error:  # nothing was copied
            update.done.set_exception(error)
            return []
        except BaseException as error:
            update.done.set_exception(_failure(error))
            raise
        self.weight_version = update.version
        try:
            done = self._batch.restart(update.version) if self._batch is not None else []
        except BaseException as error:
            update.done.set_exception(_failure(error))
            raise
        update.done.set_result(None)
        return done


def _failure(error: BaseException) -> InfrastructureError:
    return InfrastructureError(f"the engine failed: {error!r}")


def _answer(answers: Iterable[_Answer]) -> None:
    for answer, result in answers:
        if answer.done():
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
