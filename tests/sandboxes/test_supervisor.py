"""The supervisor under sanitizers: random sequences of valid requests, cut anywhere, and malformed requests."""

import errno
import os
import random
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from agentgym_sandboxes._compile import SOURCES
from agentgym_sandboxes._messages import (
    WINDOW,
    Ask,
    Entries,
    Entry,
    Exit,
    Flag,
    Frames,
    Say,
    Want,
    execution,
    frame,
    number,
    outcome,
    wanted_files,
    written_files,
)

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wno-format-truncation"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
SECONDS = 1.2

SCRIPTS = [
    "true",
    "exit 3",
    "kill -9 $$",
    "head -c 300000 /dev/zero",
    "head -c 70000 /dev/zero >&2; echo out",
    "cat",
    "cat >&2",
    "exec 0<&-; sleep 0.05",
    "exec 1>&- 2>&-; sleep 0.05",
    "sleep 60",
    "(sleep 0.2; echo late) &",
    "setsid sleep 60 & echo started",
    "for i in 1 2 3 4 5; do (sleep 0.05 &); done",
    "trap '' TERM INT HUP; sleep 60",
    "echo word >&3; sleep 0.02; echo word >&3",
    "stty raw -echo 2>/dev/null; head -c 5",
    "ulimit -n 3; echo x",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    target = tmp_path_factory.mktemp("built") / "supervisor"
    sources = map(str, sorted(SOURCES.glob("*.c")))
    argv = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", *WARNINGS, *SANITIZERS, "-o", str(target), *sources]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("gcc has no sanitizers here")
    assert done.returncode == 0, done.stderr
    return target


class Child:
    """A supervisor with two pipes, plain or as the first process of a namespace of its own."""

    def __init__(self, path: Path, *, is_first: bool) -> None:
        prefix = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"] if is_first else []
        options = "detect_leaks=0:exitcode=99:abort_on_error=0"
        env = {**os.environ, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*prefix, str(path), "120"], stdin=pipe, stdout=pipe, stderr=pipe, env=env, bufsize=0
        )
        self.heard: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self.changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def wait(self, channel: int, *kinds: int, timeout: float = 20) -> bytes:
        """Return the payload of the first answer of these kinds."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.find(channel, *kinds) is not None, timeout), (
                channel,
                self.process.poll(),
            )
            found = self.find(channel, *kinds)
        assert found is not None
        return found

    def find(self, channel: int, *kinds: int) -> bytes | None:
        return next((payload for kind, payload in self.heard[channel] if kind in kinds), None)

    def end(self) -> tuple[int, str]:
        """Close its input and return its exit code and what it complained of."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        said = self.process.stderr.read().decode(errors="replace")
        self._reader.join(20)
        return self.process.wait(20), said

    def __enter__(self) -> Self:
        self.wait(0, Say.HELLO)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(20)
        self._reader.join(20)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        frames = Frames()
        assert self.process.stdout is not None
        while data := self.process.stdout.read(1 << 16):
            with self.changed:
                for kind, channel, payload in frames.feed(data):
                    self.heard[channel].append((kind, payload))
                self.changed.notify_all()


def _can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    try:
        return subprocess.run(["unshare", "--pid", "--mount-proc", "--fork", "true"], check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(params=["plain", "first"])
def child(built: Path, request: pytest.FixtureRequest) -> Iterator[Child]:
    if request.param == "first" and not _can_unshare():
        pytest.skip("this machine forbids a process namespace of its own")
    with Child(built, is_first=request.param == "first") as made:
        yield made


class Fuzzer:
    """Draws valid requests; remembers what must be answered."""

    def __init__(self, seed: int, folder: Path, port: int) -> None:
        self.draw = random.Random(seed)
        self.folder = folder
        self.port = port
        self.last = 0
        self.commands: list[int] = []
        self.asked: list[int] = []
        self.puts = 0
        self.is_listening = False

    def request(self) -> bytes:
        kinds = (self.run, self.run, self.feed, self.feed, self.poke, self.get, self.put, self.ping, self.listen)
        return self.draw.choice(kinds)()

    def channel(self) -> int:
        self.last += 1
        return self.last

    def some(self) -> int:
        """Return the channel of a command, which may have ended long ago, or never have been."""
        known = self.commands[-20:]
        return self.draw.choice(known) if known and self.draw.random() < 0.95 else self.draw.randrange(1, 1 << 31)

    def run(self) -> bytes:
        flags = Flag(self.draw.randrange(16))
        if Flag.PTY in flags:
            flags &= ~Flag.CONTROL
        channel = self.channel()
        self.commands.append(channel)
        argv = ["/bin/sh", "-c", self.draw.choice(SCRIPTS)]
        asked = execution(
            self.draw.choice([argv] * 8 + [["no-such-program"], [str(self.folder)], ["printf", "%s", "x" * 9000]]),
            cwd=self.draw.choice([str(self.folder), "/", "/no/such/folder"]),
            env={"A": "b" * self.draw.randrange(100), "ENV": ""},
            flags=flags,
            timeout=self.draw.choice([None, 0.001, 0.05, 0.3]),
            limit=self.draw.choice([0, 1, 7, 1000, 65536, 1 << 24]),
            shape=(self.draw.randrange(1, 100), self.draw.randrange(1, 200)),
        )
        return frame(Ask.EXEC, channel, asked)

    def feed(self) -> bytes:
        size = self.draw.choice([0, 1, 100, 70_000, WINDOW])
        data = frame(Ask.INPUT, self.some(), self.draw.randbytes(size))
        return data + (frame(Ask.INPUT_END, self.some()) if self.draw.random() < 0.3 else b"")

    def poke(self) -> bytes:
        shape = number(self.draw.randrange(1, 1 << 16) << 16 | self.draw.randrange(1, 1 << 16))
        return self.draw.choice(
            [
                frame(Ask.KILL, self.some()),
                frame(Ask.RESIZE, self.some(), shape),
                frame(Ask.CREDIT, self.some(), number(self.draw.randrange(1 << 20))),
                frame(Ask.INPUT_END, self.some()),
            ]
        )

    def get(self) -> bytes:
        channel = self.channel()
        self.asked.append(channel)
        path = self.draw.choice([self.folder, self.folder / "0", self.folder / "no", "/dev/null", "/proc/self/fd", "/"])
        want = Want(self.draw.randrange(4))
        most = self.draw.choice([0, 1, 50]), self.draw.choice([0, 1000, 1 << 20])
        return frame(Ask.GET, channel, wanted_files(str(path), want, max_entries=most[0], max_bytes=most[1]))

    def put(self) -> bytes:
        channel = self.channel()
        self.asked.append(channel)
        self.puts += 1
        names = [
            b"0",
            b"0/1",
            b"a/b/c",
            b"link",
            b"long" * 60,
            b"x" * 300,
            b"\xff\xfe",
            b"a\nb",
            b"folder",
            b"folder/in",
        ]
        stream = b"".join(self.entry(self.draw.choice(names)).packed() for _ in range(self.draw.randrange(6)))
        if self.draw.random() < 0.1:
            stream = stream[: self.draw.randrange(len(stream) + 1)]
        frames = frame(Ask.PUT, channel, written_files(str(self.folder), is_fresh=self.draw.random() < 0.5))
        while stream:
            cut = self.draw.randrange(1, 4000)
            frames += frame(Ask.PUT_DATA, channel, stream[:cut])
            stream = stream[cut:]
        return frames + frame(Ask.PUT_END, channel)

    def entry(self, name: bytes) -> Entry:
        kind = self.draw.choice("fffdl")
        data = {
            "f": self.draw.randbytes(self.draw.choice([0, 1, 3000])),
            "d": b"",
            "l": b"t" * self.draw.randrange(300),
        }
        times = [0, 1, -1, 10**18, -(10**18), 2**63 - 1, -(2**63)]
        return Entry(kind, name, self.draw.choice([None, 0o644, 0, 0o7777]), self.draw.choice(times), data[kind])

    def ping(self) -> bytes:
        channel = self.channel()
        self.asked.append(channel)
        return frame(Ask.PING, channel)

    def listen(self) -> bytes:
        if not self.is_listening:
            self.is_listening = True
            channel = self.channel()
            self.asked.append(channel)
            return frame(Ask.LISTEN, channel, number(self.port))
        connections = []
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as one:
            one.sendall(b"x" * self.draw.choice([0, 1, 100_000]))
        for which in range(1, 4):
            connections.append(frame(Ask.INPUT, 0x40000000 + which, b"y" * self.draw.choice([1, 100_000])))
            connections.append(frame(Ask.CREDIT, 0x40000000 + which, number(100_000)))
            if self.draw.random() < 0.3:
                connections.append(frame(self.draw.choice([Ask.KILL, Ask.INPUT_END]), 0x40000000 + which))
        return b"".join(connections)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.mark.parametrize("seed", range(5))
def test_every_request_is_answered_once_and_no_sanitizer_complains(child: Child, tmp_path: Path, seed: int) -> None:
    fuzzer = Fuzzer(seed, tmp_path, _free_port())
    ends = time.monotonic() + SECONDS
    while child.process.poll() is None:
        if time.monotonic() > ends and len(fuzzer.commands) > 10 and fuzzer.puts > 3:
            break
        data = b"".join(fuzzer.request() for _ in range(fuzzer.draw.randrange(1, 8)))
        while data:  # frames come cut anywhere
            cut = fuzzer.draw.choice([1, 11, 13, 5000, len(data)])
            try:
                child.send(data[:cut])
            except BrokenPipeError:
                break
            data = data[cut:]
            if cut < 100:
                data, rest = data[:2000], data[2000:]
                with suppress(BrokenPipeError):
                    child.send(data)
                data = rest
    if child.process.poll() is None:
        child.send(b"".join(frame(Ask.KILL, one) for one in fuzzer.commands) + frame(Ask.PING, 1 << 20))
        child.wait(1 << 20, Say.HELLO)
    for one in fuzzer.commands if child.process.poll() is None else ():
        child.wait(one, Say.EXIT)
    answers = {one: [kind for kind, _ in child.heard[one]] for one in fuzzer.commands}
    code, complaints = child.end()
    assert code == 0, complaints
    assert complaints == ""
    for kinds in answers.values():
        assert kinds.count(Say.EXIT) == 1
        assert [kind for kind in kinds[kinds.index(Say.EXIT) :] if kind != Say.WRITTEN] == [Say.EXIT]
    for one in fuzzer.asked:
        finals = [kind for kind, _ in child.heard[one] if kind in (Say.DONE, Say.HELLO)]
        assert len(finals) == 1, one
    assert len(fuzzer.commands) > 10
    assert fuzzer.puts > 3


@pytest.mark.parametrize("is_fresh", [False, True], ids=["whole", "fresh"])
def test_files_come_out_as_they_went_in(child: Child, tmp_path: Path, is_fresh: bool) -> None:
    draw = random.Random(7)
    times = [1, 10**18 + 7, -1, -(10**9) - 3]
    files = [
        Entry(
            "f",
            b"d%d/f%d" % (i % 7, i),
            draw.choice([0o600, 0o777, 0o444, 0o4755, 0o2640]),
            draw.choice(times),
            draw.randbytes(i * 37),
        )
        for i in range(300)
    ]
    links = [Entry("l", b"d1/link", 0o777, 5, b"../nowhere")]
    stream = b"".join(one.packed() for one in [*files, *links])
    channel = 1
    child.send(frame(Ask.PUT, channel, written_files(str(tmp_path), is_fresh=is_fresh)))
    while stream:
        cut = draw.randrange(1, 20_000)
        child.send(frame(Ask.PUT_DATA, channel, stream[:cut]))
        stream = stream[cut:]
    child.send(frame(Ask.PUT_END, channel))
    assert outcome(child.wait(channel, Say.DONE)) == (0, "")
    child.send(frame(Ask.GET, 2, wanted_files(str(tmp_path), Want.METADATA, max_entries=1000, max_bytes=1 << 30)))
    assert outcome(child.wait(2, Say.DONE))[0] == 0
    entries = Entries()
    for kind, payload in child.heard[2]:
        if kind == Say.ENTRIES:
            entries.feed(payload)
    found = {one.path: one for one in entries.all() if one.kind != "d"}
    assert found == {one.path: one for one in [*files, *links]}
    assert child.end() == (0, "")


def test_a_tail_is_kept_exactly_and_the_rest_counted(child: Child) -> None:
    for channel, limit in enumerate((0, 1, 2, 1000, 99_999, 200_000), start=1):
        script = "i=0; while [ $i -lt 1000 ]; do printf '%0100d' $i; i=$((i + 1)); done"
        asked = execution(["/bin/sh", "-c", script], cwd="/", env={}, flags=Flag(0), timeout=20, limit=limit)
        child.send(frame(Ask.EXEC, channel, asked))
        ended = Exit.parse(child.wait(channel, Say.EXIT))
        whole = b"".join(b"%0100d" % i for i in range(1000))
        kept = b"".join(payload for kind, payload in child.heard[channel] if kind == Say.OUT)
        head = limit - limit // 2
        wanted = whole if limit >= len(whole) else whole[:head] + whole[len(whole) - limit // 2 :]
        assert kept == wanted
        assert ended.dropped_out == len(whole) - len(kept)
    assert child.end() == (0, "")


_EXEC = struct.Struct("<IQQQIII")


@pytest.mark.parametrize(
    "request_bytes",
    [
        frame(Ask.EXEC, 1),
        frame(Ask.EXEC, 1, b"\0" * 39),
        frame(Ask.EXEC, 1, b"\0" * 40),
        frame(Ask.EXEC, 1, _EXEC.pack(0, 0, 0, 0, 0, 1000, 0) + b"/\0a\0"),
        frame(Ask.EXEC, 1, _EXEC.pack(0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF) + b"/\0a\0"),
        frame(Ask.EXEC, 1, _EXEC.pack(0, 0, 0, 0, 0, 1, 1) + b"/\0a\0"),
        frame(Ask.EXEC, 1, _EXEC.pack(0, 0, 0, 0, 0, 1, 0) + b"/\0no-end"),
        frame(Ask.GET, 1, b"\0" * 16),
        frame(Ask.GET, 1, b"\0" * 16 + b"/no-end"),
        frame(Ask.PUT, 1),
        frame(Ask.PUT, 1, b"\0" * 4 + b"/no-end"),
        frame(Ask.PUT, 1, b"x" * 9000 + b"\0"),
        frame(Ask.PUT_DATA, 1, b"x"),
        frame(Ask.PUT, 1, written_files("/")) + frame(Ask.PUT_DATA, 1, b"f" + b"\xff" * 24),
        struct.pack("<III", 0, 1, 99),
        struct.pack("<III", 0xFFFFFFFF, 1, 1),
    ],
)
def test_a_malformed_request_ends_the_supervisor_cleanly(child: Child, request_bytes: bytes) -> None:
    with suppress(BrokenPipeError):
        child.send(request_bytes)
    child.process.wait(20)
    code, complaints = child.end()
    assert (code, complaints.count("\n")) == (70, 1), complaints
    assert complaints.startswith("agentgym supervisor: ")


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(Entry("f", b"/".join([b"d" * 200] * 21), data=b"x" * 70_000), id="path"),
        pytest.param(Entry("l", b"link", data=b"t" * 5000), id="target"),
    ],
)
def test_what_is_too_long_to_be_told_is_refused_and_the_supervisor_lives(
    child: Child, tmp_path: Path, entry: Entry
) -> None:
    stream = entry.packed() + Entry("f", b"after", data=b"y").packed()
    child.send(frame(Ask.PUT, 1, written_files(str(tmp_path))))
    for start in range(0, len(stream), 9000):
        child.send(frame(Ask.PUT_DATA, 1, stream[start : start + 9000]))
    child.send(frame(Ask.PUT_END, 1) + frame(Ask.PING, 2))
    assert outcome(child.wait(1, Say.DONE)) == (errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    child.wait(2, Say.HELLO)
    assert not list(tmp_path.iterdir())
    assert child.end() == (0, "")


def test_an_owner_that_vanishes_takes_the_supervisor_with_it(child: Child) -> None:
    asked = execution(["sleep", "60"], cwd="/", env={}, flags=Flag(0), timeout=None)
    child.send(frame(Ask.EXEC, 1, asked) + frame(Ask.PING, 2))
    child.wait(2, Say.HELLO)
    began = time.monotonic()
    assert child.end() == (0, "")
    assert time.monotonic() - began < 5
