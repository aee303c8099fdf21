"""Generate with a transformers model in this process: the embedded default, no server and no second copy of weights."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling
from agentgym_trainers.engines.decode import Batch, Request

logger = logging.getLogger(__name__)


class HFEngine:
    """Batches concurrent requests on one worker thread, so that environments run meanwhile.

    The model is shared with the learner: an optimizer step is at once what the engine samples from, and
    `update_weights` only counts. Nobody may change weights while requests are pending.

    `lockstep` forms a batch when every open session has a request, ordered by session name: what is computed
    together then depends on nothing but the episodes, so a run can be repeated bit for bit. `eager` takes whatever is
    waiting, and never waits for a slow episode.
    """

    def __init__(
        self,
        model: Any,
        *,
        batching: Literal["lockstep", "eager"] = "eager",
        max_batch: int = 256,
        patience_s: float = 120.0,
    ) -> None:
        """Take a causal language model, already on its device.

        Args:
            model: a transformers causal language model.
            batching: how requests are put together.
            max_batch: rows computed at once.
            patience_s: after this long a lockstep batch leaves without the sessions that it waits for.
        """
        self.weight_version = 0
        self.owns_weights = False
        self._model = model
        self._lockstep = batching == "lockstep"
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._pending: dict[str, Request] = {}
        self._busy = False
        self._closed = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentgym-hf")

    @property
    def pending(self) -> int:
        """Requests that wait or are under way."""
        return len(self._requests)

    async def abort(self, session: str) -> None:
        """End the session's request; its `generate` returns what was sampled so far."""
        with self._lock:
            request = self._requests.get(session)
            waiting = self._pending.pop(session, None)
        if request is not None:
            request.aborted = True
        if waiting is not None:
            _resolve(waiting, Generation([], [], "abort", self.weight_version))
            self._pump()

    def open(self, session: str) -> None:
        """Announce an episode; open all episodes of a lockstep rollout before the first one generates."""
        with self._lock:
            self._open.add(session)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        """Sample until a stop id or the token limit; the result depends on prompt, seed and weights only.

        Cancelling this call takes the request out of its batch.

        Raises:
            InfrastructureError: the engine is closed, or the model failed.
        """
        if not prompt_ids:
            raise ValueError("wanted at least one prompt token, found none; a prompt begins with what the model reads")
        request = Request(session, list(prompt_ids), sampling, frozenset(stop_ids))
        with self._lock:
            if self._closed:
                raise InfrastructureError("the engine is closed; build a new HFEngine")
            if session in self._requests:
                raise ValueError(f"session {session!r} already has a request; await it before the next turn")
            self._requests[session] = self._pending[session] = request
        self._pump()
        try:
            return await self._result(request)
        finally:
            self._drop(request)

    def release(self, session: str) -> None:
        """Forget an episode, so that nobody waits for it."""
        with self._lock:
            self._open.discard(session)
        self._pump()

    async def update_weights(
        self, weights: Iterable[tuple[str, Any]] | None = None, version: int | None = None
    ) -> None:
        """Note that the shared model has new weights, or give it some; not while requests are pending.

        Raises:
            ValueError: requests are pending.
        """
        if self.pending:
            raise ValueError(f"wanted no pending requests while the shared weights change, found {self.pending}")
        if weights is not None:
            self._model.load_state_dict(dict(weights), strict=False)
        self.weight_version = self.weight_version + 1 if version is None else version

    async def close(self) -> None:
        """Abort what is pending and end the worker; may be called twice."""
        with self._lock:
            self._closed = True
            waiting, self._pending = list(self._pending.values()), {}
        for request in waiting:
            _resolve(request, Generation([], [], "abort", self.weight_version))
        await asyncio.to_thread(self._worker.shutdown)

    async def _result(self, request: Request) -> Generation:
        future = asyncio.wrap_future(request.future)
        while True:
            done, _ = await asyncio.wait({future}, timeout=self._patience_s)
            if done:
                return future.result()
            with self._lock:
                waiting = self._lockstep and request.session in self._pending and not self._busy
            if waiting:
                logger.warning("lockstep broken after %.0f s: some open sessions ask for nothing", self._patience_s)
                self._pump(forced=True)

    def _drop(self, request: Request) -> None:
        request.future.cancel()
        with self._lock:
            for requests in (self._requests, self._pending):
                if requests.get(request.session) is request:
                    del requests[request.session]
        self._pump()

    def _pump(self, *, forced: bool = False) -> None:
        """Send the next batch to the worker if it is idle and the batch is complete."""
        with self._lock:
            if self._busy or self._closed or not self._pending:
                return
            if self._lockstep and not forced and not self._open <= self._pending.keys():
                return
            self._busy = True
        self._worker.submit(self._work)

    def _work(self) -> None:
        with self._lock:
            names = sorted(self._pending)
            waiting, self._pending = [self._pending[name] for name in names], {}
        # Results come back together: a chunk that overtook the others would change who meets in the next batch.
        results: list[tuple[Request, Generation | Exception]] = []
        for start in range(0, len(waiting), self._max_batch):
            results += self._compute(waiting[start : start + self._max_batch])
        with self._lock:
            self._busy = False
        for request, result in results:
            _resolve(request, result)
        self._pump()

    def _compute(self, requests: list[Request]) -> list[tuple[Request, Generation | Exception]]:
        try:
            made = Batch(self._model, requests).run(self.weight_version, lambda: self._closed)
        except Exception as error:  # noqa: BLE001 -- whoever waits must hear of it
            failure = InfrastructureError(f"the model failed on a batch of {len(requests)}: {error}")
            failure.__cause__ = error
            return [(request, failure) for request in requests]
        return list(zip(requests, made, strict=True))


def _resolve(request: Request, result: Generation | Exception) -> None:
    if not request.future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        request.future.set_exception(result)
    else:
        request.future.set_result(result)
