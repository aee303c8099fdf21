"""Connect to a host that a rule permits: resolve its name once, check every address, connect to the one checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from agentgym_sandboxes._allowlist_rules import Address, Rule, address_of, is_ours, is_public

Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""Returns the addresses of a name; OSError if it has none."""
_MOST_TRIED = 4
_RESOLVERS = 8


class Refused(Exception):  # noqa: N818 -- an answer, and no error of ours
    """The proxy's answer to a request that it does not carry out."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class SystemResolver:
    """Asks this machine's own resolver, in threads of its own."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def __call__(self, name: str) -> Sequence[Address]:
        """Return the addresses of a name."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_RESOLVERS, "agentgym-resolver")
        ask = asyncio.get_running_loop().run_in_executor
        # With the last dot the name is whole: no search domain of this machine's is tried.
        answers = await ask(self._threads, lambda: socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM))
        found = [address_of(str(answer[4][0]).partition("%")[0]) for answer in answers]
        return [one for one in dict.fromkeys(found) if one is not None]

    def close(self) -> None:
        """End the threads; nobody may be asking."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


async def dial(
    rule: Rule, host: str, port: int, resolve: Resolve, patience_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a host.

    Raises:
        Refused: it cannot be reached, or only at an address that is not public.
    """
    try:
        async with asyncio.timeout(patience_s):
            return await _connect(await _addresses(rule, host, resolve), host, port)
    except TimeoutError:
        raise Refused(HTTPStatus.GATEWAY_TIMEOUT, f"{host}:{port} did not answer within {patience_s:g} s") from None


async def _addresses(rule: Rule, host: str, resolve: Resolve) -> Sequence[Address]:
    if rule.address is not None:
        return [rule.address]
    try:
        found = await resolve(host)
    except OSError as error:
        raise Refused(HTTPStatus.BAD_GATEWAY, f"{host} cannot be resolved: {error.strerror or error}") from error
    public = [one for one in found if is_public(one) and not is_ours(one)]
    if not public:
        named = ", ".join(map(str, found[:_MOST_TRIED])) or "no address"
        raise Refused(HTTPStatus.FORBIDDEN, f"{host} leads to {named}, which is not of the public internet")
    return public[:_MOST_TRIED]


async def _connect(
    addresses: Sequence[Address], host: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reasons = []
    for address in addresses:
        try:
            return await asyncio.open_connection(str(address), port, flags=socket.AI_NUMERICHOST)
        except OSError as error:
            reasons.append(str(error.strerror or error))
    raise Refused(HTTPStatus.BAD_GATEWAY, f"{host}:{port} cannot be reached: {'; '.join(dict.fromkeys(reasons))}")
