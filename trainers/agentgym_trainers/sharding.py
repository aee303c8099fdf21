"""FSDP2: every process keeps a part of each weight, gradient and moment, and gathers a layer where it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from agentgym_trainers.recompute import layers_of
from agentgym_trainers.world import World


def shard(network: nn.Module, world: World, device: str) -> None:
    """Shard a network in place, layer by layer; its forward pass and gradients stay those of the whole.

    Gradients are averaged over the processes, so a loss that is to be summed counts `world.size` times.
    """
    mesh = init_device_mesh(device, (world.size,))
    for layer in layers_of(network):
        fully_shard(layer, mesh=mesh)
    # Kept whole after a forward pass without gradients, its weights would miss the next optimizer step.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, whether it is sharded or not; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state with whole tensors, the same for any number of processes."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take over a state of whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: like(tensor, own.get(name)) for name, tensor in state.items()})


def like(tensor: Tensor, other: Tensor | None) -> Any:
    """Return a whole tensor sharded as another of its shape is."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    with torch.no_grad():
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
