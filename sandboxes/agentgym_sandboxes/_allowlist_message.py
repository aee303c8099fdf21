"""What a request to the proxy means, read so that nobody could read it otherwise; and the proxy's own answers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import h11

from agentgym_sandboxes._allowlist_rules import host_of

_AUTHORITY = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/?#@\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
_HOST_PORT = re.compile(_AUTHORITY)
_ABSOLUTE = re.compile(rf"http://{_AUTHORITY}(?P<path>/[^#]*|\?[^#]*)?", re.IGNORECASE)
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade".split()
)
_HTTP_PORT = 80


class Ambiguous(ValueError):  # noqa: N818 -- a request, and no error of ours
    """Two readers could take a request for different ones; `host` and `port` as far as they are clear."""

    def __init__(self, why: str, host: str = "", port: int = 0) -> None:
        super().__init__(why)
        self.host, self.port = host, port


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request is to go."""

    host: str
    port: int
    path: str
    """Of a plain HTTP request."""


def target_of(request: h11.Request) -> Target:
    """Return where a request is to go.

    Raises:
        Ambiguous: it does not say, or says it twice and differently.
    """
    text = request.target.decode("ascii")
    is_connect = request.method == b"CONNECT"
    found = (_HOST_PORT if is_connect else _ABSOLUTE).fullmatch(text)
    if found is None or (is_connect and found["port"] is None):
        wanted = "host:port" if is_connect else "http://host/path; for https use CONNECT"
        raise Ambiguous(f"{text[:200]!r} is not of the form {wanted}")
    host, port = host_of(found["host"]), int(found["port"] or _HTTP_PORT)
    if host is None or not 0 < port < 1 << 16:
        raise Ambiguous(f"{found['host'][:200]!r} is neither a name nor an address in its usual form")
    for name, value in request.headers:
        if name == b"host" and not _names(value, host, port, port if is_connect else _HTTP_PORT):
            raise Ambiguous(f"the Host header {value[:200]!r} is not {host}:{port}", host, port)
    if {b"transfer-encoding", b"content-length"} <= {name for name, _ in request.headers}:
        raise Ambiguous("both Transfer-Encoding and Content-Length are given", host, port)
    path = "" if is_connect else found["path"] or "/"
    return Target(host, port, f"/{path}" if path.startswith("?") else path)


def end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse) -> list[tuple[bytes, bytes]]:
    """Return the headers that concern more than one connection, spelled as they came."""
    headers = message.headers.raw_items()
    named = {
        word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")
    }
    # Framing and the host are not an agent's to strike out.
    dropped = _HOP_BY_HOP | (named - {b"host", b"content-length", b"transfer-encoding"})
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def refusal(status: HTTPStatus, why: str, *, has_body: bool) -> bytes:
    """Return the proxy's own answer; the reason is in its first line too, which is all that some clients show."""
    line = "".join(one if one.isascii() and one.isprintable() else "?" for one in why)
    body = f"agentgym: {line}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {line}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if has_body else b"")


def _names(header: bytes, host: str, port: int, default: int) -> bool:
    said = _HOST_PORT.fullmatch(header.decode("latin-1"))
    return said is not None and host_of(said["host"]) == host and int(said["port"] or default) == port
