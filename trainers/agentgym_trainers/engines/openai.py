"""Chat with any OpenAI-compatible endpoint, patiently. It returns text, so it serves evaluation and never training."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from agentgym.errors import CapabilityError, InfrastructureError, MissingExtraError, RecipeError
from agentgym.policy import BudgetExceeded, Generation, Sampling
from agentgym.types import Record

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

_BUSY = frozenset((408, 409, 425, 429))
_WRONG = frozenset((401, 403, 404))
_OVERFLOW = ("context_length_exceeded", "maximum context length", "context length", "prompt is too long")
_NO_TOKENS = "it returns text and no tokens; evaluate with --policy openai:MODEL@URL, and train with the engine hf"


class EndpointError(InfrastructureError):
    """The endpoint did not answer, or not in the shape of a chat completion."""


class _BusyError(EndpointError):
    """Worth another try."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class OpenAISettings(Record):
    """How an endpoint is reached."""

    model: Annotated[str, Field(min_length=1)]
    url: Annotated[str, Field(pattern=r"^https?://")]
    """The endpoint's base, such as `http://localhost:8000/v1`; `/chat/completions` is added."""
    api_key_variable: str | None = None
    """The environment variable that holds the key, never the key itself; None sends none."""
    concurrency: Annotated[int, Field(ge=1)] = 16
    """Requests under way at once."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Of one request, from its beginning to the last byte of the answer."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Of requests that were not answered, or answered with 408, 409, 425, 429 or 5xx."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 1.0
    """Scale of the random exponential wait between retries; the endpoint's Retry-After is waited for in any case."""
    max_wait_s: Annotated[float, Field(ge=0)] = 60.0
    """The longest wait between retries, whatever Retry-After says."""
    native_tools: bool = True
    """Pass the environment's tools; False for endpoints that refuse them, where the model writes calls as text."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit of an answer."""


@dataclass(slots=True)
class Usage:
    """What was asked of an endpoint; tokens as it counts them."""

    requests: int = 0
    """Answered ones."""
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    message: Mapping[str, Any]
    finish_reason: str
    completion_tokens: int
    """0 where the endpoint does not count."""


class OpenAIEngine:
    """One endpoint and model. Connections are shared by the open sessions and closed with the last of them."""

    not_for_training: ClassVar[str] = _NO_TOKENS

    def __init__(self, settings: OpenAISettings) -> None:
        """Take the settings; nothing is asked yet.

        Raises:
            MissingExtraError: httpx is not installed.
            RecipeError: the key's variable is empty.
        """
        if find_spec("httpx") is None:
            raise MissingExtraError("httpx", "openai")
        self.settings = settings
        self.usage = Usage()
        self.weight_version = 0
        self._headers = _headers(settings.api_key_variable)
        self._sessions: set[str] = set()
        self._client: httpx.AsyncClient | None = None
        self._gate: asyncio.Semaphore | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, session: str) -> None:
        """Announce an episode."""
        self._sessions.add(session)

    def release(self, session: str) -> None:
        """Forget an episode; with the last one, close the connections."""
        self._sessions.discard(session)
        client = self._client
        if self._sessions or client is None:
            return
        self._client = self._gate = None
        task = asyncio.get_running_loop().create_task(client.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        logger.info("endpoint used model=%s %s", self.settings.model, self.usage)

    async def close(self) -> None:
        """Close the connections; may be called twice."""
        client, self._client, self._gate = self._client, None, None
        if client is not None:
            await client.aclose()

    async def generate(
        self,
        prompt_ids: Sequence[int],  # noqa: ARG002 -- refused
        sampling: Sampling,  # noqa: ARG002
        session: str,  # noqa: ARG002
        stop_ids: Sequence[int],  # noqa: ARG002
    ) -> Generation:
        """Refuse: there are no tokens to return.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(f"the engine 'openai' cannot sample tokens: {_NO_TOKENS}")

    async def complete(self, body: Mapping[str, Any]) -> Completion:
        """Ask for one chat completion; `body` is the request without its model.

        Raises:
            BudgetExceeded: the conversation is longer than the model's context.
            RecipeError: the endpoint knows no such model or key; told before anything was ever answered.
            EndpointError: it does not answer, after every retry, or refuses this request.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.settings.retries + 1),
            wait=self._wait,
            retry=retry_if_exception_type(_BusyError),
            before_sleep=self._count_retry,
            reraise=True,
        )
        client, gate = self._connected()
        return await retrying(self._ask, client, gate, {"model": self.settings.model, **body})

    def _connected(self) -> tuple[httpx.AsyncClient, asyncio.Semaphore]:
        import httpx  # an optional package, and slow to import

        if self._client is None or self._gate is None:
            limits = httpx.Limits(max_connections=self.settings.concurrency)
            self._client = httpx.AsyncClient(timeout=None, limits=limits, headers=self._headers)
            self._gate = asyncio.Semaphore(self.settings.concurrency)
        return self._client, self._gate

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        wanted = error.wait_s if isinstance(error, _BusyError) else 0.0
        spread: float = wait_random_exponential(multiplier=self.settings.retry_wait_s, max=self.settings.max_wait_s)(
            state
        )
        # After what the endpoint asked for, spread out: everybody was told to come back at the same moment.
        return min(wanted + spread, self.settings.max_wait_s)

    def _count_retry(self, state: RetryCallState) -> None:
        self.usage.retries += 1
        logger.info(
            "endpoint retried attempt=%d reason=%s", state.attempt_number, state.outcome and state.outcome.exception()
        )

    async def _ask(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, body: Mapping[str, Any]) -> Completion:
        import httpx

        url = f"{self.settings.url.rstrip('/')}/chat/completions"
        async with gate:
            try:
                async with asyncio.timeout(self.settings.timeout_s) as deadline:
                    found = await client.post(url, json=body)
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                raise _BusyError(f"{url} did not answer within {self.settings.timeout_s:g} s") from error
            except httpx.HTTPError as error:
                raise _BusyError(f"{url} does not answer: {type(error).__name__}: {error}") from error
        if found.status_code != 200:
            raise self._refusal(found, url)
        completion = self._read(found, url)
        self.usage.requests += 1
        return completion

    def _refusal(self, found: httpx.Response, url: str) -> Exception:
        status, said = found.status_code, " ".join(found.text.split())[:200]
        if status in _BUSY or status >= 500:
            return _BusyError(f"{url} answers with status {status}: {said}", _retry_after(found.headers))
        if status in _WRONG and not self.usage.requests:
            return RecipeError(f"{url} answers with status {status}: {said}; check the model, the URL and the key")
        if status in (400, 413, 422) and any(sign in said.lower() for sign in _OVERFLOW):
            return BudgetExceeded("context")
        return EndpointError(f"{url} refuses a request with status {status}: {said}")

    def _read(self, found: httpx.Response, url: str) -> Completion:
        try:
            data = found.json()
            choice, usage = data["choices"][0], data.get("usage") or {}
            message = choice["message"]
            if not isinstance(message, dict):
                raise TypeError("its message is no object")
            prompt, completion = (int(usage.get(f"{one}_tokens") or 0) for one in ("prompt", "completion"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise _BusyError(f"{url} answers with something else than a chat completion: {error!r}") from error
        self.usage.prompt_tokens += prompt
        self.usage.completion_tokens += completion
        return Completion(message, str(choice.get("finish_reason") or "stop"), completion)


def _headers(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise RecipeError(f"the endpoint's key is wanted in the environment variable {variable}, which is empty")
    return {"Authorization": f"Bearer {key}"}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that the header asks for, given as a number or as a date; 0 without a readable one."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0
