"""Attacks on the sandbox itself: none may pass as the machine's fault, reach out, or wait for the next verdict."""

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from agentgym.errors import AgentFault, SandboxError
from agentgym.sandbox import ExecResult, SandboxBackend, SandboxSpec

SPEC = SandboxSpec(memory_mb=96, pids=24)


def _process() -> SandboxBackend:
    from agentgym_sandboxes.process import ProcessBackend

    return ProcessBackend()


def _docker() -> SandboxBackend:
    from agentgym_sandboxes.docker import DockerBackend

    return DockerBackend()


@pytest.fixture(
    scope="module",
    params=[pytest.param(_process, id="process"), pytest.param(_docker, id="docker", marks=pytest.mark.docker)],
)
def anywhere(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    made: SandboxBackend = request.param()
    try:
        made.check()
    except SandboxError as error:
        if made.name == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


HOG = (
    "import os, time; x = bytearray(24 << 20); os.fork(); os.fork(); os.fork(); "
    "x = bytearray(b'y' * (24 << 20)); time.sleep(5)"
)
CRASHES = {
    "kill everything": "kill -9 -1; exit 137",
    "kill everything twice": "(kill -9 -1; kill -9 -1) & kill -9 -1; exit 137",
    "kill the first process": "kill -9 1; kill -TERM 1; kill -INT 1; kill -HUP 1; kill -SEGV 1; kill -9 $$",
    "memory bomb": "exec python3 -c 'x = bytearray(1 << 33)'",
    "memory hogs that lower their own badness": (
        f'for i in 1 2 3; do (echo 500 > /proc/self/oom_score_adj; exec python3 -c "{HOG}") & done 2>/dev/null; '
        "wait; exit 137"
    ),
    "shared memory and files instead of processes": (
        "for f in /tmp/a /dev/shm/b fill; do head -c 200000000 /dev/zero > $f; done 2>/dev/null; "
        "python3 -c 'x = bytearray(1 << 30)'; kill -9 $$"
    ),
    "fork bomb": "b() { b | b & }; b; sleep 0.5; exit 125",
    "an exit code of Docker's own": "exit 125",
    "the daemon's words": "echo 'Error response from daemon: container is not running' >&2; exit 126",
    "a segmentation fault": "kill -SEGV $$",
    "a time-out": "sleep 60",
    "closing every descriptor": 'for i in 0 1 2 3 4 5 6 7 8 9; do eval "exec $i>&-"; done; kill -9 $$',
    "a broken working directory": "rm -rf ./* .[!.]*; chmod 000 .; kill -9 $$",
}


def _naively_infrastructure(result: ExecResult) -> bool:
    """As harnesses do that judge by what they see: odd exit codes, time-outs and error texts are the machine's."""
    return result.timed_out or result.pids or (result.exit_code or 0) >= 125 or b"daemon" in result.stderr


@pytest.mark.parametrize("attack", CRASHES.values(), ids=CRASHES.keys())
def test_a_crash_on_purpose_is_the_agents_own_loss(anywhere: SandboxBackend, attack: str) -> None:
    with anywhere.start(SPEC) as box:
        try:
            result = box.exec(attack, timeout=3)
        except AgentFault:
            return
        assert not result.ok
        if anywhere.name == "docker":
            assert _naively_infrastructure(result)
        for _ in range(2):
            try:
                box.exec("true", cwd="/")
            except AgentFault:
                return


@pytest.fixture
def neighbour() -> Iterator[int]:
    """A server on this machine's loopback, as a daemon's or a metadata service's stand-in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the neighbour's secret")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


REACH = """
import os, socket, sys
reached = [path for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
           if os.path.exists(path)]
port = int(sys.argv[1])
for host, number in (("127.0.0.1", port), ("localhost", port), ("169.254.169.254", 80), ("172.17.0.1", port),
                     ("host.docker.internal", port), ("0.0.0.0", port)):
    try:
        with socket.create_connection((host, number), timeout=1) as one:
            one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            reached.append(host)
    except OSError:
        pass
try:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("\\0" + sys.argv[2])
        reached.append("abstract socket")
except OSError:
    pass
for path in ("/sys/class/net",):
    reached += [name for name in os.listdir(path) if name != "lo"] if os.path.exists(path) else []
print(" ".join(reached))
"""


def test_nothing_outside_is_within_reach(anywhere: SandboxBackend, neighbour: int) -> None:
    name = f"agentgym-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        naive = subprocess.run(
            [
                "python3",
                "-c",
                REACH.replace('("169.254.169.254", 80), ("172.17.0.1", port),', ""),
                str(neighbour),
                name,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "127.0.0.1" in naive.stdout
        assert "abstract socket" in naive.stdout
        with anywhere.start(SPEC) as box:
            result = box.exec(["python3", "-c", REACH, str(neighbour), name])
    assert (result.exit_code, result.stdout) == (0, b"\n"), result


LEAVE = """
(setsid sh -c 'while :; do sleep 60; done' left-behind &)
echo forged > verdict.json; echo forged > /tmp/verdict.json; echo forged > /dev/shm/verdict 2>/dev/null
python3 - <<'PY' &
import socket, time
one = socket.socket(socket.AF_UNIX); one.bind("\\0verdict"); one.listen(); time.sleep(60)
PY
mkdir -p ~/.config; echo 'print("forged")' > ~/sitecustomize.py; export PYTHONPATH=$HOME
sleep 0.3
"""
LOOK = """
cat verdict.json /tmp/verdict.json /dev/shm/verdict ~/sitecustomize.py 2>/dev/null
for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f | grep left-behind | grep -v grep; done 2>/dev/null
grep -s verdict /proc/net/unix
true
"""


def _in_one_place(backend: SandboxBackend) -> bytes:
    """Judge two submissions in one sandbox, as graders do that keep a container for speed."""
    with backend.start(SPEC) as box:
        box.exec(LEAVE)
        return box.exec(LOOK).stdout


def _each_in_its_own(backend: SandboxBackend) -> bytes:
    with backend.start(SPEC) as first:
        first.exec(LEAVE)
        with backend.start(SPEC) as beside:
            seen = beside.exec(LOOK).stdout
    with backend.start(SPEC) as after:
        return seen + after.exec(LOOK).stdout


def test_one_verdict_leaves_nothing_for_another(anywhere: SandboxBackend) -> None:
    assert b"forged" in _in_one_place(anywhere)
    assert _each_in_its_own(anywhere) == b""


@pytest.mark.docker
def test_with_ready_sandboxes_too() -> None:
    pytest.importorskip("docker")
    from agentgym_sandboxes.docker import DockerBackend

    backend = DockerBackend(warm=2)
    try:
        backend.check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    with contextlib.closing(backend):
        backend.prepare(SPEC, 2)
        assert _each_in_its_own(backend) == b""
        assert backend.pool_stats.hits >= 2


FLOODS: dict[str, str] = {
    "yes": "yes",
    "one line of a gigabyte": "head -c 1000000000 /dev/zero | tr '\\0' x",
    "both streams at once": "yes & yes >&2",
    "control characters": "while :; do printf '\\033[2J\\r\\000\\377\\b'; done",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_is_bounded_counted_and_byte_exact(anywhere: SandboxBackend, flood: str) -> None:
    with anywhere.start(SPEC) as box:
        result = box.exec(flood, timeout=1.5, output_limit=2000)
        assert len(result.stdout) < 2100
        assert result.truncated or not result.stdout
        assert b"bytes dropped" in result.stdout
        assert box.exec("echo alive").stdout == b"alive\n"
