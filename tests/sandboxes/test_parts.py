"""The small parts on their own: bounded streams, and who is alive."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agentgym_sandboxes._output import BoundedBytes
from agentgym_sandboxes._owner import Owner


@given(chunks=st.lists(st.binary(max_size=40), max_size=20), limit=st.integers(0, 100))
def test_a_bounded_stream_keeps_exactly_head_and_tail(chunks: list[bytes], limit: int) -> None:
    stream = BoundedBytes(limit)
    for chunk in chunks:
        stream.feed(chunk)
    whole = b"".join(chunks)
    dropped = max(0, len(whole) - limit)
    assert (stream.total, stream.dropped) == (len(whole), dropped)
    if not dropped:
        assert stream.value() == whole
    else:
        head, tail = whole[: limit - limit // 2], whole[len(whole) - limit // 2 :]
        assert stream.value() == head + b"\n[... %d bytes dropped ...]\n" % dropped + tail


def test_a_bounded_stream_never_holds_much_more_than_its_limit() -> None:
    stream = BoundedBytes(1000)
    for _ in range(1000):
        stream.feed(b"x" * 65536)
    assert stream.dropped == 65_536_000 - 1000
    assert sum(map(len, stream._tail)) <= 65536 + 1000


def test_an_owner_survives_the_trip_through_labels_and_tags() -> None:
    owner = Owner.current()
    assert Owner.from_labels(owner.labels()) == owner
    assert Owner.from_tag(owner.tag()) == owner
    assert Owner.from_labels({}) is None
    assert Owner.from_tag("1234~something") is None


def test_only_an_owner_that_provably_ended_is_dead() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    alive = Owner.current()
    assert alive.pid == os.getpid()
    assert not alive.is_dead()
    assert not replace(alive, pid=1, started=_started(1)).is_dead()
    assert replace(alive, started=alive.started + 1).is_dead()
    assert replace(alive, pid=gone.pid).is_dead()


def test_an_owner_elsewhere_is_never_called_dead() -> None:
    gone = replace(Owner.current(), started=1)
    assert gone.is_dead()
    for elsewhere in (replace(gone, host="other"), replace(gone, boot="other"), replace(gone, pidns="1")):
        assert not elsewhere.is_dead()


def _started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
