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
import select
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from agentgym_sandboxes._compile import BuildError
from agentgym_sandboxes._proxy_rules import INFO, LABEL, Call, Refusal, Verdict, judge
from agentgym_sandboxes._proxy_upstream import SupervisorKeeper, Upstream, request_head

logger = logging.getLogger(__name__)

_HEAD_LIMIT = 1 << 16
_BODY_LIMIT = 8 << 20
_CHUNK = 1 << 16
_PATIENCE_S = 60
_LOOK_S = 0.5


class SocketProxy:
    """Serves one request per connection, so that nothing can hide behind a request that passed."""

    def __init__(self, upstream: str) -> None:
        self._upstream = Upstream(upstream)
        self._supervisor = SupervisorKeeper(self._upstream)
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
            if verdict.makes is not None:
                await self._supervisor.require(verdict.makes)
            logger.info("passed %s %s", method, verdict.call.path)
            if verdict.call.path == INFO:
                writer.write(_answer(200, await self._supervisor.info()))
            else:
                upgrade = headers.get("upgrade", "").lower() == "tcp"
                await self._forward(verdict.call, upgrade, reader, writer)
        except Refusal as refusal:
            logger.warning("refused: %s", refusal)
            writer.write(_answer(403, {"message": f"the socket proxy refuses: {refusal}"}))
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError, BuildError) as error:
            reason = str(error) or type(error).__name__
            writer.write(_answer(502, {"message": f"the socket proxy cannot pass the call on: {reason}"}))
        finally:
            with suppress(OSError):
                await writer.drain()
            writer.close()

    async def _require_owned(self, verdict: Verdict) -> None:
        container = verdict.id
        if verdict.owned == "exec":
            container = (await self._upstream.get(f"/exec/{verdict.id}/json")).get("ContainerID", "")
        if verdict.owned and container:
            found = await self._upstream.get(f"/containers/{container}/json")
            labels = found.get("Config", {}).get("Labels") or {}
            if found and LABEL not in labels:
                raise Refusal(f"container {container} was not created through it")

    async def _forward(
        self, call: Call, upgrade: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        from_docker, to_docker = await self._upstream.connect()
        helpers: list[asyncio.Task[None]] = []
        try:
            to_docker.write(request_head(call.method, call.target, len(call.body), upgrade=upgrade) + call.body)
            head = await from_docker.readuntil(b"\r\n\r\n")
            writer.write(head)
            download = asyncio.create_task(_copy(from_docker, writer))
            helpers.append(download)
            if head.split()[1] == b"101":  # only now is what the caller sends a command's input and not a new request
                upload = asyncio.create_task(_upload(reader, to_docker, writer))
                helpers.append(upload)
                await asyncio.wait(helpers, return_when=asyncio.FIRST_COMPLETED)
            else:
                if upgrade:
                    to_docker.write_eof()  # or Docker would keep the connection for a next request
                await download
        finally:
            for task in helpers:
                task.cancel()
            to_docker.close()


async def _upload(reader: asyncio.StreamReader, to_docker: asyncio.StreamWriter, caller: asyncio.StreamWriter) -> None:
    """Pass on what the caller sends; return once it hung up, which is more than having no more to send."""
    await _copy(reader, to_docker)
    poller = select.poll()
    if not caller.is_closing():
        poller.register(caller.get_extra_info("socket").fileno(), 0)
    # asyncio tells of the end of input only, and not of a hang-up.
    while not caller.is_closing() and not poller.poll(0):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


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


def _answer(status: int, content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


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
