"""Branches of an episode: forks of a sandbox's files."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym.errors import SandboxError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec

LISTING = "cd {0} && find . -type f -printf '%P f %m %s %T@\\n' -o ! -type p -printf '%P %y %m %l %T@\\n' | sort"


@pytest.fixture
def branching(backend: SandboxBackend) -> SandboxBackend:
    if "snapshot" not in backend.capabilities:
        pytest.skip(f"the {backend.name} sandbox has no snapshots")
    return backend


@pytest.fixture
def box(branching: SandboxBackend) -> Iterator[Sandbox]:
    with branching.start(SandboxSpec()) as sandbox:
        yield sandbox


def test_a_fork_has_the_files_and_goes_its_own_way(branching: SandboxBackend, box: Sandbox) -> None:
    box.exec("echo one > file; mkdir d; echo tmp > /tmp/kept; export X=1; sleep 60 &")
    name = box.snapshot()
    box.exec("echo two > file; rm -r d")
    with branching.fork(name) as left, branching.fork(name) as right:
        left.exec("echo left > file")
        assert right.exec("cat file /tmp/kept; ls -d d").stdout == b"one\ntmp\nd\n"
        assert left.read("file") == b"left\n"
        assert box.read("file") == b"two\n"
        assert b"sleep" not in right.exec("cat /proc/[0-9]*/cmdline").stdout


def test_everything_about_the_files_is_kept(branching: SandboxBackend, box: Sandbox) -> None:
    made = box.exec(
        "umask 027; mkdir -p a/b/empty locked; echo x > a/run; chmod 755 a/run; "
        "ln -s ../nowhere a/link; ln -s /etc a/b/etc; "
        "printf '\\000\\377' > 'a/na\nme'; : > a/none; touch -d '2001-02-03 04:05:06.789' a/run a; "
        "echo y > locked/in; chmod 000 locked/in; chmod 555 locked; mkfifo a/fifo; head -c 3000000 /dev/urandom > big"
    )
    assert made.ok, made.stderr
    wanted = box.exec(LISTING.format(box.workdir))
    name = box.snapshot()
    with branching.fork(name) as fork:
        got = fork.exec(LISTING.format(box.workdir))
        assert got.stdout.splitlines() == wanted.stdout.splitlines()
        assert fork.read("big", limit=1 << 22) == box.read("big", limit=1 << 22)
        assert box.exec(LISTING.format(box.workdir)).stdout == wanted.stdout


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
            lambda name: name not in (".", "..") and len(name.encode()) < 200
        ),
        st.binary(max_size=2000),
        max_size=20,
    )
)
def test_any_files_survive_a_fork_of_a_fork(branching: SandboxBackend, box: Sandbox, files: dict[str, bytes]) -> None:
    box.exec("rm -rf tree; mkdir tree")
    box.upload({f"tree/{name}": data for name, data in files.items()})
    first = box.snapshot()
    with branching.fork(first) as fork:
        second = fork.snapshot()
    branching.drop(first)
    with branching.fork(second) as fork:
        assert fork.download("tree") == files
    branching.drop(second)


def test_a_dropped_or_unknown_snapshot_is_named(branching: SandboxBackend, box: Sandbox) -> None:
    name = box.snapshot()
    branching.drop(name)
    for use in (branching.fork, branching.drop):
        with pytest.raises(KeyError, match=name):
            use(name)


def test_a_closed_sandbox_cannot_be_frozen(branching: SandboxBackend) -> None:
    box = branching.start(SandboxSpec())
    box.close()
    with pytest.raises(SandboxError, match="closed"):
        box.snapshot()


def test_ten_thousand_small_files_go_in_out_and_into_a_fork(branching: SandboxBackend) -> None:
    files = {f"d{i % 100}/f{i}": b"%d" % i for i in range(10_000)}
    with branching.start(SandboxSpec(memory_mb=256)) as box:
        box.upload({f"tree/{name}": data for name, data in files.items()})
        assert box.download("tree", max_files=20_000) == files
        name = box.snapshot()
        with branching.fork(name) as fork:
            assert fork.download("tree", max_files=20_000) == files
    branching.drop(name)


@pytest.mark.docker
def test_a_writable_root_is_forked_whole(branching: SandboxBackend) -> None:
    if "writable_root" not in branching.capabilities:
        pytest.skip(f"the {branching.name} sandbox has no writable root")
    spec = SandboxSpec(writable_root=True, workdir="/workspace")
    with branching.start(spec) as box:
        assert box.exec("echo changed > /workspace/file && echo t > /tmp/t").ok
        assert box.exec("echo root > /root/file", user="root").ok
        name = box.snapshot()
        box.exec("echo later > /workspace/file")
        with branching.fork(name) as fork:
            assert fork.exec("cat /workspace/file /tmp/t").stdout == b"changed\nt\n"
            assert fork.exec("cat /root/file", user="root").stdout == b"root\n"
            fork.write("/workspace/new", os.urandom(10))
    branching.drop(name)
