"""Our trainer for a while, or the warm start that both trainers begin with; one JSON object on standard output."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from agentgym import registry
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers import loop
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.update import Update
from benchmarks.trainer_chain import TURN_TOKENS, Chain
from benchmarks.trainer_task import ENVIRONMENT, write_tokenizer


class Enough(Exception):  # noqa: N818 -- not an error
    """The time is over."""


def recipe(chain: Chain, latency: str, trainer: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the task."""
    options = {"latency": latency, "operators": chain.operators}
    return Recipe.parse(
        {
            "name": "benchmark",
            "environment": {"id": ENVIRONMENT, "options": options},
            "limits": {"concurrency": 512, "max_tokens_per_turn": TURN_TOKENS, "max_tokens": chain.completion},
            "tasks": {"test": 1},
            "trainer": {"name": "native", "checkpoint": {"every": 10**6, "sft_every": 10**6}, **trainer},
        }
    )


def train(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Train for so many seconds, and return what each step cost."""
    steps: list[dict[str, float]] = []
    clock = {"wall": 0.0, "cpu": 0.0, "began": 0.0, "learn": 0.0}

    def tell(phase: str, done: int, total: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG001
        now, cpu = time.monotonic(), time.process_time()
        if phase == "policy":
            steps.append(
                {
                    "seconds": now - clock["wall"],
                    "cpu": cpu - clock["cpu"] - clock["learn"],
                    "rollout": now - clock["wall"] if asked["max_staleness"] else metrics["seconds/rollout"],
                    "learn": metrics["seconds/learn"],
                    "sampled": metrics["rollout/sampled_tokens"],
                    "trained": metrics["train/tokens"],
                    "reward": metrics["rollout/reward"],
                }
            )
            if now - clock["began"] > asked["seconds"] and len(steps) >= asked["fewest"]:
                raise Enough
        elif phase == "eval":
            clock["began"] = now
        clock["wall"], clock["cpu"], clock["learn"] = time.monotonic(), time.process_time(), 0.0

    class Timed(Update):
        """Knows what learning costs, in whatever thread it runs; the rest of the process samples."""

        def __call__(self, *given: Any, **named: Any) -> dict[str, float]:
            """Learn."""
            began = time.thread_time()
            found = super().__call__(*given, **named)
            clock["learn"] += time.thread_time() - began
            return found

    policy = {"steps": 10**6, "tasks_per_step": asked["tasks"], "attempts": asked["attempts"]}
    policy["optim"] = {"lr": asked["policy_lr"]}
    chain = Chain(asked["operators"])
    chosen = recipe(
        chain,
        asked["latency"],
        {
            "model": {"path": asked["model"], "context_length": chain.context},
            "engine": {"options": asked["engine"]},
            "sft": {"steps": 0},
            "policy": policy,
            "schedule": {"max_staleness": asked["max_staleness"]},
            "compute": {"threads": asked["threads"], **asked["compute"]},
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(folder, chosen, name="run")
        try:
            vars(loop)["Update"] = Timed
            NativeTrainer().train(chosen.prepare(), run, resume=False, progress=tell)
        except Enough:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"steps": steps, "peak_mb": peak}


def warm(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Make a model of a shape, imitate demonstrations of which half are bad, and write it."""
    chain = Chain(asked["operators"])
    with tempfile.TemporaryDirectory() as folder:
        begin, run_folder = Path(folder) / "begin", Path(folder) / "runs"
        tokenizer = write_tokenizer(begin, chain.context)
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            max_position_embeddings=chain.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **asked["shape"],
        )
        model = Qwen2ForCausalLM(config)
        model.save_pretrained(begin)
        sft = {
            "steps": asked["steps"],
            "batch_size": asked["batch"],
            "demonstrations": 1000,
            "optim": {"lr": asked["lr"]},
        }
        chosen = recipe(
            chain,
            "0",
            {
                "model": {"path": str(begin), "context_length": chain.context},
                "sft": sft,
                "policy": {"steps": 1, "tasks_per_step": 16, "attempts": 8, "optim": {"lr": 1e-12}},
                "compute": {"threads": asked["threads"]},
            },
        )
        run = RunDirectory.create(run_folder, chosen, name="run")
        NativeTrainer().train(chosen.prepare(), run, resume=False)
        NativeTrainer().export(run.path, Path(asked["model"]))
        reward = next(line["rollout/reward"] for line in run.metrics() if "rollout/reward" in line)
    return {"reward": reward, "parameters": sum(one.numel() for one in model.parameters())}


if __name__ == "__main__":
    registry.register(ENVIRONMENT, "benchmarks.trainer_task:BenchmarkCalculator")
    request = json.loads(sys.argv[1])
    found = warm(request) if "shape" in request else train(request)
    sys.stdout.write(json.dumps(found) + "\n")
