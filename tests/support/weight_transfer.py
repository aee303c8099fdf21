"""The other side of a weight transfer, where there is no GPU: what an engine is told, and what a sender sends."""

from __future__ import annotations

import threading
from typing import Any

from agentgym_trainers.engines.transfer import Outgoing


class RecordingSender:
    """Keeps what it sent, and from which thread; vLLM's trainer side has the same two methods."""

    def __init__(self, outgoing: Outgoing) -> None:
        """Take what is read at each transfer."""
        self.outgoing = outgoing
        self.sent: list[list[tuple[str, Any]]] = []
        self.threads: list[threading.Thread] = []
        self.open = True

    def send_weights(self) -> None:
        """Read what is on its way; nothing called `bad` is sent."""
        self.threads.append(threading.current_thread())
        if any(name == "bad" for name, _ in self.outgoing.pairs):
            raise RuntimeError("the engine took no weights")
        self.sent.append(list(self.outgoing.pairs))

    def shutdown(self) -> None:
        """Leave."""
        assert self.open
        self.open = False


class ToldEngine:
    """Keeps what it is told; `AsyncLLM` has the same methods of weight transfer."""

    def __init__(self) -> None:
        """Begin with nothing told."""
        self.told: list[tuple[str, Any]] = []

    async def init_weight_transfer_engine(self, request: Any) -> None:
        """Hear how weights will come."""
        self.told.append(("init", request.init_info))

    async def shutdown_weight_transfer_engine(self) -> None:
        """Hear that none will."""
        self.told.append(("shutdown", None))

    async def start_weight_update(self) -> None:
        """Hear that weights come."""
        self.told.append(("start", None))

    async def update_weights(self, request: Any) -> None:
        """Hear which."""
        self.told.append(("update", request.update_info))

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Hear that all have come."""
        self.told.append(("finish", weight_version))
