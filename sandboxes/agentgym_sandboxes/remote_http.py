"""Requests to a sandbox server, repeated as long as that may help; every one of them is safe to repeat."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from typing import Any

import tenacity

from agentgym.errors import MissingExtraError, SandboxError
from agentgym_sandboxes.remote_lease import Settled
from agentgym_sandboxes.remote_wire import (
    ABANDONED_HEADER,
    DONE_HEADER,
    LEASE_HEADER,
    PROTOCOL,
    PROTOCOL_HEADER,
    LeaseLostError,
    raised,
)

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("httpx", "remote") from error

logger = logging.getLogger(__name__)

_CONNECT_S = 5.0
_WRITE_S = 30.0
_ANSWER_S = 35.0
"""How long a server may take to answer beyond what it was asked to wait."""
_BUSY_S = 120.0
_BUSY = frozenset((408, 502, 503, 504))
_GONE = 410
_NOT_YET = 202


class _BusyError(SandboxError):
    """The server, or a proxy before it, wants to be asked again."""


class Http:
    """One server, reached by many threads over kept connections."""

    def __init__(self, url: str, token: str, patience_s: float) -> None:
        """Prepare, without speaking to the server yet.

        Args:
            url: where the server is, such as `http://127.0.0.1:8765`.
            token: the server's.
            patience_s: for how long a server that was reached before may be out of reach.

        Raises:
            SandboxError: the URL or the token is none.
        """
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._pid = os.getpid()
        # A server that never answered is not waited for: the address or the server is wrong, and waiting mends neither.
        self._is_up = False
        self._is_closed = False
        where = _parsed(self.url)
        if not token.isascii() or not token.isprintable() or not token:
            raise SandboxError("the token for the sandbox server must be printable ASCII characters")
        is_near = _is_loopback(where.host)
        if where.scheme == "http" and not is_near:
            logger.warning("the token and all data go to %s unencrypted; an SSH tunnel or https would hide them", url)
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", PROTOCOL_HEADER: str(PROTOCOL)},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=128),
            trust_env=not is_near,  # a proxy for the world is none for this machine
        )

    def request(
        self, method: str, path: str, *, wait: float = 0.0, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> httpx.Response:
        """Return the answer to a request, be it 200 or 202.

        Raises:
            LeaseLostError: the server does not know the client.
            Exception: the refusal, as the server meant it.
            SandboxError: the server is out of reach, or is none of ours.
        """
        if os.getpid() != self._pid:
            raise SandboxError("a remote sandbox backend cannot be used after a fork; make one in each process")
        asked = self._client.build_request(
            method,
            path,
            params={"wait": f"{wait:.3f}"} if wait else None,
            headers=dict(headers or {}),
            content=body if method == "POST" else None,
            timeout=httpx.Timeout(_ANSWER_S + wait, connect=_CONNECT_S, write=_WRITE_S),
        )
        repeated = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _BusyError)),
            stop=self._is_hopeless,
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        try:
            response: httpx.Response = repeated(self._send, asked)
        except httpx.TransportError as error:
            self._is_up = False
            reason = str(error) or type(error).__name__
            raise SandboxError(
                f"the sandbox server at {self.url} cannot be reached ({reason}); is `agentgym sandbox serve` running "
                "there?"
            ) from error
        return response

    def close(self) -> None:
        """Close the connections."""
        self._is_closed = True
        self._client.close()

    def _send(self, asked: httpx.Request) -> httpx.Response:
        if self._is_closed:
            raise SandboxError(f"the connection to the sandbox server at {self.url} was closed")
        response = self._client.send(asked)
        self._is_up = True
        if response.status_code in (200, _NOT_YET):
            return response
        refusal = self._refusal(response)
        if response.status_code == _GONE:
            raise LeaseLostError(str(refusal)) from refusal
        if response.status_code in _BUSY:
            raise _BusyError(str(refusal)) from refusal
        raise refusal

    def _is_hopeless(self, state: tenacity.RetryCallState) -> bool:
        failure = state.outcome.exception() if state.outcome else None
        patience = _BUSY_S if isinstance(failure, _BusyError) else self._patience_s if self._is_up else 0.0
        return (state.seconds_since_start or 0.0) >= patience

    def _refusal(self, response: httpx.Response) -> Exception:
        try:
            described: dict[str, Any] = response.json()["error"]
            return raised(described)
        except (ValueError, KeyError, TypeError):
            return SandboxError(
                f"{self.url} answers with HTTP status {response.status_code}, as no sandbox server of ours does; is it "
                "the right address?"
            )


class HttpLine:
    """A lease's way to a server; see `remote_lease.Line`. Its connection alone shows that this process lives."""

    def __init__(self, http: Http) -> None:
        self.where = f"the sandbox server at {http.url}"
        self._http = http

    def begin(self, key: str) -> None:
        """Begin a lease."""
        self._http.request("PUT", "/v1/lease", headers={LEASE_HEADER: key})

    def call(self, key: str, number: int, body: bytes | None, wait: float, settled: Settled) -> bytes | None:
        """Return the answer to a call once it is there."""
        method, path = "GET" if body is None else "POST", f"/v1/calls/{number}"
        response = self._http.request(method, path, wait=wait, headers=_headers(key, settled), body=body or b"")
        return None if response.status_code == _NOT_YET else response.content

    def keep(self, key: str, wait: float, settled: Settled) -> None:
        """Hold a connection open."""
        self._http.request("POST", "/v1/lease", wait=wait, headers=_headers(key, settled))

    def end(self, key: str) -> None:
        """End the lease."""
        self._http.request("DELETE", "/v1/lease", headers={LEASE_HEADER: key})


def _headers(key: str, settled: Settled) -> dict[str, str]:
    headers = {LEASE_HEADER: key}
    if settled.done:
        headers[DONE_HEADER] = ",".join(map(str, settled.done))
    if settled.abandoned:
        headers[ABANDONED_HEADER] = ",".join(map(str, settled.abandoned))
    return headers


def _parsed(url: str) -> httpx.URL:
    try:
        where = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SandboxError(f"wanted the URL of a sandbox server like http://127.0.0.1:8765, found {url!r}") from error
    if where.scheme not in ("http", "https") or not where.host or where.userinfo:
        raise SandboxError(f"wanted the URL of a sandbox server like http://127.0.0.1:8765, found {url!r}")
    return where


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
