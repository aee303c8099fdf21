"""One connection to a supervisor, and the one thread that reads all of them."""

from __future__ import annotations

import json
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Protocol

from agentgym.errors import SandboxError
from agentgym_sandboxes._messages import PROTOCOL, Ask, Data, Frames, Say, frame

logger = logging.getLogger(__name__)

_SEND_BYTES = 1 << 18


class Wire(Protocol):
    """Bytes to and from a supervisor; nothing here blocks."""

    def fileno(self) -> int:
        """Return the descriptor that says when there is something to receive."""
        ...

    def receive(self) -> bytes | bytearray | None:
        """Return what has arrived; None if nothing has, b"" if the other side is gone."""
        ...

    def send(self, data: memoryview) -> int:
        """Return how much could be sent; BlockingIOError if nothing."""
        ...

    def output(self) -> int:
        """Return the descriptor that says when more can be sent."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


class Listener(Protocol):
    """Whom the answers of one channel belong to; called on the reading thread, so it must not wait."""

    def hear(self, kind: int, payload: bytes) -> None:
        """Take one answer."""
        ...

    def lost(self) -> None:
        """Learn that there will be no more answers."""
        ...


class Waiting:
    """A listener that somebody waits for."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.gone = False

    def hear(self, kind: int, payload: bytes) -> None:  # noqa: ARG002 -- any answer ends the wait
        """Take the one answer."""
        self.payload = payload
        self.ended.set()

    def lost(self) -> None:
        """Stop waiting."""
        self.gone = True
        self.ended.set()


class Link:
    """Frames to and from one supervisor; safe to use from many threads."""

    def __init__(self, hub: Hub, wire: Wire) -> None:
        self._hub = hub
        self._wire = wire
        self._frames = Frames()
        self._lock = threading.Lock()
        self._pending: deque[memoryview] = deque()
        self._listeners: dict[int, Listener] = {}
        self._numbers = count(1)
        self._hello = Waiting()
        self._listeners[0] = self._hello
        self.accept: Callable[[int, int], Listener | None] = lambda _channel, _listener: None
        self.is_lost = False
        hub.add(self, wire)

    def greeting(self, timeout: float) -> None:
        """Wait for the supervisor's first word.

        Raises:
            SandboxError: it did not come, or in another version of the protocol.
        """
        if not self._hello.ended.wait(timeout) or self._hello.gone:
            raise SandboxError("the sandbox's supervisor did not start")
        said = json.loads(self._hello.payload)
        if said["protocol"] != PROTOCOL:
            raise SandboxError(f"the sandbox's supervisor speaks protocol {said['protocol']}, wanted {PROTOCOL}")

    def answers(self, timeout: float) -> bool:
        """Whether the supervisor answers within the time."""
        waiting = Waiting()
        channel = self.open(waiting)
        self.send(Ask.PING, channel)
        answered = waiting.ended.wait(timeout) and not waiting.gone
        self.close_channel(channel)
        return answered

    def open(self, listener: Listener) -> int:
        """Return a new channel whose answers go to `listener`."""
        with self._lock:
            channel = next(self._numbers)
            if not self.is_lost:
                self._listeners[channel] = listener
                return channel
        listener.lost()
        return channel

    def close_channel(self, channel: int) -> None:
        """Hear no more of a channel."""
        with self._lock:
            self._listeners.pop(channel, None)

    def send(self, kind: Ask, channel: int, payload: Data = b"") -> None:
        """Send a request, or queue it behind those that wait; a lost link takes everything and says nothing."""
        with self._lock:
            if self.is_lost:
                return
            self._pending.append(memoryview(frame(kind, channel, payload)))
            if len(self._pending) > 1:
                return
            waits = not self._push()
        if waits:
            self._hub.watch_output(self)

    def hang_up(self) -> None:
        """Close the connection; whoever waits for an answer is told."""
        self._hub.remove(self, self._wire)

    def on_input(self) -> bool:
        """Read what has arrived; False if that was the last (called by the hub)."""
        try:
            data = self._wire.receive()
            for kind, channel, payload in self._frames.feed(data) if data else ():
                self._dispatch(kind, channel, payload)
        except (OSError, ValueError) as error:
            logger.info("a supervisor's connection broke: %s", error)
            return False
        return data != b""

    def on_output(self) -> bool:
        """Send what waits; False if there is still more (called by the hub)."""
        with self._lock:
            return self._push()

    def on_loss(self) -> None:
        """Tell everybody who waits (called by the hub)."""
        with self._lock:
            self.is_lost = True
            listeners = list(self._listeners.values())
            self._listeners.clear()
            self._pending.clear()
        self._wire.close()
        for listener in listeners:
            listener.lost()

    @property
    def output(self) -> int:
        """The descriptor that says when more can be sent."""
        return self._wire.output()

    def _push(self) -> bool:
        try:
            while self._pending:
                data = self._pending[0]
                sent = self._wire.send(data[:_SEND_BYTES])
                if sent < len(data):
                    self._pending[0] = data[sent:]
                else:
                    self._pending.popleft()
        except BlockingIOError:
            return False
        except OSError:  # the reading side will find the same, and tell everybody
            self._pending.clear()
        return True

    def _dispatch(self, kind: int, channel: int, payload: bytes) -> None:
        listener = self._listeners.get(channel)
        if kind == Say.ACCEPT:
            listener = self.accept(channel, int.from_bytes(payload, "little"))
            if listener is None:
                self.send(Ask.KILL, channel)
                return
            with self._lock:
                self._listeners[channel] = listener
        elif listener is not None:
            listener.hear(kind, payload)


class Hub:
    """The thread that reads from every supervisor of a backend."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake_out, self._wake_in = -1, -1
        self._closed = False

    def add(self, link: Link, wire: Wire) -> None:
        """Read from a link from now on."""
        self._do(lambda: self._register(link, wire))

    def remove(self, link: Link, wire: Wire) -> None:
        """Read from a link no more, and close it."""
        done = threading.Event()

        def job() -> None:
            self._lose(wire.fileno(), link)
            done.set()

        if threading.current_thread() is self._thread:
            job()
        elif self._do(job):
            done.wait()
        else:
            link.on_loss()

    def watch_output(self, link: Link) -> None:
        """Send the rest of what a link has to say as soon as it can be sent."""
        self._do(lambda: self._register_output(link))

    def close(self) -> None:
        """End the thread; every link is lost."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            os.write(self._wake_in, b"x")
            thread.join()

    def _do(self, job: Callable[[], None]) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._jobs.append(job)
            if self._thread is None:
                self._wake_out, self._wake_in = os.pipe()
                self._selector.register(self._wake_out, selectors.EVENT_READ, None)
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            os.write(self._wake_in, b"x")
            return True

    def _register(self, link: Link, wire: Wire) -> None:
        self._selector.register(wire.fileno(), selectors.EVENT_READ, link)
        self._handle(wire.fileno(), link, selectors.EVENT_READ)  # what arrived before may be buffered above the socket

    def _register_output(self, link: Link) -> None:
        if link.is_lost or link.on_output():
            return
        fd = link.output
        known = self._selector.get_map().get(fd)
        events = selectors.EVENT_WRITE | (known.events if known else 0)
        (self._selector.modify if known else self._selector.register)(fd, events, link)

    def _lose(self, fd: int, link: Link) -> None:
        for one in {fd, link.output} if not link.is_lost else ():
            if one in self._selector.get_map():
                self._selector.unregister(one)
        if not link.is_lost:
            link.on_loss()

    def _handle(self, fd: int, link: Link, events: int) -> None:
        if events & selectors.EVENT_WRITE and link.on_output():
            left = self._selector.get_map()[fd].events & ~selectors.EVENT_WRITE
            if left:
                self._selector.modify(fd, left, link)
            else:
                self._selector.unregister(fd)
        if events & selectors.EVENT_READ and not link.is_lost and not link.on_input():
            self._lose(fd, link)

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select():
                if key.data is None:
                    os.read(self._wake_out, 4096)
                elif not key.data.is_lost:
                    self._handle(key.fd, key.data, events)
            while self._jobs:
                self._jobs.popleft()()
        for link in self._links():
            link.on_loss()
        self._selector.close()
        os.close(self._wake_out)
        os.close(self._wake_in)

    def _links(self) -> Iterator[Link]:
        yield from {key.data for key in self._selector.get_map().values() if key.data is not None}
