"""The processes that torchrun started: each samples its share of the tasks, and all take the same steps."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agentgym.errors import RecipeError
from agentgym_trainers.devices import check_device

Item = TypeVar("Item")

_PATIENCE = timedelta(days=1)
"""Processes that are done wait for the one with the slowest episodes, whose limits are the recipe's; that one of them
has died, torchrun notices long before."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among its equals; alone by default."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str) -> Self:
        """Meet the others that torchrun's environment variables tell of; on GPUs each process takes one.

        Raises:
            RecipeError: this machine has no such device.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            check_device(device)
            return cls()
        here = int(os.environ["LOCAL_RANK"])
        check_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])), here)
        if device.startswith("cuda"):
            torch.cuda.set_device(here)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Part from the others; what was sharded among them must be held by nobody any more."""
        if self.size > 1:
            dist.destroy_process_group()
            # Sharded modules lie in reference cycles and hold the group, whose threads must end before Python does.
            gc.collect()

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def refuse_overlap(self, max_staleness: int) -> None:
        """Refuse rollouts that overlap training where several processes must take the same steps.

        Raises:
            RecipeError: they would.
        """
        if self.size > 1 and max_staleness:
            raise RecipeError(
                f"{self.size} processes train in lock-step, found trainer.schedule.max_staleness {max_staleness}; "
                "set it to 0, or train in one process"
            )

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of what all have."""
        return list(items[self.rank :: self.size])

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """Return everybody's items, in the order that `share` took them from."""
        if self.size == 1:
            return list(items)
        shares: list[Any] = [None] * self.size
        dist.all_gather_object(shares, list(items))
        return [shares[place % self.size][place // self.size] for place in range(sum(map(len, shares)))]

    def agree(self, value: Item) -> Item:
        """Return the first process's value."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def total(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes, which know the same names."""
        if self.size == 1 or not metrics:
            return dict(metrics)
        values = self.sum(torch.tensor(list(metrics.values()), dtype=torch.float64))
        return dict(zip(metrics, values.tolist(), strict=True))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor on the CPU."""
        if self.size > 1:
            dist.all_reduce(values)
        return values
