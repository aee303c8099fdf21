"""The socket proxy's own calls to Docker: what it looks up before it decides, and the supervisor that it hands out."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from typing import Any
from urllib.parse import quote, urlencode

from agentgym_sandboxes import _compile
from agentgym_sandboxes._proxy_rules import GIVEN, INFO, MOUNT, NewContainer, Refusal, reduced

_PATIENCE_S = 60
_PROGRAM = "supervisor"


class Upstream:
    """Docker itself; one connection for each call."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to Docker's socket."""
        return await asyncio.open_unix_connection(self._path)

    async def get(self, path: str) -> dict[str, Any]:
        """Ask for an object; an empty one if there is no such thing, which Docker then says to the caller too."""
        status, body = await self.call("GET", path)
        if status == 404:
            return {}
        found: dict[str, Any] = json.loads(_good(status, body, f"GET {path}"))
        return found

    async def call(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """Return the status and the body of the answer."""
        return await asyncio.wait_for(self._call(method, path, body, kind), _PATIENCE_S)

    async def _call(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        reader, writer = await self.connect()
        try:
            writer.write(request_head(method, path, len(body), kind=kind) + body)
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            return int(head.split()[1]), _dechunked(head, answer)
        finally:
            writer.close()


class SupervisorKeeper:
    """Keeps the supervisor's volume filled, so that no caller need be trusted with what runs first in a sandbox."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._lock = asyncio.Lock()
        self._machine = self._ours = ""
        self._is_given = False
        self._filled: str | None = None

    async def info(self) -> dict[str, Any]:
        """Return what callers may know of Docker, and the volume that this proxy hands out.

        Raises:
            BuildError: there can be no supervisor for the daemon's machine type.
        """
        found = await self._upstream.get(INFO)
        self._machine = _compile.machine_of(found.get("Architecture"))
        name = f"agentgym-{_compile.file_name(self._machine)}"
        self._is_given = found.get(GIVEN) == name  # a proxy before this one hands it out
        return {**reduced(found), GIVEN: name}

    async def require(self, new: NewContainer) -> None:
        """Fill the volume that a new container needs, if nobody did or somebody removed it since.

        Raises:
            Refusal: it is not the one that this proxy has the program for.
            BuildError: there is no program, and no compiler to make it.
        """
        if not self._ours:
            self._ours = (await self.info())[GIVEN]
        ours = self._ours
        if new.volume != ours:
            raise Refusal(f"it hands out the supervisor {ours}, not {new.volume}: use the same version")
        if self._is_given:
            return
        async with self._lock:
            made = await self._made_at(ours)
            if made is not None and made == self._filled:
                return
            if not await self._upstream.get(f"/images/{quote(new.image, safe='/:@')}/json"):
                return  # Docker will say so to the caller
            await self._fill(ours, new.image, await asyncio.to_thread(_program, self._machine))
            self._filled = await self._made_at(ours)

    async def _made_at(self, volume: str) -> str | None:
        found = await self._upstream.get(f"/volumes/{volume}")
        return found.get("CreatedAt") if "agentgym.supervisor" in (found.get("Labels") or {}) else None

    async def _fill(self, volume: str, image: str, program: bytes) -> None:
        """Write the program into the volume through a container that is never started; any image serves for it."""
        await self._post("/volumes/create", {"Name": volume, "Labels": {"agentgym.supervisor": volume}})
        mount = {"Type": "volume", "Target": MOUNT, "Source": volume, "VolumeOptions": {"NoCopy": True}}
        host = {"Mounts": [mount], "NetworkMode": "none"}
        labels = {"agentgym.helper": "proxy"}  # and not the label that would let callers touch it
        body = {"Image": image, "Cmd": ["never-started"], "HostConfig": host, "Labels": labels}
        helper = json.loads(await self._post("/containers/create", body))["Id"]
        try:
            where = f"/containers/{helper}/archive?{urlencode({'path': MOUNT})}"
            status, answer = await self._upstream.call("PUT", where, _archive(program), "application/x-tar")
            _good(status, answer, "PUT archive")
        finally:
            await self._upstream.call("DELETE", f"/containers/{helper}?force=1")

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        status, answer = await self._upstream.call("POST", path, json.dumps(body).encode())
        return _good(status, answer, f"POST {path}")


def request_head(
    method: str, target: str, length: int, *, kind: str = "application/json", upgrade: bool = False
) -> bytes:
    """Write a request's head anew, so that nothing of a caller's headers but what is listed here gets through."""
    connection = "Connection: Upgrade\r\nUpgrade: tcp" if upgrade else "Connection: close"
    lines = f"{method} {target} HTTP/1.1\r\nHost: docker\r\n{connection}\r\n"
    return f"{lines}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def _good(status: int, body: bytes, what: str) -> bytes:
    if status >= 300:
        raise ValueError(f"Docker answered {status} to {what}: {body[:200].decode(errors='replace').strip()}")
    return body


def _program(machine: str) -> bytes:
    return _compile.program(machine).read_bytes()


def _archive(program: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(_PROGRAM)
        member.size, member.mode = len(program), 0o755
        archive.addfile(member, io.BytesIO(program))
    return buffer.getvalue()


def _dechunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole
