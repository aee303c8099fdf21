"""The filtering proxy on its own: what it forwards, what it refuses, and what it withstands. No daemon is needed."""

import asyncio
import hashlib
import http.client
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

pytest.importorskip("h11", reason="the docker extra is not installed")

from loopback_servers import PAYLOAD, Server, http_server, raw_server
from plain_supervisor import PlainSupervisor

from agentgym.errors import CapabilityError, SandboxError
from agentgym_sandboxes._allowlist import Limits, Proxy, Session
from agentgym_sandboxes._allowlist_rules import Address, Rules, host_of, is_ours, is_public

GATEWAY = "172.17.0.1"
METADATA = "169.254.169.254"


class Place:
    """A proxy with its port on this machine's loopback, as programs in a sandbox see it."""

    def __init__(self, session: Session, port: int, supervisor: int) -> None:
        self.session, self.port, self.supervisor = session, port, supervisor

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def say(self, data: bytes, *, then_end: bool = False) -> bytes:
        """Send bytes and return all that is answered."""
        with self.connect() as connection:
            connection.sendall(data)
            if then_end:
                connection.shutdown(socket.SHUT_WR)
            return everything(connection)

    def status(self, data: bytes) -> int:
        return int(self.say(data).split()[1])


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def proxied(
    *allow: str, limits: Limits | None = None, resolve: Callable[[str], Sequence[str]] | None = None
) -> Iterator[Place]:
    async def addresses(name: str) -> list[Address]:
        assert resolve is not None
        return [ip_address(one) for one in resolve(name)]

    with ExitStack() as stack:
        supervisor = stack.enter_context(PlainSupervisor())
        proxy = Proxy(limits, addresses if resolve else None)
        stack.callback(proxy.close)
        port = free_port()
        session = proxy.open(supervisor.link, Rules.parse(allow), "test", port)
        stack.callback(session.close)
        yield Place(session, port, supervisor.process.pid)


@pytest.fixture
def server() -> Iterator[Server]:
    with http_server() as made:
        yield made


@pytest.fixture
def place(server: Server) -> Iterator[Place]:
    with proxied(f"files.test:{server.server_port}=127.0.0.1", "*.example.org", "1.1.1.1") as made:
        yield made


def get(port: int, path: str = "/x", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    lines = [f"{method} http://files.test:{port}{path} HTTP/{version}", f"Host: files.test:{port}", *headers, "", ""]
    return "\r\n".join(lines).encode()


# ---- the list ----


@pytest.mark.parametrize(
    ("allow", "yes", "no"),
    [
        (
            "index.test",
            ["index.test:443", "Index.test.:80"],
            ["index.test:22", "x.index.test:443", "index.test.a:443"],
        ),
        ("*.deb.test", ["a.deb.test:80", "a.b.deb.test:443"], ["deb.test:80", "xdeb.test:80"]),
        ("host.net:8443", ["host.net:8443"], ["host.net:443"]),
        ("bücher.de", ["xn--bcher-kva.de:443"], ["bcher.de:443"]),
        ("127.0.0.1:8080", ["127.0.0.1:8080", "[::ffff:127.0.0.1]:8080"], ["127.0.0.2:8080"]),
        ("[2606:4700::1111]:443", ["[2606:4700:0::1111]:443"], ["[2606:4700::1112]:443"]),
        ("::1", ["[::1]:80"], ["[::2]:80"]),
        ("git.test:22=10.0.0.5", ["git.test:22"], ["git.test:80", "10.0.0.5:22"]),
    ],
)
def test_hosts_are_allowed_by_exact_name_suffix_port_or_address(allow: str, yes: list[str], no: list[str]) -> None:
    rules = Rules.parse([allow])

    def is_allowed(asked: str) -> bool:
        host, _, port = asked.rpartition(":")
        return (name := host_of(host)) is not None and rules.find(name, int(port)) is not None

    assert all(map(is_allowed, yes))
    assert not any(map(is_allowed, no))


NO_HOSTS = [
    "*",
    "*.",
    "http://index.test",
    "index.test/simple",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "1.2.3",
    "host:0",
    "host:65536",
    "user@host",
    "a*.org",
    "*.1.1.1.1",
    "1.1.1.1=2.2.2.2",
    "x=y",
    "x=",
    "fe80::1%eth0",
    "169.254.169.254",
    "meta.test=169.254.169.254",
    "::ffff:169.254.169.254",
    "x=fe80::1",
    "224.0.0.1",
    "x=0.0.0.0",
    "::",
    "ff02::1",
]


@pytest.mark.parametrize("entry", ["", "a b", "x\ny", *NO_HOSTS])
def test_what_is_no_host_or_nobodys_to_reach_is_refused_with_the_entry_named(entry: str) -> None:
    with pytest.raises(CapabilityError, match=re.escape(repr(entry))):
        Rules.parse([entry])


PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.1.2.3",
    "172.17.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "169.254.169.254",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "192.88.99.1",
    "192.0.0.8",
    "::1",
    "::",
    "fe80::1",
    "fd00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:10.0.0.1",
    "::10.0.0.1",
    "2002:0a00:0001::1",
    "2001:0:0a00:1::1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "fd00:ec2::254",
    "2001:db8::1",
    "3fff::1",
    "100::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_off_the_public_internet_counts_as_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_this_machines_own_addresses_are_known() -> None:
    assert is_ours(ip_address("127.0.0.1"))
    assert not is_ours(ip_address("1.1.1.1"))
    assert not is_ours(ip_address("2606:4700::1111"))


# ---- plain HTTP ----


def test_a_request_reaches_the_server_and_its_answer_comes_back(place: Place, server: Server) -> None:
    answer = place.say(
        get(server.server_port, "/a?b=c", "X-Mine: 1", "Proxy-Authorization: secret", "Connection: X-Hop", "X-Hop: 1")
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == f"/a?b=c for files.test:{server.server_port}".encode()
    assert head.startswith(b"HTTP/1.1 200")
    assert b"X-Other: kept" in head
    headers = server.requests[0][2]
    assert headers["X-Mine"] == "1"
    assert not {"Proxy-Authorization", "X-Hop"} & headers.keys()
    assert headers["Connection"] == "close"
    (contact,) = place.session.contacts
    assert (contact.host, contact.port, contact.allowed, contact.reason) == ("files.test", server.server_port, True, "")
    assert len(answer) - 100 < contact.bytes < len(answer) + 500


def test_http_1_0_head_and_a_path_that_is_missing_work(place: Place, server: Server) -> None:
    port = server.server_port
    assert place.say(get(port, version="1.0")).endswith(f"/x for files.test:{port}".encode())
    answer = place.say(get(port, method="HEAD"))
    assert b"content-length: 5" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")
    assert b"/?q for" in place.say(get(port, "?q"))
    assert b"/ for" in place.say(get(port, ""))


def test_ten_megabytes_come_and_go_intact(place: Place, server: Server) -> None:
    wanted = f"{len(PAYLOAD)} {hashlib.sha256(PAYLOAD).hexdigest()}".encode()
    assert place.say(get(server.server_port, "/big")).endswith(b"\r\n\r\n" + PAYLOAD)
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (PAYLOAD[:1], PAYLOAD[1:9999], PAYLOAD[9999:]))
    chunked = get(server.server_port, "/", "Transfer-Encoding: chunked", method="POST") + pieces + b"0\r\n\r\n"
    assert place.say(chunked).endswith(wanted)
    sized = get(server.server_port, "/", f"Content-Length: {len(PAYLOAD)}", method="POST") + PAYLOAD
    assert place.say(sized).endswith(wanted)
    assert sum(one.bytes for one in place.session.contacts) > 3 * len(PAYLOAD)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /path HTTP/1.1\r\nHost: files.test\r\n\r\n", 400),
        (b"GET https://files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400),
        (b"GET ftp://files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400),
        (b"GET http://files.test@evil.net/ HTTP/1.1\r\nHost: evil.net\r\n\r\n", 400),
        (b"GET http://evil.net#@files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\nHost: evil.net\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\nHost: evil.net\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\nA : b\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\nA: b\rX: c\r\n\r\n", 400),
        (b"POST http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\nContent-Length: 4\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\nContent-Length: 4\r\n"
         b"Content-Length: 5\r\n\r\n12345", 400),
        (b"POST http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\n"
         b"Transfer-Encoding: xchunked\r\n\r\n", 400),
        (b"POST http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\n"
         b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET http://files.test:99999/ HTTP/1.1\r\nHost: files.test:99999\r\n\r\n", 400),
        (b"CONNECT files.test HTTP/1.1\r\nHost: files.test\r\n\r\n", 400),
        (b"CONNECT files.test:{port} HTTP/1.1\r\nHost: evil.net\r\n\r\n", 400),
        (b"CONNECT http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET http://files.test:{port}/ HTTP/1.1\r\nHost: files.test:{port}\r\nA: " + b"x" * 70_000, 400),
        (b"CONNECT files.test:80 HTTP/1.1\r\nHost: files.test\r\n\r\n", 403),
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", 403),
        (b"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n", 403),
        (b"GET http://localhost:{port}/ HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", 403),
    ],
)  # fmt: skip
def test_what_is_malformed_ambiguous_or_not_listed_reaches_no_server(
    place: Place, server: Server, request_bytes: bytes, status: int
) -> None:
    assert place.status(request_bytes.replace(b"{port}", str(server.server_port).encode())) == status
    answered = [path for _, path, _ in server.requests]
    assert answered == []
    assert any(not one.allowed for one in place.session.contacts) or status == 400
    assert place.session.contacts


def test_a_request_hidden_behind_another_is_never_sent(place: Place, server: Server) -> None:
    port = server.server_port
    place.say(get(port, "/first") + get(port, "/second"))
    place.say(get(port, "/third", "Content-Length: 5", method="POST") + b"hello" + get(port, "/fourth"))
    assert [path for _, path, _ in server.requests] == ["/first", "/third"]


def test_a_chunk_whose_ends_are_ambiguous_is_not_passed_on_as_it_came() -> None:
    seen = bytearray()

    def record(connection: socket.socket) -> None:
        connection.settimeout(5)
        while not seen.endswith(b"0\r\n\r\n") and (data := connection.recv(65536)):
            seen.extend(data)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with raw_server(record) as port, proxied(f"files.test:{port}=127.0.0.1") as place:
        body = b'3;ext="a"\r\nabc\r\n0\r\nTrailer: GET http://evil/ HTTP/1.1\r\n\r\n'
        assert place.say(get(port, "/", "Transfer-Encoding: chunked", method="POST") + body).endswith(b"ok")
    assert b"ext" not in seen
    assert b"evil" not in seen
    assert b"\r\nabc\r\n" in seen


# ---- CONNECT ----


def test_a_tunnel_carries_bytes_both_ways_and_each_direction_ends_by_itself() -> None:
    def echo_after_the_end(connection: socket.socket) -> None:
        whole = everything(connection)
        connection.sendall(whole[::-1])

    with raw_server(echo_after_the_end) as port, proxied(f"raw.test:{port}=127.0.0.1") as place:
        head = f"CONNECT raw.test:{port} HTTP/1.1\r\nHost: raw.test:{port}\r\n\r\n".encode()

        def send_all(connection: socket.socket) -> None:
            connection.sendall(head + PAYLOAD)
            connection.shutdown(socket.SHUT_WR)

        with place.connect() as connection:
            sender = threading.Thread(target=send_all, args=(connection,))
            sender.start()
            answer = everything(connection)
            sender.join()
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\n" + PAYLOAD[::-1]


def test_a_client_that_says_no_more_still_gets_its_answer(place: Place, server: Server) -> None:
    assert place.say(get(server.server_port), then_end=True).startswith(b"HTTP/1.1 200")
    assert place.say(b"GET http://files.te", then_end=True).startswith(b"HTTP/1.1 400")
    assert place.say(b"", then_end=True) == b""


def test_a_client_that_breaks_off_ends_the_connection_to_the_server() -> None:
    gone = threading.Event()

    def pour(connection: socket.socket) -> None:
        connection.settimeout(20)
        try:
            while True:
                connection.sendall(bytes(1 << 16))
        except ConnectionError:
            gone.set()

    with raw_server(pour) as port, proxied(f"raw.test:{port}=127.0.0.1") as place:
        for how in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):  # by a reset, and by a close
            gone.clear()
            with place.connect() as one:
                one.sendall(f"CONNECT raw.test:{port} HTTP/1.1\r\nHost: raw.test\r\n\r\n".encode())
                assert one.recv(1 << 16)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
            assert gone.wait(10)


def test_connections_leave_no_descriptor_behind(place: Place, server: Server) -> None:
    def descriptors() -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (place.supervisor, os.getpid())]

    before = descriptors()
    for i in range(60):
        with place.connect() as one:
            one.sendall(get(server.server_port)[: None if i % 3 else 20])
            if i % 3 == 1:
                everything(one)
    deadline = time.monotonic() + 10
    while descriptors() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptors() == before


def test_fifty_connections_at_once_are_kept_apart(place: Place, server: Server) -> None:
    answers: dict[int, bytes] = {}

    def ask(number: int) -> None:
        answers[number] = place.say(get(server.server_port, f"/{number}"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f"/{number} for".encode() in answers[number] for number in range(50))
    assert sorted(path for _, path, _ in server.requests) == sorted(f"/{number}" for number in range(50))


# ---- addresses ----


SPELLINGS = [
    "169.254.169.254",
    "172.17.0.1",
    "127.0.0.1",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "localhost",
    "127.1",
    "0",
    "[::1]",
    "[::]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[fe80::1]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1%25lo]",
    "metadata.google.internal",
    "host.docker.internal",
]


@pytest.mark.parametrize("host", SPELLINGS)
@pytest.mark.parametrize(
    "form", ["CONNECT {0}:80 HTTP/1.1\r\nHost: {0}:80\r\n\r\n", "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n"]
)
def test_metadata_and_private_addresses_are_refused_in_every_spelling(place: Place, host: str, form: str) -> None:
    assert place.status(form.format(host).encode()) in (400, 403)
    assert not any(one.allowed for one in place.session.contacts)


@pytest.mark.parametrize(
    "address", [METADATA, GATEWAY, "127.0.0.1", "::1", "::ffff:127.0.0.1", "fe80::1", "64:ff9b::7f00:1"]
)
def test_a_listed_name_that_leads_to_a_private_address_is_refused_and_the_reason_said(
    address: str, server: Server
) -> None:
    with proxied(f"*.rebind.org:{server.server_port}", resolve=lambda _: [address]) as place:
        head = f"CONNECT a.rebind.org:{server.server_port} HTTP/1.1\r\nHost: a.rebind.org\r\n\r\n"
        answer = place.say(head.encode()).decode()
    assert answer.split()[1] == "403"
    assert "not of the public internet" in answer.partition("\r\n\r\n")[2]
    assert server.requests == []


def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_the_one_connected_to() -> None:
    answers = iter([["203.0.113.9"], ["127.0.0.1"]])  # of documentation, so not public; then what a rebinder would say
    asked: list[str] = []

    def rebinding(name: str) -> list[str]:
        asked.append(name)
        return next(answers)

    with http_server() as server, proxied(f"rebind.org:{server.server_port}", resolve=rebinding) as place:
        head = f"GET http://rebind.org:{server.server_port}/ HTTP/1.1\r\nHost: rebind.org:{server.server_port}\r\n\r\n"
        assert place.status(head.encode()) == 403
        assert asked == ["rebind.org"]
        assert place.status(head.encode()) == 403
        assert server.requests == []


def test_a_proxy_can_be_used_again_after_it_was_closed() -> None:
    with PlainSupervisor() as supervisor:
        proxy = Proxy()
        for _ in range(2):
            port = free_port()
            session = proxy.open(supervisor.link, Rules.parse(["localhost"]), "test", port)
            assert Place(session, port, 0).status(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n") in (
                403,
                502,
            )
            session.close()
            proxy.close()


def test_real_names_of_this_machine_lead_nowhere() -> None:
    names = ("localhost", "ip6-localhost", socket.gethostname())
    with proxied(*[name for name in names if host_of(name)]) as place:
        for name in filter(host_of, names):
            status = place.status(f"CONNECT {name}:80 HTTP/1.1\r\nHost: {name}:80\r\n\r\n".encode())
            assert status in (403, 502), name
        assert all(one.reason for one in place.session.contacts)


def test_a_name_that_has_no_address_and_a_port_that_nobody_listens_on_are_said_plainly() -> None:
    def nothing(name: str) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    port = free_port()
    with proxied("gone.org", f"closed.test:{port}=127.0.0.1", resolve=nothing) as place:
        answer = place.say(b"CONNECT gone.org:443 HTTP/1.1\r\nHost: gone.org:443\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 gone.org cannot be resolved: Name or service not known")
        closed = f"GET http://closed.test:{port}/ HTTP/1.1\r\nHost: closed.test:{port}\r\n\r\n"
        assert b"cannot be reached: Connect call failed" in place.say(closed.encode())
        assert [one.allowed for one in place.session.contacts] == [True, True]
        assert all(one.reason for one in place.session.contacts)


# ---- bounds ----


def test_whoever_is_slow_with_a_request_is_sent_away_and_keeps_nobody_waiting(server: Server) -> None:
    allow = f"files.test:{server.server_port}=127.0.0.1"
    with proxied(allow, limits=Limits(head_s=4.0)) as place, ExitStack() as stack:
        slow = [stack.enter_context(place.connect()) for _ in range(20)]
        began = time.monotonic()
        for byte in b"GET ":
            for one in slow:
                one.sendall(bytes([byte]))
            time.sleep(0.1)
        assert place.status(get(server.server_port)) == 200
        assert time.monotonic() - began < 3.5
        assert all(everything(one).startswith(b"HTTP/1.1 408") for one in slow)
        assert time.monotonic() - began < 9


def test_a_connection_that_stands_still_is_closed_and_one_that_moves_is_not() -> None:
    def drip(connection: socket.socket) -> None:
        for _ in range(10):
            connection.sendall(b".")
            time.sleep(0.2)
        time.sleep(20)

    with raw_server(drip) as port, proxied(f"raw.test:{port}=127.0.0.1", limits=Limits(idle_s=2.0)) as place:
        began = time.monotonic()
        answer = place.say(f"CONNECT raw.test:{port} HTTP/1.1\r\nHost: raw.test:{port}\r\n\r\n".encode())
        assert answer.endswith(b"\r\n\r\n" + b"." * 10)
        assert 3.5 < time.monotonic() - began < 15


def test_a_server_that_says_nothing_or_nonsense_is_answered_for() -> None:
    with (
        raw_server(lambda _: time.sleep(20)) as port,
        proxied(f"raw.test:{port}=127.0.0.1", limits=Limits(idle_s=0.5)) as place,
    ):
        assert place.status(get(port).replace(b"files.test", b"raw.test")) == 504
    with raw_server(lambda one: one.sendall(b"SSH-2.0-x\r\n")) as port, proxied(f"raw.test:{port}=127.0.0.1") as place:
        assert place.status(get(port).replace(b"files.test", b"raw.test")) == 502
    with raw_server(lambda _: None) as port, proxied(f"raw.test:{port}=127.0.0.1") as place:
        assert place.status(get(port).replace(b"files.test", b"raw.test")) == 502


def test_no_more_than_so_many_connections_at_a_time(server: Server) -> None:
    port = server.server_port
    with proxied(f"files.test:{port}=127.0.0.1", limits=Limits(open=3, dial_s=1.0)) as place, ExitStack() as stack:
        opened = [stack.enter_context(place.connect()) for _ in range(3)]
        for one in opened:
            one.sendall(f"CONNECT files.test:{port} HTTP/1.1\r\nHost: files.test\r\n\r\n".encode())
            assert one.recv(100).startswith(b"HTTP/1.1 200")
        assert place.status(get(port)) == 503
        threading.Timer(0.3, opened[0].close).start()
        assert place.status(get(port)) == 200


def test_no_more_than_so_many_connections_in_all(server: Server) -> None:
    allow = f"files.test:{server.server_port}=127.0.0.1"
    with proxied(allow, limits=Limits(total=3)) as place:
        for _ in range(3):
            assert place.status(get(server.server_port)) == 200
        for _ in range(3):
            with pytest.raises((OSError, IndexError)):
                place.status(get(server.server_port))
        assert len(place.session.contacts) == 3


def test_no_more_than_so_many_bytes_in_all(server: Server) -> None:
    allow = f"files.test:{server.server_port}=127.0.0.1"
    with proxied(allow, limits=Limits(traffic_bytes=1_000_000)) as place:
        assert len(place.say(get(server.server_port, "/big"))) < 1_100_000
        answer = place.say(get(server.server_port))
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"used up the 1000000 bytes" in answer


def test_a_reader_that_does_not_read_holds_up_the_server_and_not_our_memory() -> None:
    sent = 0
    stuck = threading.Event()

    def pour(connection: socket.socket) -> None:
        nonlocal sent
        connection.settimeout(2)
        try:
            while True:
                sent += connection.send(bytes(1 << 16))
        except TimeoutError:
            stuck.set()

    with raw_server(pour) as port, proxied(f"raw.test:{port}=127.0.0.1") as place, place.connect() as lazy:
        lazy.sendall(f"CONNECT raw.test:{port} HTTP/1.1\r\nHost: raw.test:{port}\r\n\r\n".encode())
        assert stuck.wait(20)
        assert sent < 20 << 20  # what the kernel's own buffers on the way take, and our windows


def test_closing_ends_every_connection_at_once() -> None:
    gone = threading.Event()

    def wait(connection: socket.socket) -> None:
        connection.settimeout(20)
        try:
            if connection.recv(10) == b"":
                gone.set()
        except ConnectionResetError:
            gone.set()

    with raw_server(wait) as port, proxied(f"raw.test:{port}=127.0.0.1") as place, place.connect() as one:
        one.sendall(f"CONNECT raw.test:{port} HTTP/1.1\r\nHost: raw.test:{port}\r\n\r\n".encode())
        assert one.recv(100).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        place.session.close()
        assert gone.wait(5)
        with pytest.raises((OSError, AssertionError)):
            assert one.recv(1)
        assert time.monotonic() - began < 3
        with place.connect() as late:
            assert late.recv(1) == b""


def test_a_port_that_is_taken_is_a_sandbox_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, PlainSupervisor() as supervisor:
        proxy = Proxy()
        with pytest.raises(SandboxError, match="cannot have its proxy on port"):
            proxy.open(supervisor.link, Rules.parse(["index.test"]), "test", taken.getsockname()[1])
        proxy.close()


def test_clients_of_the_standard_library_understand_the_refusal(place: Place) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", place.port, timeout=20)
    connection.set_tunnel("not-listed.net", 443)
    with pytest.raises(
        OSError, match=r"Tunnel connection failed: 403 not-listed.net:443 is not among the allowed hosts"
    ):
        connection.request("GET", "/")
    connection.close()


def test_a_proxy_that_nobody_used_starts_no_thread() -> None:
    before = threading.active_count()
    Proxy().close()
    assert threading.active_count() == before
    assert asyncio.run(asyncio.sleep(0, "alive")) == "alive"
