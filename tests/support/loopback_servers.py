"""Servers on this machine's loopback that tests reach through a sandbox's proxy: HTTP, TLS and raw bytes."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAYLOAD = bytes(range(256)) * 40960
"""10 MB."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        files = self.server.files  # type: ignore[attr-defined]
        self._answer(files.get(self.path) or f"{self.path} for {self.headers['Host']}".encode())

    def do_HEAD(self) -> None:
        self._answer(b"12345", with_body=False)

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode())

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _answer(self, body: bytes, *, with_body: bool = True) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html")
        self.send_header("X-Other", "kept")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass  # the tests' output is not the place


class Server(ThreadingHTTPServer):
    """Remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.files = {"/big": PAYLOAD}
        self._context = context

    def get_request(self) -> tuple[socket.socket, object]:
        found, address = super().get_request()
        # The handshake belongs to the connection's own thread.
        context = self._context
        return (
            context.wrap_socket(found, server_side=True, do_handshake_on_connect=False) if context else found
        ), address

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is what some tests are about


@contextlib.contextmanager
def http_server(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve HTTP, or HTTPS with a context."""
    with Server(context) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve every connection in a thread of its own by a function; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def run(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                handle(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connections.append(connection)
                    threading.Thread(target=run, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def certificates(folder: Path, name: str) -> tuple[bytes, ssl.SSLContext]:
    """Make an authority and a certificate of its own for a name; return the authority's and the server's context."""
    ca = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Test authority"]
    _openssl(folder, "req", *ca, "-keyout", "ca.key", "-out", "ca.pem")
    _openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", "key", "-out", "csr")
    (folder / "ext").write_text(f"subjectAltName=DNS:{name}\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext"]
    _openssl(folder, "x509", "-req", "-in", "csr", *signing, "-out", "cert")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert", folder / "key")
    return (folder / "ca.pem").read_bytes(), context


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)
