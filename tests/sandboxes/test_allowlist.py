"""`network="allowlist"` as programs in a container see it: the hosts that are listed, and nothing else, by any way."""

import hashlib
import importlib.util
import io
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("docker", reason="the docker extra is not installed")

from carried import carried
from loopback_servers import PAYLOAD, Server, certificates, http_server, raw_server

from agentgym.errors import CapabilityError, SandboxError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym_sandboxes.docker import DockerBackend

needs_daemon = pytest.mark.docker
HASHED = f"{len(PAYLOAD)} {hashlib.sha256(PAYLOAD).hexdigest()}"


class World:
    """Two servers, and a sandbox that may reach them under the names `plain.test` and `tls.test`."""

    def __init__(self, box: Sandbox, plain: Server, tls: Server) -> None:
        self.box, self.plain, self.tls = box, plain, tls
        self.plain_url = f"http://plain.test:{plain.server_port}"
        self.tls_url = f"https://tls.test:{tls.server_port}"
        self.env = {"SSL_CERT_FILE": "/tmp/ca.pem"}

    def python(self, script: str) -> str:
        """Run a script that knows the servers as `plain` and `tls`, and return what it printed."""
        names = f"plain, tls = {self.plain_url!r}, {self.tls_url!r}\n"
        result = self.box.exec(["python3", "-c", names + script], timeout=60, env=self.env)
        assert result.ok, result.output
        return result.stdout.decode().strip()


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerBackend]:
    made = DockerBackend(run="test")
    try:
        made.check()
    except SandboxError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, Server, Server]]:
    authority, context = certificates(tmp_path_factory.mktemp("certificates"), "tls.test")
    with http_server() as plain, http_server(context) as tls:
        yield authority, plain, tls


@pytest.fixture
def world(docker: DockerBackend, servers: tuple[bytes, Server, Server]) -> Iterator[World]:
    authority, plain, tls = servers
    plain.requests.clear()
    tls.requests.clear()
    allow = (f"plain.test:{plain.server_port}=127.0.0.1", f"tls.test:{tls.server_port}=127.0.0.1", "*.example.org")
    with docker.start(SandboxSpec(network="allowlist", allow=allow)) as box:
        box.write("/tmp/ca.pem", authority)
        yield World(box, plain, tls)


@needs_daemon
def test_a_malformed_list_is_refused_before_anything_starts(docker: DockerBackend) -> None:
    with pytest.raises(CapabilityError, match=r"'https://index\.test'"):
        docker.start(SandboxSpec(network="allowlist", allow=("https://index.test",)))


@needs_daemon
def test_the_standard_librarys_client_fetches_and_sends_over_http_and_tls(world: World) -> None:
    script = """
import hashlib, urllib.request
for base in (plain, tls):
    data = urllib.request.urlopen(base + "/big").read()
    print(len(data), hashlib.sha256(data).hexdigest())
    print(urllib.request.urlopen(base + "/up", data=data).read().decode())
"""
    assert world.python(script).splitlines() == [HASHED] * 4
    contacts = world.box.contacts()
    assert [(one.host, one.allowed) for one in contacts] == [("plain.test", True)] * 2 + [("tls.test", True)] * 2
    assert all(len(PAYLOAD) < one.bytes < 1.1 * len(PAYLOAD) for one in contacts)


@needs_daemon
def test_curl_understands_the_proxy_and_its_refusal(world: World) -> None:
    world.box.upload(carried("curl"))
    fetch = ["sh", "carried/run-curl", "--cacert", "/tmp/ca.pem", "-sS", "--max-time", "30"]
    for url in (world.plain_url, world.tls_url):
        assert world.box.exec([*fetch, f"{url}/big"], output_limit=1 << 25).stdout == PAYLOAD
    put = world.box.exec([*fetch, "-T", "-", "-X", "POST", f"{world.plain_url}/up"], stdin=PAYLOAD)  # chunked
    assert put.stdout.decode() == HASHED, put.output
    refused = world.box.exec([*fetch, "-v", "https://not-listed.net/"])
    assert refused.exit_code == 56
    assert b"HTTP/1.1 403 not-listed.net:443 is not among the allowed hosts" in refused.stderr
    shown = world.box.exec([*fetch, "http://not-listed.net/"]).stdout
    assert shown.startswith(b"agentgym: not-listed.net:80 is not among the allowed hosts: plain.test:")


@needs_daemon
def test_pip_installs_a_package_from_a_listed_index(world: World) -> None:
    spec = importlib.util.find_spec("pip")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip is not installed here")
    world.tls.files["/simple/toy-thing/"] = b'<a href="/files/toy_thing-1.0-py3-none-any.whl">toy_thing-1.0</a>'
    world.tls.files["/files/toy_thing-1.0-py3-none-any.whl"] = _wheel()
    world.box.write("pip.zip", _zipped(Path(spec.submodule_search_locations[0])))
    install = f"python3 -m pip install --no-cache-dir --target installed --index-url {world.tls_url}/simple toy-thing"
    env = {"PYTHONPATH": "pip.zip", "PIP_CERT": "/tmp/ca.pem", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = world.box.exec(install, timeout=120, env=env)
    assert result.ok, result.output
    assert (
        world.box.exec("PYTHONPATH=installed python3 -c 'import toy_thing; print(toy_thing.word)'").stdout
        == b"marble\n"
    )


@needs_daemon
def test_fifty_connections_at_once_are_kept_apart(world: World) -> None:
    script = """
import concurrent.futures, urllib.request
def ask(i):
    base = (plain, tls)[i % 2]
    return urllib.request.urlopen(f"{base}/{i}").read().decode().startswith(f"/{i} for ")
with concurrent.futures.ThreadPoolExecutor(50) as pool:
    print(all(pool.map(ask, range(100))))
"""
    assert world.python(script) == "True"
    assert len(world.box.contacts()) == 100


@needs_daemon
def test_a_host_that_is_not_listed_is_refused_readably_and_counted(world: World) -> None:
    script = """
import urllib.request
for url in ("https://not-listed.net/", "http://not-listed.net/", "http://169.254.169.254/", "https://example.org/"):
    try:
        print(urllib.request.urlopen(url).read())
    except OSError as error:
        print(error)
"""
    said = world.python(script).splitlines()
    names = f"plain.test:{world.plain.server_port}, tls.test:{world.tls.server_port}, *.example.org"
    assert len(said) == 4
    for line, host in zip(
        said, ("not-listed.net:443", "not-listed.net:80", "169.254.169.254:80", "example.org:443"), strict=True
    ):
        assert f"{host} is not among the allowed hosts: {names}" in line
    assert [one.allowed for one in world.box.contacts()] == [False] * 4
    assert world.plain.requests == []


@needs_daemon
@pytest.mark.parametrize("address", ["169.254.169.254", "172.17.0.1", "1.1.1.1", "fe80::1", "2606:4700::1111"])
def test_nothing_can_be_reached_but_through_the_proxy(world: World, address: str) -> None:
    script = f"""
import errno, socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_INET6 if ":" in {address!r} else socket.AF_INET, kind).connect(({address!r}, 80))
        print("connected")
    except OSError as error:
        print(errno.errorcode[error.errno])
print([name for _, name in socket.if_nameindex()])
"""
    *said, interfaces = world.python(script).splitlines()
    assert set(said) <= {"ENETUNREACH", "EADDRNOTAVAIL", "EINVAL"}
    assert "eth" not in interfaces


@needs_daemon
@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9.0xfe.0xa9.0xfe",
        "[::ffff:169.254.169.254]",
        "172.17.0.1",
        "[::1]",
        "127.0.0.1",
    ],
)
def test_metadata_gateway_and_host_are_out_of_reach_through_the_proxy_too(world: World, host: str) -> None:
    port = world.plain.server_port
    script = f"""
import socket
for asked in ("CONNECT {host}:{port}", "GET http://{host}:{port}/"):
    request = asked + " HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n"
    with socket.create_connection(("127.0.0.1", 3128)) as proxy:
        proxy.sendall(request.encode())
        print(proxy.recv(100).split()[1].decode())
"""
    assert set(world.python(script).split()) <= {"400", "403"}
    assert world.plain.requests == []


@needs_daemon
def test_names_cannot_be_resolved_in_the_sandbox_and_need_not_be(world: World) -> None:
    script = """
import socket
try:
    print(socket.getaddrinfo("plain.test", 80))
except OSError:
    print("no resolver")
"""
    assert world.python(script) == "no resolver"


@needs_daemon
def test_servers_in_the_sandbox_itself_are_reached_without_the_proxy(world: World) -> None:
    script = """
import http.server, threading, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers(), self.wfile.write(b"own")
    def log_message(self, *args): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").read().decode())
"""
    assert world.python(script) == "own"
    assert world.box.contacts() == ()


@needs_daemon
def test_another_users_programs_and_shells_find_the_proxy_too(world: World) -> None:
    fetch = f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{world.plain_url}/x\").status)'"
    assert world.box.exec(fetch, user="root").stdout == b"200\n"
    with world.box.shell() as shell:
        assert shell.run(fetch).stdout == b"200\n"


@needs_daemon
def test_connections_that_nobody_uses_do_not_keep_commands_from_running(world: World) -> None:
    script = """
import socket
held = [socket.create_connection(("127.0.0.1", 3128)) for _ in range(300)]
print(len(held))
"""
    assert world.python(script) == "300"
    assert world.box.exec("echo alive").stdout == b"alive\n"
    world.box.write("file", b"x")
    assert world.python("import urllib.request; print(urllib.request.urlopen(plain + '/x').status)") == "200"


_STALL = """
import socket, sys, time
proxy = socket.create_connection(("127.0.0.1", 3128))
proxy.sendall(sys.argv[1].encode())
proxy.recv(10)
time.sleep(60)
"""


@needs_daemon
def test_closing_the_sandbox_in_mid_transfer_ends_the_connection_to_the_server(docker: DockerBackend) -> None:
    ended = threading.Event()

    def pour(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(bytes(1 << 16))
        except OSError:
            ended.set()
            raise

    with raw_server(pour) as port, ExitStack() as stack:
        spec = SandboxSpec(network="allowlist", allow=(f"raw.test:{port}=127.0.0.1",))
        box = stack.enter_context(docker.start(spec))
        failed: list[BaseException] = []

        def run() -> None:
            try:
                box.exec(
                    ["python3", "-c", _STALL, f"CONNECT raw.test:{port} HTTP/1.1\r\nHost: raw.test\r\n\r\n"], timeout=60
                )
            except SandboxError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        deadline = time.monotonic() + 20
        while not any(one.bytes for one in box.contacts()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        start = time.monotonic()
        box.close()
        assert ended.wait(5)
        assert time.monotonic() - start < 5
        thread.join()
        assert failed
        (contact,) = box.contacts()
        assert contact.bytes > 0


@needs_daemon
def test_a_fork_has_a_proxy_of_its_own(world: World, docker: DockerBackend) -> None:
    fetch = "import urllib.request; print(urllib.request.urlopen(plain + '/x').status)"
    world.python(fetch)
    snapshot = world.box.snapshot()
    with docker.fork(snapshot) as twin:
        assert World(twin, world.plain, world.tls).python(fetch) == "200"
        assert len(twin.contacts()) == len(world.box.contacts()) == 1
    docker.drop(snapshot)


def test_every_backend_lets_listed_hosts_be_reached_and_tells_of_it_or_refuses(backend: SandboxBackend) -> None:
    with http_server() as server:
        spec = SandboxSpec(network="allowlist", allow=(f"plain.test:{server.server_port}=127.0.0.1",))
        if "network_allowlist" not in backend.capabilities:
            with pytest.raises(CapabilityError, match="no 'network_allowlist'"):
                backend.start(spec)
            return
        fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)"
        with backend.start(spec) as box:
            url = f"http://plain.test:{server.server_port}/x"
            assert box.exec(["python3", "-c", fetch, url]).stdout == b"200\n"
            assert not box.exec(["python3", "-c", fetch, "http://not-listed.net/"]).ok
            reached, refused = box.contacts()
    assert (reached.host, reached.port, reached.allowed, reached.reason) == ("plain.test", server.server_port, True, "")
    assert reached.bytes > 100
    assert (refused.host, refused.port, refused.allowed, refused.bytes) == ("not-listed.net", 80, False, 0)
    assert "not among the allowed hosts" in refused.reason


@needs_daemon
def test_other_networks_have_no_proxy(docker: DockerBackend) -> None:
    with docker.start(SandboxSpec()) as box:
        assert b"_proxy=" not in box.exec("env").stdout.lower()
        assert box.contacts() == ()


def _wheel() -> bytes:
    whole = io.BytesIO()
    info = "toy_thing-1.0.dist-info"
    with zipfile.ZipFile(whole, "w") as wheel:
        wheel.writestr("toy_thing.py", "word = 'marble'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-thing\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"toy_thing.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return whole.getvalue()


def _zipped(package: Path) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(package.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, path.relative_to(package.parent))
    return whole.getvalue()
