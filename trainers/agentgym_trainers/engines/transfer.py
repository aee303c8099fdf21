"""vLLM's own ways to move weights from GPU to GPU, and which of all ways leads from a learner to a vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

from agentgym.errors import AgentgymError, InfrastructureError, RecipeError
from agentgym_trainers.engines.weights import Weights, outlines

Transport = Literal["file", "ipc", "nccl"]
_WANTS = {"ipc": "vLLM on the learner's GPU and on no other", "nccl": "the learner on a GPU that vLLM does not take"}


def pick_transport(wanted: Transport | Literal["auto"], learner: Any, workers: int, ranks: int = 1) -> Transport:
    """Return how weights travel to a vLLM that this process starts: as the recipe says, else the shortest way.

    Args:
        wanted: by the recipe.
        learner: the `torch.device` of its weights.
        workers: of vLLM; each takes one of the visible GPUs, from the first on.
        ranks: processes that train together.

    Raises:
        RecipeError: no weights would arrive.
    """
    if ranks > 1:
        # Nor would it come up: where torchrun has set its environment, no process group of vLLM's finds its store.
        raise RecipeError(
            f"the engine vllm wants one process that trains, found {ranks}, all of which would start it on the same "
            "devices; take vllm-server or hf, or train in one process"
        )
    shortest: Transport = "file"  # where vLLM's GPUs are the learner's and more, neither of the others works
    if learner.type == "cuda" and learner.index >= workers:
        shortest = "nccl"
    elif learner.type == "cuda" and workers == 1:
        shortest = "ipc"
    if wanted in ("auto", shortest):
        return shortest
    if wanted == "file":
        return wanted
    taken = "GPU 0" if workers == 1 else f"GPUs 0 to {workers - 1}"
    place = f"{learner} and vLLM on {taken}" if learner.type == "cuda" else learner
    raise RecipeError(
        f"transport {wanted} wants {_WANTS[wanted]}, found the learner on {place}; leave transport out, "
        f"which takes {shortest} here"
    )


def check_transport(wanted: Transport, learner: Any, ranks: int = 1) -> None:
    """Refuse a way to a server elsewhere on which no weights would arrive.

    Args:
        wanted: by the recipe.
        learner: the `torch.device` of its weights.
        ranks: processes that train together.

    Raises:
        RecipeError: this is one.
    """
    if wanted == "file":
        return
    if learner.type != "cuda":
        raise RecipeError(f"transport {wanted} wants the learner on a GPU, found it on {learner}; set it to file")
    if ranks > 1:
        raise RecipeError(
            f"transport {wanted} wants one process that trains, found {ranks}; set it to file, or train in one process"
        )


def process_count() -> int:
    """Return how many processes train together, this one included."""
    import torch.distributed as dist

    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 1


async def once_for_all(work: Callable[[], Awaitable[None]]) -> None:
    """Do something in the first of the processes that train together, when all have come here; what fails fails in all.

    Raises:
        InfrastructureError: it failed.
        RecipeError: it failed, and by the recipe.
    """
    if process_count() == 1:
        await work()
        return
    import torch.distributed as dist

    await asyncio.to_thread(dist.barrier)
    told: list[AgentgymError | None] = [None]
    if dist.get_rank() == 0:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 -- the others wait, whatever it is
            kind = RecipeError if isinstance(error, RecipeError) else InfrastructureError
            told = [kind(str(error))]
    await asyncio.to_thread(dist.broadcast_object_list, told)
    if told[0] is not None:
        raise told[0]


class Outgoing:
    """Weights on their way; a sender reads them anew at every transfer."""

    def __init__(self) -> None:
        self.pairs: Weights = []


class Sender(Protocol):
    """vLLM's trainer side of a transfer, once connected."""

    def send_weights(self) -> None:
        """Send what is on its way, and wait until the engine has it."""
        ...

    def shutdown(self) -> None:
        """Leave the process group."""
        ...


class TransferSync:
    """vLLM's own weight transfer: `ipc` hands over CUDA memory on one GPU, `nccl` broadcasts between several.

    The calls of vLLM's trainer side block, and its NCCL side calls back while it sends, so all of it runs in a thread.
    """

    def __init__(self, connect: Callable[[Outgoing], Sender]) -> None:
        """Take what connects to the engine; it is called with the first weights, which it may read."""
        self._connect = connect
        self._outgoing = Outgoing()
        self._sender: Sender | None = None
        self._device: Any = None

    async def push(self, weights: Weights) -> None:
        """Send every tensor."""
        await asyncio.to_thread(self._push, weights)

    async def close(self) -> None:
        """Leave the process group."""
        sender, self._sender = self._sender, None
        if sender is not None:
            await asyncio.to_thread(self._shut, sender)

    def _push(self, weights: Weights) -> None:
        weights = list(weights) if isinstance(weights, Iterator) else weights  # they are gone through twice
        self._device = next(iter(weights))[1].device
        self._outgoing.pairs = weights
        try:
            with _on(self._device):
                if self._sender is None:
                    self._sender = self._connect(self._outgoing)
                self._sender.send_weights()
        finally:
            self._outgoing.pairs = []

    def _shut(self, sender: Sender) -> None:
        with _on(self._device):
            sender.shutdown()


def connect_vllm(
    outgoing: Outgoing, *, transport: Literal["ipc", "nccl"], client: Any, options: dict[str, Any] | None = None
) -> Sender:
    """Meet vLLM's workers, on the current GPU.

    Args:
        outgoing: holds the first weights.
        transport: what the engine was started for.
        client: of vLLM's weight-sync protocol.
        options: of vLLM's trainer side: for nccl master_address, master_port and world_size.
    """
    if transport == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo as Info
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine as Trainer
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo as Info
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine as Trainer
    made: Sender = Trainer.trainer_init(Info(rank=0, **(options or {})), client=client, source=source_of(outgoing))
    return made


def source_of(outgoing: Outgoing) -> Any:
    """Return vLLM's view of weights on their way."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Source(WeightSource):  # type: ignore[misc]
        def metadata(self) -> list[Any]:
            return [ParamMeta(*one) for one in outlines(outgoing.pairs)]

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            return iter(outgoing.pairs)

    return Source()


class LoopClient:
    """vLLM's weight-sync protocol over an `AsyncLLM` that lives on an event loop of another thread."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Begin: both sides learn how they will speak."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._wait(self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))

    def start_weight_update(self) -> None:
        """Announce tensors."""
        self._wait(self._engine.start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        """Say which tensors come."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._wait(self._engine.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the new tensors to use."""
        self._wait(self._engine.finish_weight_update(weight_version))

    def shutdown_weight_transfer_engine(self) -> None:
        """Part."""
        self._wait(self._engine.shutdown_weight_transfer_engine())

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _on(device: Any) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the thread's own: every thread begins on the first one."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
