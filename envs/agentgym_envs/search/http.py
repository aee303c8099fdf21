"""Requests to search servers: repeated while that may help, bounded in time and size, and never believed unread."""

from __future__ import annotations

import json
from typing import Any

import tenacity

from agentgym.errors import InfrastructureError, MissingExtraError

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("httpx", "search") from error

MAX_ANSWER = 64 << 20
"""Bytes of an answer that are read at most."""
_BUSY = frozenset((408, 429, 502, 503, 504))


class _BusyError(Exception):
    """The server, or a proxy before it, wants to be asked again."""


class JsonServer:
    """A server that answers with JSON; one object serves many threads."""

    def __init__(self, url: str, *, timeout_s: float, retries: int) -> None:
        """Prepare, without speaking to the server yet.

        Args:
            url: what paths are appended to.
            timeout_s: of one attempt.
            retries: further attempts where nothing came back, or the server was busy.
        """
        self.url = url.rstrip("/")
        self._client = httpx.Client(timeout=timeout_s)
        self._repeated = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _BusyError)),
            stop=tenacity.stop_after_attempt(retries + 1),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
            reraise=True,
        )

    def ask(self, method: str, path: str = "", *, missing: Any = None, **request: Any) -> Any:
        """Return the JSON of an answer; `missing`, if it is given, where the server knows no such thing.

        Raises:
            InfrastructureError: there was no answer, a refusal, or one that is no JSON.
        """
        try:
            return self._repeated.copy()(self._once, method, path, missing, request)
        except (httpx.HTTPError, _BusyError, ValueError, httpx.InvalidURL) as error:
            told = str(error) or type(error).__name__
            raise InfrastructureError(f"the search server at {self.url} does not answer as wanted: {told}") from error

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def _once(self, method: str, path: str, missing: Any, request: dict[str, Any]) -> Any:
        with self._client.stream(method, f"{self.url}{path}", **request) as answer:
            data = bytearray()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > MAX_ANSWER:
                    raise ValueError(f"its answer is longer than {MAX_ANSWER >> 20} MiB")
        if answer.status_code in _BUSY:
            raise _BusyError(f"status {answer.status_code}")
        if answer.status_code in (404, 405) and missing is not None:
            return missing
        if not answer.is_success:
            raise ValueError(f"status {answer.status_code}: {data[:200].decode('utf-8', 'replace')}")
        return answer_json(bytes(data))


def answer_json(data: bytes) -> Any:
    """Return what JSON text says.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("its answer is nested too deeply") from error
