"""Move bytes between a child process and memory, bounded in size and in time."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Mapping
from typing import IO

from agentgym_sandboxes._output import BoundedBytes

_CHUNK = 1 << 16


def pump(feed: IO[bytes] | None, data: bytes, sinks: Mapping[int, BoundedBytes], exited: int, deadline: float) -> bool:
    """Write `data` to `feed` and read `sinks` until the pidfd `exited` fires; False if the deadline came first."""
    pending = memoryview(data)
    with selectors.PollSelector() as selector:
        selector.register(exited, selectors.EVENT_READ)
        for source in sinks:
            os.set_blocking(source, False)
            selector.register(source, selectors.EVENT_READ)
        if feed is not None:
            os.set_blocking(feed.fileno(), False)
            selector.register(feed.fileno(), selectors.EVENT_WRITE)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fd == exited:
                    return True
                if feed is not None and key.fd == feed.fileno():
                    pending = _write(key.fd, pending)
                    if not pending:
                        selector.unregister(key.fd)
                        feed.close()
                        feed = None
                elif not _read(key.fd, sinks[key.fd]):
                    selector.unregister(key.fd)
    return False


def drain(sinks: Mapping[int, BoundedBytes], deadline: float) -> None:
    """Read what dead writers left in the pipes; give up at the deadline if one of them still lives."""
    with selectors.PollSelector() as selector:
        for source in sinks:
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if not _read(key.fd, sinks[key.fd]):
                    selector.unregister(key.fd)


def _write(descriptor: int, pending: memoryview) -> memoryview:
    try:
        return pending[os.write(descriptor, pending[:_CHUNK]) :]
    except BlockingIOError:
        return pending
    except BrokenPipeError:  # the command does not read its input: its own business
        return pending[:0]


def _read(descriptor: int, sink: BoundedBytes) -> bool:
    try:
        chunk = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return True
    sink.feed(chunk)
    return bool(chunk)
