"""One client's claim on a sandbox server: kept up by a thread, used for numbered calls that run at most once."""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
from typing import Any

from agentgym.errors import SandboxError
from agentgym_sandboxes.remote_http import Http, LeaseLostError
from agentgym_sandboxes.remote_wire import ABANDONED_HEADER, DONE_HEADER, LEASE_HEADER, pack, raised, unpack

logger = logging.getLogger(__name__)

_WAIT_S = 20.0
"""For how long an answer is waited for in one request: short enough for the proxies between."""
_SETTLED_AT_ONCE = 200
_JOIN_S = 2.0


class Lease:
    """Begins at once; safe to use from many threads.

    A call has a number. Its request may be repeated, because the server runs a number once and keeps the answer until
    it hears, with a later request, that the answer arrived or that nobody wants it any more.
    """

    def __init__(self, http: Http, lease_s: float, body_bytes: int) -> None:
        """Begin.

        Args:
            http: the server.
            lease_s: after how many seconds of silence the server ends a lease.
            body_bytes: how many bytes it takes in one request.

        Raises:
            SandboxError: it refuses, or is out of reach.
        """
        self.lost: str | None = None
        """Why nothing of it is there any more."""
        self._http = http
        self._rhythm_s = lease_s / 3
        self._body_bytes = body_bytes
        self._key = secrets.token_hex(32)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._done: list[int] = []
        self._abandoned: list[int] = []
        self._over = threading.Event()
        http.request("PUT", "/v1/lease", headers={LEASE_HEADER: self._key})
        self._keeper = threading.Thread(target=self._keep, name="agentgym-lease", daemon=True)
        self._keeper.start()

    def call(self, name: str, **arguments: Any) -> Any:
        """Let the server do something once, and return its answer.

        Raises:
            LeaseLostError: the server holds nothing of this client any more.
            ValueError: the arguments are larger than the server takes.
            Exception: what the call raised there.
        """
        if self.lost is not None:
            raise LeaseLostError(self.lost)
        body = pack({"call": name, **arguments})
        if len(body) > self._body_bytes:
            raise ValueError(
                f"{name} would send {len(body)} bytes, more than the {self._body_bytes} that the sandbox server takes "
                "at once; send less, or serve with a larger limit body_mb"
            )
        with self._lock:
            number = next(self._numbers)
        try:
            response = self._send("POST", f"/v1/calls/{number}", _WAIT_S, body)
            while response.status_code == 202:
                response = self._send("GET", f"/v1/calls/{number}", _WAIT_S)
            answer = unpack(response.content)
        except BaseException:
            with self._lock:
                self._abandoned.append(number)
            raise
        with self._lock:
            self._done.append(number)
        if "error" in answer:
            raise raised(answer["error"])
        return answer["value"]

    def end(self, why: str) -> None:
        """Let the server end all that it holds of this client.

        Raises:
            SandboxError: the server is out of reach.
        """
        if self.lost is None:
            self.lost = why
            try:
                self._http.request("DELETE", "/v1/lease", headers={LEASE_HEADER: self._key})
            except LeaseLostError as error:
                logger.info("the lease was over before it was ended: %s", error)
        self._over.set()
        self._keeper.join(_JOIN_S)

    def _send(self, method: str, path: str, wait: float, body: bytes = b"") -> Any:
        with self._lock:
            done, abandoned = self._done[:_SETTLED_AT_ONCE], self._abandoned[:_SETTLED_AT_ONCE]
        headers = {LEASE_HEADER: self._key}
        if done:
            headers[DONE_HEADER] = ",".join(map(str, done))
        if abandoned:
            headers[ABANDONED_HEADER] = ",".join(map(str, abandoned))
        try:
            response = self._http.request(method, path, wait=wait, headers=headers, body=body)
        except LeaseLostError as error:
            self.lost = self.lost or str(error)
            self._over.set()
            raise
        if done or abandoned:
            told = set(done) | set(abandoned)
            with self._lock:
                self._done = [number for number in self._done if number not in told]
                self._abandoned = [number for number in self._abandoned if number not in told]
        return response

    def _keep(self) -> None:
        """Show the server that this process lives; the connection alone does, and its end is noticed at once."""
        while not self._over.is_set():
            try:
                self._send("POST", "/v1/lease", self._rhythm_s)
            except LeaseLostError as error:
                if self.lost == str(error):
                    logger.warning("the sandboxes on %s are gone: %s", self._http.url, error)
                return
            except SandboxError as error:
                logger.info("the lease on %s could not be renewed yet: %s", self._http.url, error)
                self._over.wait(1.0)
