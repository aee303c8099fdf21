"""A tiny tokenizer and model, and whole training runs on the calculator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentgym import registry
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.models import new_model
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.settings import ModelSettings

CALCULATOR = "agentgym/Calculator-v0"
TINY = ModelSettings(vocab_size=300, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, context_length=256)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    if CALCULATOR not in registry.names("envs"):
        registry.register(CALCULATOR, "agentgym_envs.calculator:CalculatorEnv")


@pytest.fixture(scope="session")
def tiny() -> tuple[Any, ChatFormat]:
    """A model of random weights, and the chat format of its tokenizer."""
    model, tokenizer = new_model(TINY, ["```calc\n12+34", "```answer\n46"] * 3, seed=0, device="cpu")
    return model, ChatFormat(tokenizer)


class Lab:
    """Trains on the calculator and reads what a run left behind."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders

    @staticmethod
    def recipe(**sections: Any) -> Recipe:
        """A recipe for the calculator; sections replace the defaults below, the trainer's one by one."""
        trainer = {
            "name": "native",
            "model": {"vocab_size": 320, "context_length": 256},
            "sft": {"steps": 0},
            "checkpoint": {"every": 1000, "sft_every": 1000},
        }
        base: dict[str, Any] = {
            "name": "calculator",
            "environment": {"id": CALCULATOR},
            "limits": {"concurrency": 256, "max_tokens_per_turn": 16, "max_tokens": 128},
            "tasks": {"test": 100},
        }
        return Recipe.parse({**base, **sections, "trainer": {**trainer, **sections.get("trainer", {})}})

    def train(self, **sections: Any) -> RunDirectory:
        """Train a recipe made of sections from its beginning."""
        recipe = self.recipe(**sections)
        run = RunDirectory.create(self._folders.mktemp("runs"), recipe, name="run")
        NativeTrainer().train(recipe.prepare(), run, resume=False)
        return run

    @staticmethod
    def held_out(run: RunDirectory) -> list[float]:
        """The held-out pass rates of a run, in order; the first is from before the policy phase."""
        return [line["eval/pass@1"] for line in run.metrics() if "eval/pass@1" in line]

    @staticmethod
    def column(run: RunDirectory, name: str) -> list[float]:
        """One metric over the steps that have it."""
        return [line[name] for line in run.metrics() if name in line]

    @staticmethod
    def newest_model(run: RunDirectory) -> Path:
        """The Hugging Face folder of a run's last checkpoint."""
        return max(run.checkpoints.glob("step-*")) / "model"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A place to train in."""
    return Lab(tmp_path_factory)
