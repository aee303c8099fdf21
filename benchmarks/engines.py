"""How many tokens engines sample when episodes of many turns wait for tools of very different speed.

python -m benchmarks.engines --latency 0 0.05 --engines hf-lockstep hf vllm
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from agentgym.policy import Sampling, TrainableEngine

ENGINES = ("hf-lockstep", "hf-without-prefixes", "hf", "hf-bfloat16", "vllm")
GROUP, TURNS, PROMPT, OBSERVATION, TOKENS = 8, 4, 120, 24, (8, 48)
VOCABULARY = 2048


def build(name: str, args: argparse.Namespace) -> TrainableEngine:
    """Return an engine over a Qwen2 of random weights."""
    heads = args.hidden // 32
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=args.hidden, intermediate_size=3 * args.hidden, num_attention_heads=heads,
        num_hidden_layers=args.layers, num_key_value_heads=heads, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    if name == "vllm":
        from agentgym_trainers.engines.vllm import VLLMEngine

        return VLLMEngine(model, max_batch=args.episodes)
    from agentgym_trainers.engines.hf import HFEngine

    return HFEngine(
        model,
        batching="lockstep" if name == "hf-lockstep" else "eager",
        prefix_cache_mb=0 if name == "hf-without-prefixes" else 512,
        weights="copied" if name == "hf-bfloat16" else "shared",
        dtype="bfloat16" if name == "hf-bfloat16" else None,
    )


async def episode(engine: TrainableEngine, name: str, prompt: list[int], latency_s: float) -> int:
    """Play one episode; return the tokens that it sampled. A tool's time is log-normal: few are slow, some very."""
    draw = random.Random(name)
    context, sampled = list(prompt), 0
    for turn in range(TURNS):
        sampling = Sampling(max_tokens=draw.randint(*TOKENS), seed=draw.getrandbits(40))
        made = await engine.generate(context, sampling, name, ())
        sampled += len(made.ids)
        context += [*made.ids, *(draw.randrange(VOCABULARY) for _ in range(OBSERVATION))]
        if latency_s and turn < TURNS - 1:
            await asyncio.sleep(latency_s * draw.lognormvariate(-0.5, 1))
    engine.release(name)
    return sampled


async def rollout(engine: TrainableEngine, episodes: int, latency_s: float, part: int) -> float:
    """Return the tokens per second of one rollout."""
    draw = random.Random(part)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(PROMPT)] for _ in range(-(-episodes // GROUP))]
    names = [f"{part}-{index:03d}" for index in range(episodes)]
    for name in names:
        engine.open(name)
    began = time.perf_counter()
    done = await asyncio.gather(
        *(episode(engine, name, prompts[index // GROUP], latency_s) for index, name in enumerate(names))
    )
    return sum(done) / (time.perf_counter() - began)


async def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the median tokens per second of each latency."""
    engine = build(name, args)
    try:
        await rollout(engine, GROUP, 0, -1)
        found = {}
        for latency_s in args.latency:
            rates = [await rollout(engine, args.episodes, latency_s, part) for part in range(args.rounds)]
            await engine.update_weights()  # every rollout of a training step begins without prefixes
            found[str(latency_s)] = statistics.median(rates)
        return found
    finally:
        await engine.close()


def main() -> None:
    """Measure each engine in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--latency", nargs="+", type=float, default=[0.0, 0.2], help="median seconds of a tool, about")
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        torch.set_num_threads(1)
        print(json.dumps(asyncio.run(measure(args.only, args))))
        return
    table = Table(
        "engine", *(f"tools {one:g} s" for one in args.latency), "CPU seconds", title="sampled tokens per second"
    )
    for name in args.engines:
        if name == "vllm" and find_spec("vllm") is None:
            table.add_row(name, *("not installed" for _ in args.latency), "")
            continue
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "benchmarks.engines", *sys.argv[1:], "--only", name]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(said.strip().splitlines()[-1])
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        table.add_row(name, *(f"{found[str(one)]:,.0f}" for one in args.latency), f"{spent:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
