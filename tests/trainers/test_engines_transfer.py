"""Weights take a way that leads from the learner's GPU to vLLM's, or a sentence says why none does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_contract import contract_model
from weight_transfer import RecordingSender

from agentgym.errors import RecipeError
from agentgym_trainers.engines.transfer import TransferSync, check_transport, pick_transport
from agentgym_trainers.engines.vllm_server import VLLMServerEngine

CPU, FIRST, SECOND = (torch.device(one) for one in ("cpu", "cuda:0", "cuda:1"))


@pytest.mark.parametrize(
    ("learner", "workers", "shortest", "others"),
    [
        pytest.param(CPU, 1, "file", [], id="cpu"),
        pytest.param(FIRST, 1, "ipc", ["file"], id="one-gpu"),
        pytest.param(SECOND, 1, "nccl", ["file"], id="a-gpu-each"),
        pytest.param(torch.device("cuda:4"), 4, "nccl", ["file"], id="several-and-one"),
        pytest.param(FIRST, 2, "file", [], id="shared-first"),
        pytest.param(SECOND, 2, "file", [], id="shared-last"),
    ],
)
def test_weights_take_the_shortest_way_there_is_and_others_where_they_lead_there(
    learner: torch.device, workers: int, shortest: Any, others: list[Any]
) -> None:
    assert pick_transport("auto", learner, workers) == shortest
    ways: list[Any] = [shortest, *others]
    for wanted in ways:
        assert pick_transport(wanted, learner, workers) == wanted
    impossible: set[Any] = {"ipc", "nccl"} - {*ways}
    for wanted in impossible:
        with pytest.raises(RecipeError, match=rf"transport {wanted} wants .* leave transport out, .* takes {shortest}"):
            pick_transport(wanted, learner, workers)


@pytest.mark.parametrize(
    ("wanted", "learner", "workers", "sentence"),
    [
        ("nccl", FIRST, 1, "wants the learner on a GPU that vLLM does not take, found the learner on cuda:0 and vLLM"),
        ("ipc", SECOND, 1, "on the learner's GPU and on no other, found the learner on cuda:1 and vLLM on GPU 0;"),
        ("ipc", FIRST, 2, "found the learner on cuda:0 and vLLM on GPUs 0 to 1;"),
        ("ipc", CPU, 1, "found the learner on cpu; leave transport out, which takes file here"),
    ],
)
def test_what_lies_where_is_told(wanted: Any, learner: torch.device, workers: int, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        pick_transport(wanted, learner, workers)


@pytest.mark.parametrize("wanted", ["auto", "file", "ipc", "nccl"])
@pytest.mark.parametrize("learner", [CPU, FIRST, SECOND])
def test_several_processes_start_no_vllm_of_their_own(wanted: Any, learner: torch.device) -> None:
    with pytest.raises(RecipeError, match=r"wants one process that trains, found 2, .* take vllm-server or hf, or"):
        pick_transport(wanted, learner, 1, ranks=2)


@pytest.mark.parametrize("wanted", ["ipc", "nccl"])
def test_a_server_gets_weights_by_file_from_a_cpu_and_from_several_processes(wanted: Any) -> None:
    for learner, ranks in ((CPU, 1), (CPU, 2), (SECOND, 2)):
        check_transport("file", learner, ranks)
    check_transport(wanted, SECOND)
    with pytest.raises(RecipeError, match=f"transport {wanted} wants the learner on a GPU, found it on cpu; set it to"):
        check_transport(wanted, CPU)
    with pytest.raises(RecipeError, match=f"transport {wanted} wants one process that trains, found 2; set it to file"):
        check_transport(wanted, SECOND, ranks=2)
    with pytest.raises(RecipeError, match="wants the learner on a GPU"):
        VLLMServerEngine(contract_model(tied=True), url="http://127.0.0.1:1", transport=wanted)


def pushed(connect: Any, *rounds: list[tuple[str, Any]]) -> TransferSync:
    """Push one after another, and close twice."""

    async def push() -> TransferSync:
        sync = TransferSync(connect)
        try:
            for weights in rounds:
                await sync.push(weights)
        finally:
            await sync.close()
            await sync.close()
        return sync

    return asyncio.run(push())


def test_every_push_sends_its_own_weights_through_one_connection() -> None:
    made: list[RecordingSender] = []
    first, second = [("a", torch.zeros(1)), ("b", torch.ones(2))], [("a", torch.ones(1))]

    def connect(outgoing: Any) -> RecordingSender:
        assert outgoing.pairs == first
        made.append(RecordingSender(outgoing))
        return made[-1]

    pushed(connect, first, second)
    (sender,) = made
    assert sender.sent == [first, second]
    assert threading.main_thread() not in sender.threads
    assert not sender.open


def test_a_transfer_that_fails_says_so_keeps_no_weights_and_is_closed() -> None:
    made: list[RecordingSender] = []

    def connect(outgoing: Any) -> RecordingSender:
        made.append(RecordingSender(outgoing))
        return made[-1]

    with pytest.raises(RuntimeError, match="the engine took no weights"):
        pushed(connect, [("bad", torch.zeros(1))])
    assert made[0].outgoing.pairs == []
    assert not made[0].open


def test_all_of_a_transfer_happens_on_the_gpu_that_holds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only which GPU is current is made up; a new thread's is the first."""
    current = threading.local()
    found: list[Any] = []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        before, current.device = getattr(current, "device", FIRST), device
        yield
        current.device = before

    class Noting(RecordingSender):
        def __init__(self, outgoing: Any) -> None:
            found.append(current.device)
            super().__init__(outgoing)

        def send_weights(self) -> None:
            found.append(current.device)

        def shutdown(self) -> None:
            found.append(current.device)

    monkeypatch.setattr(torch.cuda, "device", on)
    pushed(Noting, [("a", SimpleNamespace(device=SECOND))])
    assert found == [SECOND] * 3
