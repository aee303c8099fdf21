"""The learner's weights as engines take them that hold their own, and the way by file."""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

Weights = Iterable[tuple[str, Any]]
"""Names as transformers has them, and whole tensors."""
_SHARED = Path("/dev/shm")


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
        given = list(weights)
        with tempfile.TemporaryDirectory(prefix="agentgym-weights-", dir=self._folder or _memory_for(given)) as place:
            path = Path(place) / "weights.safetensors"
            await asyncio.to_thread(_write, given, path)
            await self._load(path)

    async def close(self) -> None:
        """Nothing is held."""


def whole_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield a model's tensors, each storage once: sharded ones whole, low-rank adapters added to their layers."""
    seen: set[int] = set()
    for name, tensor in _plain_state(model).items():
        gather = getattr(tensor, "full_tensor", None)
        whole = (gather() if callable(gather) else tensor).detach()
        if whole.data_ptr() not in seen:
            seen.add(whole.data_ptr())
            yield name, whole


def check_weights(weights: Weights, model: Any) -> list[tuple[str, Any]]:
    """Return the weights if they are a model's.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    given = list(weights)
    own = _plain_state(model)
    strange = [name for name, _ in given if name not in own]
    # A tied tensor has two names, and either will do.
    told = {own[name].data_ptr() for name, _ in given if name in own}
    absent = [name for name, tensor in own.items() if tensor.data_ptr() not in told]
    shapes = [name for name, tensor in given if name in own and tensor.shape != own[name].shape]
    for what, names in (("unknown", strange), ("missing", absent), ("of another shape", shapes)):
        if names:
            raise ValueError(f"the weights do not fit {type(model).__name__}: {names[0]} is {what}")
    return given


def _plain_state(model: Any) -> dict[str, Any]:
    from agentgym_trainers.lora import has_lora, merged_state

    return merged_state(model) if has_lora(model) else dict(model.state_dict())


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
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in weights)
    return _SHARED if _SHARED.is_dir() and shutil.disk_usage(_SHARED).free > 1.2 * size + 2**20 else None


def _write(weights: Weights, path: Path) -> None:
    from safetensors.torch import save_file

    # Tied tensors share memory, which the format refuses; vLLM ties them again by the model's configuration.
    kept: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in weights:
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach().to("cpu").contiguous()
    save_file(kept, path)
