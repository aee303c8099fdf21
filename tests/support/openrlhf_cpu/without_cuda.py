"""Replaces, module by module as they are imported, what OpenRLHF, DeepSpeed and vLLM lack without CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Cpu(str):
    """The device that every CUDA query names: "cpu" where it is used, and "0" where its number is formatted."""

    def __format__(self, spec: str) -> str:
        return "0"


def cuda_is_the_cpu(_: ModuleType) -> None:
    """Let the queries that OpenRLHF makes succeed."""
    import torch

    cuda: Any = torch.cuda
    cuda.current_device = lambda: Cpu("cpu")
    cuda.current_stream = lambda *_: None
    cuda.synchronize = lambda *_: None
    cuda.empty_cache = lambda: None
    cuda.set_device = lambda *_: None


def weights_by_tcp(module: ModuleType) -> None:
    """Broadcast weights through the store that the NCCL group would be made from."""
    cuda_is_the_cpu(module)

    class Group:
        def __init__(self, host: str, port: int, rank: int, size: int) -> None:
            from vllm.distributed.utils import StatelessProcessGroup

            self._rank = rank
            self._store = StatelessProcessGroup.create(host=host, port=port, rank=rank, world_size=size)

        def broadcast(self, tensor: Any, src: int, stream: object = None) -> None:
            sent = self._store.broadcast_obj(tensor.detach() if self._rank == src else None, src)
            if self._rank != src:
                tensor.copy_(sent)

    def make(host: str, port: int, rank: int, size: int, device: object) -> Group:
        return Group(host, port, rank, size)

    module.stateless_init_process_group = make  # type: ignore[attr-defined]


def meshes_on_the_cpu(module: ModuleType) -> None:
    """Make DeepSpeed's device mesh of CPUs."""
    original = module.init_device_mesh
    module.init_device_mesh = lambda _, *given, **named: original("cpu", *given, **named)  # type: ignore[attr-defined]


def whole_reloads(module: ModuleType) -> None:
    """Collect the weights of an update, and load them with the last."""

    def update_weight(self: Any, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> None:
        import torch

        from agentgym_trainers.engines.vllm_worker import WeightFiles

        weight = torch.empty(shape, dtype=dtype)
        self._model_update_group.broadcast(weight, src=0)
        held = self.__dict__.setdefault("_held_weights", {})
        held[name] = weight
        if empty_cache:  # what OpenRLHF says with the last one
            self.model_runner.reload_weights(weights_iterator=iter(held.items()))
            WeightFiles.repack_tied_head(self)
            held.clear()

    module.WorkerWrap.update_weight = update_weight


def no_shared_memory_kernel(module: ModuleType) -> None:
    """Leave collectives to Gloo."""
    module.build_shm_op = lambda: None  # type: ignore[attr-defined]


def plain_adam(module: ModuleType) -> None:
    """Take PyTorch's AdamW for the fused kernel."""
    import torch

    class FusedAdam(torch.optim.AdamW):
        def __init__(self, params: Any, adam_w_mode: bool = True, **named: Any) -> None:
            if not adam_w_mode:
                raise RuntimeError("only decoupled weight decay is replaced on a CPU")
            super().__init__(params, **named)

    module.FusedAdam = FusedAdam  # type: ignore[attr-defined]


PATCHES: Mapping[str, Callable[[ModuleType], None]] = {
    "openrlhf.utils.distributed_util": weights_by_tcp,
    "openrlhf.utils.deepspeed.deepspeed": meshes_on_the_cpu,
    "openrlhf.trainer.ray.vllm_worker_wrap": whole_reloads,
    "deepspeed.comm.torch": no_shared_memory_kernel,
    "deepspeed.ops.adam": plain_adam,
}


class Patched(Loader):
    """Runs a module as its own loader does, and then its patch."""

    def __init__(self, loader: Loader, patch: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:  # what else tools ask of a loader, such as a module's source
        return getattr(self._loader, name)


class Finder(MetaPathFinder):
    """Finds the modules that have a patch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in PATCHES else None
        if spec is not None and spec.loader is not None:
            spec.loader = Patched(spec.loader, PATCHES[fullname])
        return spec


def install() -> None:
    """Watch for the modules that have a patch."""
    sys.meta_path.insert(0, Finder())
