"""Whatever a run opened is closed, however early the run ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from agentgym import registry
from agentgym.errors import AgentgymError, RecipeError
from agentgym.run import RunDirectory
from agentgym_trainers.checkpoint import CheckpointError, Checkpoints
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.models import export
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.tokenizer import build_tokenizer

ENGINE = "tests-counted"
MADE: list[Counted] = []


class Counted(HFEngine):
    """Samples from the learner's own tensors, and remembers whether it was closed."""

    def __init__(self, model: Any, *, batching: Any, max_batch: int) -> None:
        super().__init__(model, batching=batching, max_batch=max_batch)
        self.closings = 0
        MADE.append(self)

    async def close(self) -> None:
        self.closings += 1
        await super().close()


@pytest.fixture(autouse=True)
def _registered() -> None:
    MADE.clear()
    if ENGINE not in registry.names("engines"):
        registry.add("engines", ENGINE, Counted)


def recipe(lab: Any, **trainer: Any) -> Any:
    shape = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
    given = {
        "model": {**shape, "context_length": 128},
        "policy": {"steps": 2, "tasks_per_step": 2, "attempts": 2},
        "engine": {"name": ENGINE},
        "checkpoint": {"every": 1, "keep": 9},
        **trainer,
    }
    return lab.recipe(trainer=given, tasks={"train": 10, "test": 2})


def train(chosen: Any, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    return run


def test_an_engine_is_closed_after_a_run(lab: Any, tmp_path: Path) -> None:
    train(recipe(lab), tmp_path)
    assert [one.closings for one in MADE] == [1] * len(MADE) != []


def test_an_engine_that_cannot_be_used_is_closed(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="samples from the very tensors that the learner changes"):
        train(recipe(lab, schedule={"max_staleness": 1}), tmp_path)
    assert [one.closings for one in MADE] == [1]


def test_an_engine_is_closed_when_a_state_cannot_be_gone_on_from(lab: Any, tmp_path: Path) -> None:
    chosen = recipe(lab)
    run = train(chosen, tmp_path)
    _, before, last = Checkpoints(run.checkpoints, keep=9).all()
    shutil.rmtree(last.path)
    state = torch.load(before.path / "state.pt", weights_only=True)
    del state["sampler"]
    torch.save(state, before.path / "state.pt")
    MADE.clear()
    with pytest.raises(
        CheckpointError, match=r"the state of .*step-000001 does not fit this recipe's model: 'sampler'"
    ):
        NativeTrainer().train(chosen.prepare(), run, resume=True)
    assert [one.closings for one in MADE] == [1]


def test_a_learner_that_cannot_be_leaves_no_engine_open(lab: Any, tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, use_sliding_window=True, sliding_window=4, max_window_layers=1, pad_token_id=0,
    )  # fmt: skip
    export(Qwen2ForCausalLM(config), build_tokenizer(["12+34"], 300), tmp_path / "model")
    model = {"path": str(tmp_path / "model"), "context_length": 128}
    with pytest.raises(AgentgymError, match="packing knows no sliding windows"):
        train(recipe(lab, model=model, compute={"packing": "rows"}), tmp_path)
    assert [one for one in MADE if not one.closings] == []
