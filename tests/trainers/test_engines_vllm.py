"""vLLM, in its own processes on this machine's CPU, keeps the contract of engines and trains."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from engine_contract import EngineContract, Subject, contract_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from agentgym.errors import RecipeError

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM; `make test-vllm` installs its CPU build"),
    pytest.mark.filterwarnings("default"),  # of vLLM and what it imports
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    from agentgym_trainers.engines.vllm import VLLMEngine

    model = contract_model(tied=True)  # where vLLM's CPU build keeps a stale packed head
    made = Subject(VLLMEngine(model, max_batch=32), model)
    with made.runner:
        yield made
        made.run(made.engine.close())


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


def test_the_native_trainer_takes_two_steps_with_vllm(lab: Any) -> None:
    run = lab.train(
        trainer={
            "model": {
                "vocab_size": 320, "hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 96,
                "context_length": 256,
            },
            "engine": {"name": "vllm"},
            "sft": {"steps": 20, "demonstrations": 64},
            "policy": {
                "steps": 2, "tasks_per_step": 4, "attempts": 4, "optim": {"lr": 1e-2},
                "loss_options": {"kl_weight": 0.01},  # so that groups without variance are trained on as well
            },
        },
        tasks={"test": 4},
    )  # fmt: skip
    steps = [line for line in run.metrics() if "train/drift" in line]
    assert len(steps) == 2
    # What vLLM says it sampled from is what the learner computes, with the weights of each step.
    assert all(line["train/drift"] < 1e-5 for line in steps)
    versions = [
        {turn.weight_version for one in run.read_trajectories(step) for turn in one.turns} for step in run.steps()
    ]
    assert versions == [{0}, {1}]
