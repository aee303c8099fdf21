"""What travels between a sandbox elsewhere and its client: MessagePack, so that bytes stay bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agentgym.errors import AgentFault, CapabilityError, InfrastructureError, MissingExtraError, SandboxError, TaskError
from agentgym.sandbox import ExecResult

try:
    import msgpack
except ImportError as error:
    raise MissingExtraError("msgpack", "remote") from error

logger = logging.getLogger(__name__)

PROTOCOL = 1
"""Raised whenever a client and a server of different releases would misunderstand one another."""
PROTOCOL_HEADER = "Agentgym-Protocol"
LEASE_HEADER = "Agentgym-Lease"
DONE_HEADER = "Agentgym-Done"
"""Numbers of calls whose answers arrived: the server may forget them."""
ABANDONED_HEADER = "Agentgym-Abandoned"
"""Numbers of calls whose answers nobody waits for: what they started must end."""
CONTENT_TYPE = "application/msgpack"


class LeaseLostError(SandboxError):
    """The other side holds nothing of this client any more."""


class NoRoomError(SandboxError):
    """No sandbox can start there now; another place may have room, or this one later."""


_CARRIED: dict[str, type[Exception]] = {
    one.__name__: one
    for one in (
        NoRoomError,
        SandboxError,
        InfrastructureError,
        AgentFault,
        CapabilityError,
        TaskError,
        FileNotFoundError,
        TimeoutError,
        OSError,
        KeyError,
        ValueError,
    )
}
"""What a sandbox may raise; anything else is a bug of the server or its backend."""


def pack(value: Any) -> bytes:
    r"""Return a value of plain types as bytes; strings may hold what Unicode forbids, as paths and commands can.

    >>> unpack(pack({"data": b"\xff\x00", "text": "\udcff", "many": [1, None, 2.5]}))
    {'data': b'\xff\x00', 'text': '\udcff', 'many': [1, None, 2.5]}
    """
    packed: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return packed


def unpack(data: bytes) -> Any:
    """Read what `pack` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        return msgpack.unpackb(data, unicode_errors="surrogatepass")
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"this is not one MessagePack value: {error}") from error


def pack_result(result: ExecResult) -> dict[str, Any]:
    """Return a command's result as plain types."""
    return asdict(result)


def describe(failure: Exception) -> dict[str, Any]:
    """Return an exception as plain types: what a sandbox may raise as itself, and the rest as a `SandboxError`.

    >>> raised(describe(FileNotFoundError(2, "no such file in the sandbox", "a/b")))
    FileNotFoundError(2, 'no such file in the sandbox')
    >>> raised(describe(ZeroDivisionError("division by zero")))
    SandboxError('the sandbox server failed: ZeroDivisionError: division by zero')
    """
    name = next((one.__name__ for one in type(failure).mro() if one.__name__ in _CARRIED), None)
    if name is None:
        logger.error("a call failed in an unforeseen way", exc_info=failure)
        sentence = f"the sandbox server failed: {type(failure).__name__}: {failure}"
        return {"type": "SandboxError", "arguments": [sentence]}
    if isinstance(failure, OSError) and failure.errno is not None:
        about = [] if failure.filename is None else [str(failure.filename)]
        return {"type": name, "arguments": [failure.errno, failure.strerror, *about]}
    if isinstance(failure, KeyError) and failure.args:
        return {"type": name, "arguments": [str(failure.args[0])]}
    return {"type": name, "arguments": [str(failure)]}


def raised(described: Mapping[str, Any]) -> Exception:
    """Return the exception that `describe` told of."""
    kind = _CARRIED.get(described["type"])
    if kind is None:
        return SandboxError(f"the sandbox server failed: {described['type']}: {described['arguments']}")
    return kind(*described["arguments"])
