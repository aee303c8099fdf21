"""The learner's weights as engines take them that hold their own, and the way by file."""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Weights = Iterable[tuple[str, Any]]
"""Names as transformers has them, and whole tensors; it may be read more than once."""
_SHARED = Path("/dev/shm")


class Outline(NamedTuple):
    """A tensor, but for its numbers."""

    name: str
    dtype: Any
    shape: tuple[int, ...]


class WeightSync(Protocol):
    """One way from the learner's tensors to the engine's."""

    async def push(self, weights: Weights) -> None:
        """Replace the engine's weights; it samples nothing meanwhile. The tensors are read until this returns."""
        ...

    async def close(self) -> None:
        """Give back what the way holds."""
        ...


class FileSync:
    """Writes a safetensors file and asks the engine to read it: any device, one machine."""

    def __init__(self, load: Callable[[Path], Awaitable[None]], folder: str | None = None) -> None:
        """Take what makes the engine load a file, and where to write it; by default in memory where there is room."""
        self._load = load
        self._folder = folder

    async def push(self, weights: Weights) -> None:
        """Write, load, remove."""
        weights = list(weights) if isinstance(weights, Iterator) else weights  # they are gone through twice
        folder = self._folder or _memory_for(weights)
        with tempfile.TemporaryDirectory(prefix="agentgym-weights-", dir=folder) as place:
            path = Path(place) / "weights.safetensors"
            await asyncio.to_thread(_write, weights, path)
            await self._load(path)

    async def close(self) -> None:
        """Nothing is held."""


class WholeWeights:
    """A model's tensors, each storage once: sharded ones whole, low-rank adapters added to their layers.

    A layer and its adapters are added up whenever they are read, and only the reader holds the sum: all sums at once
    would be a second copy of the model.
    """

    def __init__(self, model: Any, summed_as: Any = None) -> None:
        """Take what is to be read.

        Args:
            model: the learner's.
            summed_as: the type of what is added up; by default the layer's own.
        """
        from agentgym_trainers.lora import added_up, plain_state

        self._summed_as = summed_as
        self._parts: list[tuple[str, Any, Any]] = []
        seen: set[tuple[int, int]] = set()
        for name, (stored, layer) in plain_state(model).items():
            part: tuple[Any, Any] = stored, layer
            if hasattr(stored, "full_tensor"):
                # All processes must gather it, and all come here; but only one of them may read.
                whole: Any = stored if layer is None else added_up(stored, layer)
                part = whole.full_tensor(), None
            if _place(*part) not in seen:
                seen.add(_place(*part))
                self._parts.append((name, *part))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield names and tensors."""
        from agentgym_trainers.lora import added_up

        for name, stored, layer in self._parts:
            yield name, stored.detach() if layer is None else added_up(stored, layer, self._summed_as)

    def outlines(self) -> list[Outline]:
        """Return what reading will give, without adding anything up."""
        return [
            Outline(name, stored.dtype if layer is None else self._summed_as or stored.dtype, tuple(stored.shape))
            for name, stored, layer in self._parts
        ]


def outlines(weights: Weights) -> list[Outline]:
    """Return what reading weights will give."""
    if isinstance(weights, WholeWeights):
        return weights.outlines()
    return [Outline(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights]


def check_weights(weights: Weights, model: Any) -> list[tuple[str, Any]]:
    """Return the weights if they are a model's.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    from agentgym_trainers.lora import plain_state

    given = list(weights)
    own = plain_state(model)
    places = {name: _place(*one) for name, one in own.items()}
    strange = [name for name, _ in given if name not in own]
    # A tied tensor has two names, and either will do.
    told = {places[name] for name, _ in given if name in own}
    absent = [name for name, place in places.items() if place not in told]
    shapes = [name for name, tensor in given if name in own and tensor.shape != own[name][0].shape]
    for what, names in (("unknown", strange), ("missing", absent), ("of another shape", shapes)):
        if names:
            raise ValueError(f"the weights do not fit {type(model).__name__}: {names[0]} is {what}")
    return given


def _place(stored: Any, layer: Any) -> tuple[int, int]:
    """Return what names of one and the same tensor have in common."""
    return id(layer), stored.data_ptr()


def frozen_copy(model: Any, dtype: Any = None) -> Any:
    """Return a copy that is not trained.

    Args:
        model: on its device.
        dtype: of the copied parameters; None keeps theirs. Buffers keep theirs always: in bfloat16 the frequencies of
            rotary embeddings would tell far positions wrong.
    """
    import torch

    parameters = {
        id(one): torch.nn.Parameter(one.detach().to(dtype or one.dtype, copy=True), requires_grad=False)
        for one in model.parameters()
    }
    return copy.deepcopy(model, parameters)


def copy_weights(model: Any, weights: Weights) -> None:
    """Copy tensors over a model's own.

    Raises:
        ValueError: the model has no such tensor, or of another shape; nothing was copied.
    """
    import torch

    own, given = model.state_dict(), list(weights)
    for name, tensor in given:
        if name not in own or own[name].shape != tensor.shape:
            what = "unknown" if name not in own else "of another shape"
            raise ValueError(f"the weights do not fit {type(model).__name__}: {name} is {what}")
    with torch.no_grad():
        for name, tensor in given:
            own[name].copy_(tensor)


def _memory_for(weights: Weights) -> Path | None:
    """Return the folder of files in memory, where there is one and the weights fit in with room to spare."""
    size = sum(prod(one.shape) * one.dtype.itemsize for one in outlines(weights))
    return _SHARED if _SHARED.is_dir() and shutil.disk_usage(_SHARED).free > 1.2 * size + 2**20 else None


def _write(weights: Weights, path: Path) -> None:
    from safetensors.torch import save_file

    # Tied tensors share memory, which the format refuses; vLLM ties them again by the model's configuration.
    kept: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in weights:
        # Where something kept lies, nothing else does; where something was read, the next sum may.
        one = tensor.detach().to("cpu").contiguous()
        if one.data_ptr() not in seen:
            seen.add(one.data_ptr())
            kept[name] = one
    save_file(kept, path)
