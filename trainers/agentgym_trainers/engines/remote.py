"""What engines share that compute elsewhere and hold their own weights: segments, versions, aborts, updates."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from agentgym.errors import AgentgymError, InfrastructureError, RecipeError
from agentgym.policy import BudgetExceeded, Generation, Sampling, StopReason
from agentgym.sampling import derive_seed
from agentgym_trainers.engines.sampler import check_prompt
from agentgym_trainers.engines.weights import Weights, WholeWeights, check_weights

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Part:
    """What one request to the server gave."""

    ids: list[int]
    logprobs: list[float]
    reason: str
    """`stop` and `length` are ends; anything else means that the request was cut off."""
    version: str | None = None
    """Of the weights that sampled it, where the server tells."""


@dataclass(eq=False, slots=True)
class _Ask:
    """One turn under way: the parts that it is sampled in, one per version of the weights."""

    aborted: bool = False
    name: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, part: Part, version: int) -> None:
        self.ids += part.ids
        self.logprobs += part.logprobs
        if part.ids:
            had = self.spans.pop()[1] if self.spans and self.spans[-1][0] == version else 0
            self.spans.append((version, had + len(part.ids)))


class RemoteEngine(ABC):
    """Turns an inference server into an engine.

    An update of the weights ends every request under way and sends it again with what it has sampled as part of its
    prompt: keys and values of old weights are never read, and the tokens after the update are exactly the new
    weights'. Prefixes that the server caches are dropped with the old weights.
    """

    def __init__(self, model: Any, context_length: int | None) -> None:
        """Take the learner's model."""
        limit = int(model.config.get_text_config().max_position_embeddings)
        self.weight_version = 0
        self.owns_weights = True
        self._model = model
        self._summed_as: Any = None
        """The type in which layers with adapters are sent; None is the layer's own."""
        self._context = min(context_length or limit, limit)
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._asks: dict[str, _Ask] = {}
        self._start_task: asyncio.Task[None] | None = None
        self._started = False
        self._updating = asyncio.Lock()
        self._running = asyncio.Event()
        self._closed = False
        self._broken: AgentgymError | None = None

    @property
    def pending(self) -> int:
        """Requests that wait or are under way."""
        return len(self._asks)

    def open(self, session: str) -> None:  # noqa: B027 -- there is nothing to do
        """Announce an episode; the server needs no word of it."""

    def release(self, session: str) -> None:  # noqa: B027 -- there is nothing to do
        """Forget an episode; the server's cache forgets by itself what is not used."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        """Sample until a stop id, the token limit or the context's end; cancelling this ends the request at the server.

        Raises:
            BudgetExceeded: the prompt fills the context.
            InfrastructureError: the engine is closed, or the server failed.
        """
        check_prompt(prompt_ids, self._vocabulary)
        room = self._context - len(prompt_ids)
        if room < 1:
            raise BudgetExceeded("context")
        if sampling.limit > room:
            sampling = sampling.model_copy(update={"max_tokens": room})
        self._check_open()
        if session in self._asks:
            raise ValueError(f"session {session!r} already has a request; await it before the next turn")
        ask = self._asks[session] = _Ask()
        try:
            if not self._started:
                await self._ready()
            return await self._collect(ask, list(prompt_ids), sampling, stop_ids)
        finally:
            ask.done.set()
            del self._asks[session]

    async def abort(self, session: str) -> None:
        """End the session's request; its `generate` returns what was sampled so far."""
        ask = self._asks.get(session)
        if ask is not None:
            await self._end([ask])

    async def update_weights(
        self, weights: Iterable[tuple[str, Any]] | None = None, version: int | None = None
    ) -> None:
        """Send the learner's weights; requests under way are paused meanwhile and go on with the new ones.

        Raises:
            ValueError: the weights are not the model's.
            InfrastructureError: the engine is closed, or the server failed.
        """
        self._check_open()
        given = self._own_weights() if weights is None else check_weights(weights, self._model)
        version = self.weight_version + 1 if version is None else version
        first = await self._ready(given, version)
        self._check_open()
        if not first:
            async with self._updating:
                await self._renew(given, version)

    async def close(self) -> None:
        """Abort what is pending and let go of the server; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._running.set()
        await self._end(list(self._asks.values()))
        if self._start_task is not None and not self._start_task.done():
            await asyncio.wait([self._start_task])
        if self._started:
            await self._stop()

    async def _ready(self, weights: Weights | None = None, version: int | None = None) -> bool:
        """Start with the first who asks, or who asks after a start that failed; return whether it was this one."""
        first = self._start_task is None or (self._start_task.done() and not self._started)
        if first:
            self._start_task = asyncio.create_task(self._begin(weights, version))
        assert self._start_task is not None
        # Shielded, and held by the engine: others wait for it too, whatever becomes of who asked first.
        await asyncio.shield(self._start_task)
        return first

    async def _begin(self, weights: Weights | None, version: int | None) -> None:
        """Start with the learner's weights; where the engine was closed meanwhile, without any."""
        await self._start()
        self._started = True
        if not self._closed:
            given = self._own_weights() if weights is None else weights
            await self._renew(given, self.weight_version if version is None else version)

    def _own_weights(self) -> Weights:
        return WholeWeights(self._model, self._summed_as)

    async def _renew(self, weights: Weights, version: int) -> None:
        self._running.clear()
        try:
            await self._exchange(weights, version)
            self.weight_version = version
        except BaseException as error:
            # Nobody knows which of its weights are new: to sample on would be to train on noise.
            self._broken = InfrastructureError(f"the engine did not take its weights of version {version}: {error}")
            if isinstance(error, RecipeError):
                self._broken = error
            if isinstance(error, Exception):
                raise self._broken from error
            raise
        finally:
            self._running.set()

    async def _exchange(self, weights: Weights, version: int) -> None:
        """Replace the weights while nothing is computed."""
        await self._pause()
        await self._push(weights, version)
        await self._resume()

    async def _collect(self, ask: _Ask, prompt: list[int], sampling: Sampling, stop_ids: Sequence[int]) -> Generation:
        while True:
            await self._running.wait()
            if self._broken:
                raise self._broken
            if ask.aborted or self._closed:
                return self._generation(ask, "abort")
            ask.name = uuid4().hex  # whoever else asks the same server must not have it too
            done, version = len(ask.ids), self.weight_version
            # What goes on after new weights must not repeat the draws it has used.
            seed = derive_seed(sampling.seed, done) if done else sampling.seed
            left = sampling.model_copy(update={"max_tokens": sampling.limit - done, "seed": seed})
            try:
                part = await self._sample(ask.name, prompt + ask.ids, left, stop_ids)
            except AgentgymError:
                raise
            except Exception as error:
                raise InfrastructureError(f"the engine failed on a request: {error}") from error
            if sampling.temperature == 0:  # all mass lies on the token that was taken, whatever the server reports
                part = replace(part, logprobs=[0.0] * len(part.ids))
            ask.take(part, int(part.version) if part.version else version)
            if ask.ids and ask.ids[-1] in stop_ids:
                return self._generation(ask, "stop")
            if len(ask.ids) >= sampling.limit:
                return self._generation(ask, "length")
            if part.reason in ("stop", "length"):
                raise InfrastructureError(
                    f"the server ended a request after {len(ask.ids)} tokens with {part.reason!r}, and neither a stop "
                    f"token nor the limit of {sampling.limit} was reached"
                )

    def _generation(self, ask: _Ask, reason: StopReason) -> Generation:
        oldest = ask.spans[0][0] if ask.spans else self.weight_version
        spans = tuple(ask.spans) if len(ask.spans) > 1 else ()
        return Generation(ask.ids, ask.logprobs, reason, oldest, spans)

    async def _end(self, asks: list[_Ask]) -> None:
        """Abort, again and again: a request may be on its way to the server when it is first told to end."""
        for ask in asks:
            ask.aborted = True
        while left := [ask for ask in asks if not ask.done.is_set()]:
            if self._started:
                await self._abort([ask.name for ask in left if ask.name])
            await asyncio.sleep(_POLL_S)

    def _check_open(self) -> None:
        if self._closed:
            raise InfrastructureError(f"the engine is closed; build a new {type(self).__name__}")
        if self._broken:
            raise self._broken

    @abstractmethod
    async def _start(self) -> None:
        """Bring the server up, or find it."""

    @abstractmethod
    async def _sample(self, name: str, prompt_ids: list[int], sampling: Sampling, stop_ids: Sequence[int]) -> Part:
        """Send one request and wait for its end."""

    @abstractmethod
    async def _abort(self, names: Iterable[str]) -> None:
        """End requests; those that are unknown, or at their end, do no harm."""

    @abstractmethod
    async def _pause(self) -> None:
        """Cut off every request and begin none; drop what is cached."""

    @abstractmethod
    async def _push(self, weights: Weights, version: int) -> None:
        """Replace the weights; a layer with adapters is added up as it is read, so read them one by one if you can."""

    @abstractmethod
    async def _resume(self) -> None:
        """Begin requests again."""

    @abstractmethod
    async def _stop(self) -> None:
        """Let go of the server."""
