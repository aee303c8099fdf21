"""A lease's way to the actor on a node: what Ray says of its end is evidence, and never the agent's doing."""

from __future__ import annotations

import os
import threading
from typing import Any

import tenacity

from agentgym.errors import MissingExtraError, SandboxError
from agentgym_sandboxes.ray_node import Kind
from agentgym_sandboxes.remote_lease import Settled
from agentgym_sandboxes.remote_wire import LeaseLostError
from agentgym_sandboxes.serving.leases import GoneError

try:
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, ObjectLostError, RayError, RayTaskError
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

_ANSWER_S = 60.0
"""How long an actor may take to answer beyond what it was asked to wait."""
_PATIENCE_S = 30.0
"""For how long an actor may be out of reach that is not known to be dead."""


def ask(actor: Any, where: str, method: str, *arguments: Any, wait: float = 0.0) -> Any:
    """Call a method of a node's actor and return its answer; repeated while the actor is out of reach.

    Every method of `Node` may be repeated.

    Raises:
        LeaseLostError: the actor is dead, or does not know the client.
        SandboxError: it refuses, fails, or does not answer.
    """
    repeated = tenacity.Retrying(
        # A result that was lost on its way is fetched again: the call itself has a number and runs once.
        retry=tenacity.retry_if_exception_type((ActorUnavailableError, ObjectLostError)),
        stop=tenacity.stop_after_delay(_PATIENCE_S),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
        reraise=True,
    )
    try:
        return repeated(_asked, actor, method, arguments, wait)
    except GetTimeoutError as error:
        raise SandboxError(f"{where} does not answer within {_ANSWER_S + wait:.0f} s") from error
    except RayTaskError as error:
        raise _meant(error, where) from error
    except RayError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LeaseLostError(f"{where} is lost, and all sandboxes that it held: {reason}") from error


def _asked(actor: Any, method: str, arguments: tuple[Any, ...], wait: float) -> Any:
    try:
        if ray.is_initialized():  # else asking would start a cluster of its own
            return ray.get(getattr(actor, method).remote(*arguments), timeout=_ANSWER_S + wait)
    except SystemExit:  # what `ray.shutdown()` makes of every thread that waits; in the main one it may be a signal's
        if threading.current_thread() is threading.main_thread():
            raise
    raise LeaseLostError("this process has left the Ray cluster, and its sandboxes end with their leases")


def _meant(error: RayTaskError, where: str) -> SandboxError:
    cause = error.cause
    if isinstance(cause, GoneError):
        return LeaseLostError(str(cause))
    if isinstance(cause, SandboxError):
        return cause
    return SandboxError(f"{where} failed: {type(cause).__name__}: {cause}")


class RayLine:
    """See `remote_lease.Line`; what is large travels through Ray's object store."""

    def __init__(self, actor: Any, kind: Kind, where: str) -> None:
        """Prepare.

        Args:
            actor: the node's.
            kind: which of its backends is wanted.
            where: the node, for people.
        """
        self.where = where
        self._actor = actor
        self._kind = kind
        self._pid = os.getpid()

    def begin(self, key: str) -> None:
        """Begin a lease."""
        self._ask("begin", self._kind, key)

    def call(self, key: str, number: int, body: bytes | None, wait: float, settled: Settled) -> bytes | None:
        """Return the answer to a call once it is there."""
        answer: bytes | None = self._ask("call", key, number, body, wait, settled.done, settled.abandoned, wait=wait)
        return answer

    def keep(self, key: str, wait: float, settled: Settled) -> None:
        """Show that this process lives."""
        self._ask("keep", key, wait, settled.done, settled.abandoned, wait=wait)

    def end(self, key: str) -> None:
        """End the lease."""
        self._ask("end", key)

    def _ask(self, method: str, *arguments: Any, wait: float = 0.0) -> Any:
        if os.getpid() != self._pid:
            raise SandboxError("a Ray sandbox backend cannot be used after a fork; make one in each process")
        return ask(self._actor, self.where, method, *arguments, wait=wait)
