"""Whether a device is there, and how much memory it has left, in a control group too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from agentgym.errors import RecipeError


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version of control groups calls its files."""

    limit: str
    usage: str
    reclaimable: tuple[str, ...]
    """Fields of memory.stat that add up to what the kernel gives back on demand; tmpfs is not among them."""


_V2 = _Files("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def check_device(device: str, ranks: int = 1, rank: int = 0) -> None:
    """Refuse a device that this machine does not have, or that several processes would crowd.

    Args:
        device: of the recipe.
        ranks: processes on this machine; on GPUs each takes one.
        rank: of this one among them.

    Raises:
        RecipeError: saying what is there.
    """
    if not device.startswith("cuda"):
        return
    found, number = torch.cuda.device_count(), torch.device(device).index
    if ranks > 1 and number is not None:
        raise RecipeError(f"{ranks} processes take a GPU each, found trainer.compute.device {device!r}; set it to cuda")
    wanted = max(number or 0, rank)
    if wanted >= found:
        what = "no GPU that torch can use" if not found else f"{found} of them"
        raise RecipeError(
            f"trainer.compute.device: wanted GPU {wanted} ({device}), found {what}; set it to cpu, or take "
            "the recipe's tiny profile, if it has one"
        )


def available_memory(device: str, root: Path = Path("/")) -> int:
    """Return the bytes that can be allocated: on a GPU as the driver says, else as kernel and control groups do.

    Args:
        device: as torch names it.
        root: below which /proc and /sys lie.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what is left in each control group that bounds this process: its own, and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if not controllers:
            yield from _left_up(root / "sys/fs/cgroup", place, _V2)
        elif "memory" in controllers.split(","):
            yield from _left_up(root / "sys/fs/cgroup/memory", place, _V1)


def _left_up(mount: Path, place: str, files: _Files) -> Iterator[int]:
    # Within a container the path may name a group that only the host can see: then the mount itself is the group.
    parts = [one for one in PurePosixPath(place).parts if one not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        left = _left(mount.joinpath(*parts[:depth]), files)
        if left is not None:
            yield left


def _left(group: Path, files: _Files) -> int | None:
    """Return the bytes that a group may still take; None without a limit."""
    try:
        limit = (group / files.limit).read_text(encoding="ascii").strip()
        used = int((group / files.usage).read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - used + sum(int(stat.get(name, 0)) for name in files.reclaimable)
