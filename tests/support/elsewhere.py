"""A device that is not the CPU, on any machine: tensors that say `meta` and compute, and refuse to meet others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

AWAY = torch.device("meta")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Away(torch.Tensor):
    """Says that it lies elsewhere; its numbers lie in `here`."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Away:
        made: Away = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=AWAY
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return compute(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Sees what is not dispatched: numbers that become tensors on the device `meta`, and so are lost, and `tolist`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.tensor and given.get("device") is not None and torch.device(given["device"]) == AWAY:
            return func(*args, **{**given, "device": "cpu"}).to(AWAY)
        if func is torch.Tensor.tolist and isinstance(args[0], Away):
            return args[0].here.tolist()
        if func is torch.Tensor.__getitem__ and isinstance(args[0], Away) and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]))
        return func(*args, **given)


class _Computed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[None]:
    """Whatever is made on the device `meta` is real and away, in this thread."""
    with _Made(), _Computed():  # type: ignore[no-untyped-call]
        yield


def send(model: torch.nn.Module) -> torch.nn.Module:
    """Move a model away, in place; tied weights stay tied."""
    sent: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None and not isinstance(one, Away):
                made = torch.nn.Parameter(Away(one.detach().clone()), requires_grad=one.requires_grad)
                module._parameters[name] = sent.setdefault(id(one), made)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Away(buffer.clone())
    return model


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute here what was asked for elsewhere.

    Raises:
        RuntimeError: tensors of both places meet.
    """
    found: list[torch.Tensor] = []
    tree_map(lambda one: found.append(one) if isinstance(one, torch.Tensor) else None, (args, kwargs))
    away = [isinstance(one, Away) for one in found]
    if any(one.device == AWAY and not there for one, there in zip(found, away, strict=True)):
        raise NotImplementedError(f"{func} met a tensor whose numbers are lost: it was made unseen")
    indices = func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default
    lone = [one.dim() == 0 or (indices and place > 0) for place, one in enumerate(found)]
    if func not in _MOVES and any(away) and not all(a or b for a, b in zip(away, lone, strict=True)):
        raise RuntimeError(f"{func} met tensors of two devices: {[tuple(one.shape) for one in found]} {away}")
    wanted = kwargs.get("device")
    goes = any(away) if wanted is None else torch.device(wanted) == AWAY
    if func is torch.ops.aten.copy_.default:
        goes = away[0]
    plain = {**tree_map(_here, kwargs), **({"device": torch.device("cpu")} if wanted is not None else {})}
    made = func(*tree_map(_here, args), **plain)
    if func._schema.name.endswith("_") and found and away[0]:
        return found[0]
    return tree_map(lambda one: Away(one) if isinstance(one, torch.Tensor) and goes else one, made)


def _here(one: Any) -> Any:
    return one.here if isinstance(one, Away) else one
