"""vLLM, in its own processes on this machine's CPU, keeps the contract of engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from inspect import iscoroutinefunction, signature
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_contract import PROMPTS, EngineContract, Subject, adapt, contract_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from weight_transfer import RecordingSender, ToldEngine

from agentgym.errors import RecipeError
from agentgym_trainers.engines.transfer import LoopClient, Outgoing, TransferSync, connect_vllm, source_of
from agentgym_trainers.engines.weights import WholeWeights

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM; `make test-vllm` installs its CPU build"),
    pytest.mark.filterwarnings("default"),  # of vLLM and what it imports
    pytest.mark.timeout(600),
]


BLOCK = 128
"""Tokens that vLLM's CPU build keeps together."""


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    from agentgym_trainers.engines.vllm import VLLMEngine

    model = contract_model(tied=True)  # where vLLM's CPU build keeps a stale packed head
    engine = VLLMEngine(model, max_batch=32)

    def running() -> int:
        return int(engine._llm.output_processor.get_num_unfinished_requests()) if engine._llm else 0

    made = Subject(engine, model, running=running)
    with made.runner:
        yield made
        made.run(made.engine.close())


def test_a_turn_computes_only_what_is_new_until_weights_change(subject: Subject) -> None:
    engine: Any = subject.engine
    prompt = PROMPTS[2] * 40

    def hits(prompt: list[int]) -> tuple[int, list[int]]:
        before = engine.prefix_hits
        made = subject.run(subject.ask(prompt))
        subject.exact(prompt, made)
        return engine.prefix_hits - before, [*prompt, *made.ids, 5, 6, 7]

    first, context = hits([9, *prompt])
    second, context = hits(context)
    subject.run(engine.update_weights())
    third, _ = hits(context)
    assert (first, third) == (0, 0)
    assert len(prompt) - BLOCK < second <= len(prompt) + 13


class TestVLLMEngine(EngineContract):
    pass


def test_heads_that_its_kernels_do_not_know_are_refused() -> None:
    from agentgym_trainers.engines.vllm import VLLMEngine

    shape = contract_model(tied=True).config.to_dict() | {"hidden_size": 48, "head_dim": 24}
    model = Qwen2ForCausalLM(Qwen2Config(**shape))
    made = Subject(VLLMEngine(model), model)
    with made.runner:
        with pytest.raises(RecipeError, match=r"heads of 32, .* numbers, found 24"):
            made.run(made.ask([3]))
        made.run(made.engine.close())


def test_vllms_own_sender_tells_the_engine_what_comes_and_sends_what_was_pushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of it runs but the broadcast between GPUs, and the meeting before it."""
    from vllm.distributed.weight_transfer import nccl_engine

    sent: list[list[tuple[str, Any]]] = []

    def broadcast(sender: Any, source: Any, meta: Any) -> None:
        sent.append(list(sender._checked_iter(source, meta)))

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda _: None)
    monkeypatch.setattr(nccl_engine.NCCLTrainerWeightTransferEngine, "_broadcast", broadcast)
    engine, place = ToldEngine(), {"master_address": "127.0.0.1", "master_port": 29500, "world_size": 2}
    rounds = [[("a", torch.zeros(2, 3)), ("b", torch.ones(4, dtype=torch.bfloat16))], [("a", torch.ones(2, 3))]]

    async def push() -> None:
        client = LoopClient(engine, asyncio.get_running_loop())
        sync = TransferSync(partial(connect_vllm, transport="nccl", client=client, options=place))
        for weights in rounds:
            await sync.push(weights)
        await sync.close()

    asyncio.run(push())
    assert sent == rounds
    assert [what for what, _ in engine.told] == ["init", *["start", "update", "finish"] * 2]
    assert engine.told[0][1].items() >= {**place, "rank_offset": 1}.items()
    updates = [info for what, info in engine.told if what == "update"]
    assert [one["names"] for one in updates] == [["a", "b"], ["a"]]
    assert updates[0]["shapes"] == [[2, 3], [4]]
    assert updates[0]["dtype_names"] == ["float32", "bfloat16"]


def test_vllm_is_told_of_adapted_layers_what_it_then_reads() -> None:
    outgoing = Outgoing()
    outgoing.pairs = WholeWeights(adapt(contract_model(tied=True)), torch.bfloat16)
    source = source_of(outgoing)
    told = [(one.name, one.dtype, one.shape) for one in source.metadata()]
    assert told == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
    assert {dtype for _, dtype, _ in told} == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize(
    ("transport", "options", "summed_as"),
    [
        ("ipc", {}, torch.float32),
        ("ipc", {"dtype": "bfloat16"}, torch.bfloat16),
        ("ipc", {"dtype": "auto"}, None),
        ("nccl", {"dtype": "bfloat16"}, None),
    ],
)
def test_where_vllm_holds_all_weights_at_once_adapted_layers_come_in_its_own_type(
    monkeypatch: pytest.MonkeyPatch, transport: str, options: dict[str, Any], summed_as: torch.dtype | None
) -> None:
    from agentgym_trainers.engines.vllm import VLLMEngine

    monkeypatch.setattr("agentgym_trainers.engines.vllm.pick_transport", lambda *_: transport)  # as with GPUs
    assert VLLMEngine(contract_model(tied=True), **options)._summed_as == summed_as


def test_what_stands_in_for_vllm_in_tests_of_transfers_has_its_methods() -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerWeightTransferEngine
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine
    from vllm.v1.engine.async_llm import AsyncLLM

    def takes(owner: Any, name: str) -> list[tuple[str, Any]]:
        return [(one.name, one.default) for one in signature(getattr(owner, name)).parameters.values()]

    assert issubclass(LoopClient, VLLMWeightSyncClient)
    for sender in (IPCTrainerWeightTransferEngine, NCCLTrainerWeightTransferEngine):
        for name in ("send_weights", "shutdown"):
            assert takes(RecordingSender, name) == takes(sender, name)
    for name in [one for one in vars(ToldEngine) if not one.startswith("_")]:
        assert takes(ToldEngine, name) == takes(AsyncLLM, name)
        assert iscoroutinefunction(getattr(AsyncLLM, name))


def test_an_exported_run_is_loaded_by_vllm_and_says_what_transformers_says(lab: Any, tmp_path: Path) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    from agentgym_trainers.native import NativeTrainer

    shape = {"vocab_size": 320, "hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 96}
    trainer = {
        "model": {**shape, "context_length": 256},
        "sft": {"steps": 4, "batch_size": 8, "demonstrations": 16},
        "policy": {"steps": 1, "tasks_per_step": 2, "attempts": 2},
    }
    run = lab.train(trainer=trainer, tasks={"train": 20, "test": 2})
    NativeTrainer().export(run.path, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "12+34"}], add_generation_prompt=True)
    ids = list(prompt["input_ids"] if isinstance(prompt, Mapping) else prompt)
    said = model.generate(torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, len(ids) :]
    llm = LLM(str(tmp_path / "model"), dtype="float32", enforce_eager=True, max_model_len=128)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    try:
        (output,) = llm.generate([TokensPrompt(prompt_token_ids=ids)], params, use_tqdm=False)
    finally:
        llm.llm_engine.engine_core.shutdown()
    assert list(output.outputs[0].token_ids) == said.tolist()
