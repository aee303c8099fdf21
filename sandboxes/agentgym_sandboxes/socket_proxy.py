"""Pass on to Docker's socket what sandboxes need, and nothing else: python -m agentgym_sandboxes.socket_proxy --help.

Whoever may speak to Docker's own socket is root on its machine. Through this proxy one may create hardened containers
and use those, and cannot mount the host, gain privileges, or touch anybody else's containers. Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentgym_sandboxes._proxy_rules import LABEL, Call, Refusal, Verdict, judge

logger = logging.getLogger(__name__)

_HEAD_LIMIT = 1 << 16
_BODY_LIMIT = 8 << 20
_CHUNK = 1 << 16
_PATIENCE_S = 60


class SocketProxy:
    """Serves one request per connection, so that nothing can hide behind a request that passed."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._at_work: set[asyncio.Task[None]] = set()  # asyncio itself would let them be collected while they wait

    async def serve(self, listen: str) -> None:
        """Listen on a socket until cancelled."""
        server = await asyncio.start_unix_server(self._accept, listen, limit=_HEAD_LIMIT)
        os.chmod(listen, 0o666)  # noqa: PTH101 - the folder around it says who may come
        async with server:
            await server.serve_forever()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, target, headers, body = await asyncio.wait_for(_request(reader), _PATIENCE_S)
            verdict = judge(Call.parse(method, target, body))
            await self._require_owned(verdict)
            call = verdict.call
            logger.info("passed %s %s", method, call.path)
            upgrade = headers.get("upgrade", "").lower() == "tcp"
            await self._forward(call, upgrade, reader, writer)
        except Refusal as refusal:
            logger.warning("refused: %s", refusal)
            writer.write(_answer(403, f"the socket proxy refuses: {refusal}"))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
            writer.write(_answer(502, f"the socket proxy cannot pass the call on: {error or type(error).__name__}"))
        finally:
            with suppress(OSError):
                await writer.drain()
            writer.close()

    async def _require_owned(self, verdict: Verdict) -> None:
        container = verdict.id
        if verdict.owned == "exec":
            container = (await self._get(f"/exec/{verdict.id}/json")).get("ContainerID", "")
        if verdict.owned and container:
            found = await self._get(f"/containers/{container}/json")
            labels = found.get("Config", {}).get("Labels") or {}
            if found and LABEL not in labels:
                raise Refusal(f"container {container} was not created through it")

    async def _get(self, path: str) -> dict[str, Any]:
        """Ask Docker itself; an empty answer if there is no such thing, which Docker then says to the caller too."""
        reader, writer = await asyncio.open_unix_connection(self._upstream)
        try:
            writer.write(_head("GET", path, b"", upgrade=False))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            status = int(head.split()[1])
            if status == 404:
                return {}
            if status != 200:
                raise ValueError(f"Docker answered {status} to GET {path}")
            found: dict[str, Any] = json.loads(_dechunked(head, body))
            return found
        finally:
            writer.close()

    async def _forward(
        self, call: Call, upgrade: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        from_docker, to_docker = await asyncio.open_unix_connection(self._upstream)
        upload: asyncio.Task[None] | None = None
        try:
            to_docker.write(_head(call.method, call.target, call.body, upgrade))
            head = await from_docker.readuntil(b"\r\n\r\n")
            writer.write(head)
            if head.split()[1] == b"101":  # only now is what the caller sends a command's input and not a new request
                upload = asyncio.create_task(_copy(reader, to_docker))
            elif upgrade:
                to_docker.write_eof()  # or Docker would keep the connection for a next request
            await _copy(from_docker, writer)
        finally:
            if upload is not None:
                upload.cancel()
            to_docker.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    first, *lines = head.split("\r\n")
    method, target, version = first.split(" ")
    headers = {}
    for line in filter(None, lines):
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or name.lower() in headers:
            raise Refusal(f"the header {line[:40]!r} is malformed or there twice")
        headers[name.lower()] = value.strip()
    if not version.startswith("HTTP/1.") or not target.startswith("/") or "transfer-encoding" in headers:
        raise Refusal("it understands plain HTTP/1 requests with a Content-Length only")
    size = int(headers.get("content-length", "0"))
    if not 0 <= size <= _BODY_LIMIT:
        raise Refusal(f"a body of {size} bytes is more than the {_BODY_LIMIT} it reads")
    return method, target, headers, await reader.readexactly(size)


def _head(method: str, target: str, body: bytes, upgrade: bool) -> bytes:
    """Write the request anew, so that nothing of the caller's headers but what is listed here gets through."""
    connection = "Connection: Upgrade\r\nUpgrade: tcp" if upgrade else "Connection: close"
    lines = f"{method} {target} HTTP/1.1\r\nHost: docker\r\n{connection}\r\n"
    return f"{lines}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _answer(status: int, message: str) -> bytes:
    body = json.dumps({"message": message}).encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _dechunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


def main() -> None:
    """Run the proxy from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--listen", required=True, metavar="SOCKET", help="where callers connect, such as /run/p/docker.sock"
    )
    parser.add_argument("--upstream", default="/var/run/docker.sock", metavar="SOCKET", help="Docker's own socket")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    Path(given.listen).unlink(missing_ok=True)
    with suppress(KeyboardInterrupt):
        asyncio.run(SocketProxy(given.upstream).serve(given.listen))


if __name__ == "__main__":
    main()
