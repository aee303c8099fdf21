"""Real vLLM, asked by OpenRLHF's rollout worker for our executor: exact tokens, and logprobs that can be trained."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_contract import forward_logprobs
from openrlhf_players import exercises, settings, training_row
from openrlhf_wheel import WheelWorker

from agentgym.policy import Sampling
from agentgym.recipe import Recipe
from agentgym_trainers.models import new_model
from agentgym_trainers.settings import ModelSettings

pytestmark = [
    pytest.mark.skipif(find_spec("openrlhf") is None, reason="needs OpenRLHF; `make test-openrlhf` installs it"),
    pytest.mark.filterwarnings("default"),  # of OpenRLHF and what it imports
    pytest.mark.timeout(600),
]

CONTEXT, TOLERANCE = 160, 1e-4
SHAPE = ModelSettings(
    vocab_size=300, hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, context_length=CONTEXT
)  # fmt: skip


def start(folder: Path) -> Any:
    """Start vLLM on a folder, with what OpenRLHF gives it where logprobs are corrected."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import AsyncEngineArgs, AsyncLLMEngine

    return AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(
            model=str(folder), dtype="float32", max_model_len=CONTEXT, enforce_eager=True, seed=0,
            enable_prefix_caching=True, logprobs_mode="processed_logprobs", max_logprobs=1, max_num_seqs=16,
        )
    )  # fmt: skip


def sample(recipe: Recipe, folder: Path, tokenizer: Any, model_folder: Path) -> list[list[dict[str, Any]]]:
    """Return the samples of four groups, asked for at once."""
    from vllm import SamplingParams

    async def run() -> list[list[dict[str, Any]]]:
        llm = start(model_folder)
        try:
            worker = WheelWorker(settings(recipe, seeded=False), folder, llm)
            given = SamplingParams(max_tokens=24, min_tokens=1, skip_special_tokens=False, logprobs=1)
            rows = [training_row(recipe, task.id, number) for number, task in enumerate(recipe.prepare().train[:4])]
            calls = [
                worker.generate_responses(
                    prompt=row.input, label=row.label, sampling_params=given, max_length=CONTEXT,
                    hf_tokenizer=tokenizer, num_samples=4,
                )
                for row in rows
            ]  # fmt: skip
            return await asyncio.gather(*calls)
        finally:
            llm.shutdown()

    return asyncio.run(run())


def test_every_sampled_token_is_followed_exactly_with_the_logprob_that_the_model_gives_it(tmp_path: Path) -> None:
    model, tokenizer = new_model(SHAPE, ["```calc\n12+34", "```answer\n46"] * 3, seed=0, device="cpu")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = exercises(environment={"id": "tests/Exercises-v0", "options": {"max_turns": 3}})
    turns: Counter[int] = Counter()
    worst = 0.0
    for one in [one for group in sample(recipe, tmp_path, tokenizer, tmp_path / "model") for one in group]:
        ids, logprobs = one["observation_tokens"], one["rollout_log_probs"]
        assert one["extra_logs"]["scored"] == 1.0
        turns[len(one["action_ranges"])] += 1
        expected = forward_logprobs(model, ids[:1], ids[1:], Sampling())
        for begin, end in one["action_ranges"]:
            found = torch.tensor(logprobs[begin:end]) - torch.tensor(expected[begin - 1 : end - 1])
            worst = max(worst, float(found.abs().max()))  # the first token of each turn is one of them
    assert worst < TOLERANCE
    assert sum(count for number, count in turns.items() if number > 1) > 4
