"""Ask a model behind an OpenAI-compatible endpoint, patiently, and remember what it said."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from agentgym.errors import InfrastructureError, MissingExtraError
from agentgym.graders.judge_settings import EndpointSettings

_BUSY = frozenset((408, 409, 425, 429))
_REFUSED = frozenset((400, 413, 422))
_MAX_REPLY = 1 << 20


class EndpointError(InfrastructureError):
    """The endpoint did not answer, or not in the shape of a chat completion."""


class RefusedError(Exception):
    """The endpoint answers, but not this request: for its length, or for what it says."""


class _BusyError(EndpointError):
    """Worth another try."""


class Replies:
    """Replies by the hash of what was asked; safe to use from many threads and processes."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._kept: dict[str, str] = {}
        self._lock = threading.Lock()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as base, base:
                base.execute("CREATE TABLE IF NOT EXISTS replies (asked TEXT PRIMARY KEY, reply TEXT NOT NULL)")

    def get(self, asked: str) -> str | None:
        """Return the reply, if there was one."""
        if self._file is None:
            with self._lock:
                return self._kept.get(asked)
        with closing(self._connect()) as base:
            row = base.execute("SELECT reply FROM replies WHERE asked = ?", (asked,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, asked: str, reply: str) -> None:
        """Keep a reply; the first one stays."""
        if self._file is None:
            with self._lock:
                self._kept.setdefault(asked, reply)
            return
        with closing(self._connect()) as base, base:
            base.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (asked, reply))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(str(self._file), timeout=30)


class Client:
    """Speaks to one model."""

    def __init__(self, settings: EndpointSettings) -> None:
        if find_spec("httpx") is None:
            raise MissingExtraError("httpx", "judge")
        import httpx  # an optional package, and slow to import

        self._settings = settings
        self._http = httpx.Client(timeout=settings.timeout_s)  # one for all: each makes a TLS context of its own
        atexit.register(self._http.close)
        self.replies = Replies(settings.cache)

    def key(self, messages: Sequence[Mapping[str, str]], seed: int) -> str:
        """Return the hash of everything that a reply depends on."""
        asked = [self._settings.url, self._body(messages, seed)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def complete(self, messages: Sequence[Mapping[str, str]], seed: int) -> str:
        """Return the text of the model's reply, from the endpoint; the empty text if it filtered its own reply away.

        Raises:
            RefusedError: this request is refused, and trying again is no use.
            EndpointError: the endpoint did not answer, after every retry, or answers nobody.
        """
        settings = self._settings
        retrying = Retrying(
            stop=stop_after_attempt(settings.retries + 1),
            wait=wait_random_exponential(multiplier=settings.retry_wait_s, max=60),
            retry=retry_if_exception_type(_BusyError),
            reraise=True,
        )
        return retrying(self._post, self._body(messages, seed))

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "messages": [dict(one) for one in messages],
            "temperature": 0,
            "max_tokens": self._settings.max_tokens,
            "seed": seed,
        }

    def _post(self, body: Mapping[str, Any]) -> str:
        import httpx

        try:
            url = f"{self._settings.url.rstrip('/')}/chat/completions"
            found = self._http.post(url, json=body, headers=self._headers())
        except httpx.HTTPError as error:
            raise _BusyError(f"the model's endpoint does not answer: {type(error).__name__}: {error}") from error
        if found.status_code in _BUSY or found.status_code >= 500:
            raise _BusyError(f"the model's endpoint answers with status {found.status_code}")
        if found.status_code in _REFUSED:
            raise RefusedError(f"status {found.status_code}")
        if found.status_code != 200:
            raise EndpointError(
                f"the model's endpoint answers with status {found.status_code}; check url, model and key"
            )
        return _text(found.content)

    def _headers(self) -> dict[str, str]:
        name = self._settings.api_key_variable
        if name is None:
            return {}
        if not os.environ.get(name):
            raise EndpointError(f"the model's key is wanted in the environment variable {name}, which is empty")
        return {"Authorization": f"Bearer {os.environ[name]}"}


def _text(content: bytes) -> str:
    try:
        if len(content) > _MAX_REPLY:
            raise ValueError("too long")
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
        if text is None or choice.get("finish_reason") == "content_filter":
            return ""
        if not isinstance(text, str):
            raise TypeError("not a text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _BusyError(f"the model's endpoint answers with something else than a chat completion: {error}") from error
    return text
