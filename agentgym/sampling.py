"""Which task next, and the seeds that everything random derives from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np

from agentgym.errors import TaskError


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and their order, the same on every machine.

    >>> derive_seed(0, "task", 1) == derive_seed(0, "task", 1)
    True
    >>> derive_seed(0, "task", 1) == derive_seed(0, "task", 2)
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Sampler(Protocol):
    """Chooses the tasks of the next step; checkpointed with the run."""

    def next(self, count: int) -> list[str]:
        """Return the ids of the next tasks."""
        ...

    def update(self, pass_rates: Mapping[str, float]) -> None:
        """Learn the pass rate of each task just tried."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on from here."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        ...


class ShuffledSampler:
    """Every task once per epoch, in an order that depends on the seed and the epoch.

    >>> sampler = ShuffledSampler(["a", "b", "c"], seed=0)
    >>> sorted(sampler.next(2) + sampler.next(1))
    ['a', 'b', 'c']
    """

    def __init__(self, task_ids: Sequence[str], seed: int) -> None:
        if not task_ids:
            raise TaskError("there is no task to sample from; check the recipe's train split")
        self._ids = list(task_ids)
        self._seed = seed
        self._epoch = 0
        self._position = 0

    def next(self, count: int) -> list[str]:
        """Return the ids of the next tasks, going on into the next epoch where this one ends."""
        picked: list[str] = []
        while len(picked) < count:
            order = np.random.default_rng(derive_seed(self._seed, "epoch", self._epoch)).permutation(len(self._ids))
            part = order[self._position : self._position + count - len(picked)]
            picked += [self._ids[index] for index in part]
            self._position += len(part)
            if self._position >= len(self._ids):
                self._epoch, self._position = self._epoch + 1, 0
        return picked

    def update(self, pass_rates: Mapping[str, float]) -> None:
        """Every task keeps its turn, whatever its pass rate."""

    def state_dict(self) -> dict[str, Any]:
        """Return epoch and position, and how many tasks they refer to."""
        return {"epoch": self._epoch, "position": self._position, "tasks": len(self._ids)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            TaskError: if the number of tasks has changed since.
        """
        if state["tasks"] != len(self._ids):
            raise TaskError(
                f"the checkpoint was sampling from {state['tasks']} tasks, the recipe now has {len(self._ids)}; "
                "resume with the same tasks or start a new run"
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
