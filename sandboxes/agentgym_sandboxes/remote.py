"""Run in the sandboxes of a server, on this machine or another: see `agentgym sandbox serve`."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from agentgym.errors import SandboxError
from agentgym.sandbox import Capability, SandboxSpec, require
from agentgym_sandboxes.remote_http import Http, HttpLine
from agentgym_sandboxes.remote_lease import Lease
from agentgym_sandboxes.remote_sandbox import RemoteSandbox
from agentgym_sandboxes.remote_wire import LeaseLostError

URL_VARIABLE = "AGENTGYM_SANDBOX_URL"
TOKEN_VARIABLE = "AGENTGYM_SANDBOX_TOKEN"
_DEFAULT_URL = "http://127.0.0.1:8765"


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a server says of itself."""

    backend: str
    capabilities: frozenset[Capability]
    body_bytes: int
    lease_s: float

    @classmethod
    def of(cls, http: Http) -> _Offer:
        answer = http.request("GET", "/v1/backend").json()
        known = frozenset[Capability](get_args(Capability))
        return cls(
            backend=str(answer["backend"]),
            capabilities=known & frozenset(answer["capabilities"]),
            body_bytes=int(answer["body_bytes"]),
            lease_s=float(answer["lease_s"]),
        )


class RemoteBackend:
    """Sandboxes of whatever kind the server lends, with that kind's capabilities.

    If this process dies, its sandboxes end within seconds; if the server cannot hear it, they end with its lease.
    Two backends, be they in one process, cannot reach one another's sandboxes.
    """

    name = "remote"
    capabilities: frozenset[Capability]
    """Those of the server's backend."""

    def __init__(
        self,
        url: str | None = None,
        token_file: str | Path | None = None,
        token: str | None = None,
        patience_s: float = 10.0,
    ) -> None:
        """Prepare, without speaking to the server yet.

        Args:
            url: where the server is; None is AGENTGYM_SANDBOX_URL, or the server's default address on this machine.
            token_file: a file that holds the server's token. A recipe should name this and no token, for it is kept.
            token: the token itself; without both, AGENTGYM_SANDBOX_TOKEN holds it.
            patience_s: for how long a server that was reached before may be out of reach.
        """
        if token is not None and token_file is not None:
            raise ValueError("token and token_file exclude one another; give one of them")
        if not isinstance(token, str | None):
            raise ValueError(f"the token must be text, not {type(token).__name__}; quote it, or give token_file")
        if not patience_s >= 0:
            raise ValueError(f"patience_s must be 0 or more seconds, not {patience_s}")
        self._url = url or os.environ.get(URL_VARIABLE) or _DEFAULT_URL
        self._token, self._token_file = token, token_file
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._http: Http | None = None
        self._lease: Lease | None = None
        self._offer: _Offer | None = None

    def __getattr__(self, name: str) -> Any:
        """Ask the server what it can do, once, when somebody wants to know.

        Raises:
            SandboxError: it is out of reach, or refuses.
        """
        if name != "capabilities":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        return self._offered().capabilities

    def check(self) -> None:
        """Reach the server and let it check its backend.

        Raises:
            SandboxError: what is wrong, there or here, and how to mend it.
        """
        with self._lock:
            self._offer = _Offer.of(self._connected())

    def accept(self, spec: SandboxSpec) -> None:
        """Refuse what a task asks for and the server, or its backend, does not have."""
        self._require(spec)
        self._fresh_call("accept", spec)

    def start(self, spec: SandboxSpec) -> RemoteSandbox:
        """Start a fresh sandbox on the server."""
        self._require(spec)
        lease, started = self._fresh_call("start", spec)
        return RemoteSandbox(lease, started["id"], started["workdir"])

    def fork(self, snapshot: str) -> RemoteSandbox:
        """Start a fresh sandbox with the files of a snapshot."""
        lease = self._leased()
        started: dict[str, Any] = lease.call("fork", snapshot=snapshot)
        return RemoteSandbox(lease, started["id"], started["workdir"])

    def drop(self, snapshot: str) -> None:
        """Free what a snapshot holds."""
        self._leased().call("drop", snapshot=snapshot)

    def close(self) -> None:
        """End every sandbox that this backend started, and free its snapshots."""
        with self._lock:
            lease, self._lease = self._lease, None
            http, self._http = self._http, None
        try:
            if lease is not None:
                lease.end("its backend was closed")
        finally:
            if http is not None:
                http.close()

    def _offered(self) -> _Offer:
        with self._lock:
            if self._offer is None:
                self._offer = _Offer.of(self._connected())
            return self._offer

    def _require(self, spec: SandboxSpec) -> None:
        offer = self._offered()
        require(spec, f"{self.name} {offer.backend}", offer.capabilities)

    def _fresh_call(self, name: str, spec: SandboxSpec) -> tuple[Lease, Any]:
        """Make a call that needs nothing from before, and return the lease to which its answer belongs."""
        asked = spec.model_dump()
        lease = self._leased()
        try:
            return lease, lease.call(name, spec=asked)
        except LeaseLostError:
            # The server ended all that this client had begun there, or did not survive it: nothing can start twice.
            lease = self._leased()
            return lease, lease.call(name, spec=asked)

    def _leased(self) -> Lease:
        with self._lock:
            if self._lease is not None and self._lease.lost is not None:
                self._lease = self._offer = None  # another server may have taken its place
        offer = self._offered()
        with self._lock:
            if self._lease is None:
                self._lease = Lease(HttpLine(self._connected()), offer.lease_s, offer.body_bytes)
            return self._lease

    def _connected(self) -> Http:
        if self._http is None:
            self._http = Http(self._url, self._find_token(), self._patience_s)
        return self._http

    def _find_token(self) -> str:
        if self._token is not None:
            return self._token.strip()
        if self._token_file is not None:
            try:
                return Path(self._token_file).expanduser().read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SandboxError(f"the token file {self._token_file} cannot be read: {error}") from error
        if TOKEN_VARIABLE in os.environ:
            return os.environ[TOKEN_VARIABLE].strip()
        raise SandboxError(
            f"no token for the sandbox server at {self._url}: give token_file, or set {TOKEN_VARIABLE} to the word "
            "that `agentgym sandbox serve` printed or was given"
        )
