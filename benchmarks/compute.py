"""What an update costs: memory of vocabulary logits, and time and memory of padded, packed and sharing rows.

python -m benchmarks.compute --vocab 151936 --tokens 2048
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from agentgym.tokens import TokenBuffer
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.logprobs import score
from agentgym_trainers.network import Network, portions
from agentgym_trainers.settings import ComputeSettings

LOGITS = ("naive", "chunked")
ROWS = ("none", "rows", "prefixes")


def logits(variant: str, args: argparse.Namespace) -> Callable[[], object]:
    """Return one backward pass from the logprobs of `tokens` tokens to a width of 256."""
    head = torch.nn.Linear(256, args.vocab, bias=False)
    states_ND = torch.randn(args.tokens, 256, requires_grad=True)
    target_N = torch.randint(args.vocab, (args.tokens,))
    budget = ComputeSettings().logit_budget if variant == "chunked" else args.vocab * args.tokens

    def run() -> None:
        score(head, states_ND, target_N, temperature=1.0, logit_budget=budget)[0].sum().backward()  # type: ignore[no-untyped-call]

    return run


def rows(variant: str, args: argparse.Namespace) -> Callable[[], object]:
    """Return one update's forward and backward passes over groups of eight, answers of very different lengths."""
    draw = torch.Generator().manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096, hidden_size=args.hidden, intermediate_size=2 * args.hidden, num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32, num_key_value_heads=args.hidden // 32, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    buffers = []
    for _ in range(args.groups):
        prompt = torch.randint(4096, (args.prompt,), generator=draw).tolist()
        for _ in range(8):
            length = int(args.answer * float(torch.rand((), generator=draw)) ** 2) + 8
            buffer = TokenBuffer()
            buffer.append_text(prompt, 0)
            buffer.append_sampled(torch.randint(4096, (length,), generator=draw).tolist(), [0.0] * length, 0)
            buffers.append(buffer)
    batch = TokenBatch.of(buffers)
    compute = ComputeSettings.model_validate({"token_budget": args.budget, "packing": variant})
    network = Network(model, compute)

    def run() -> None:
        for index_R in portions(batch, torch.arange(len(buffers)), compute):
            network(batch.rows(index_R), temperature=1.0)[0].sum().backward()

    return run


def measure(kind: str, variant: str, args: argparse.Namespace) -> dict[str, float]:
    """Run one variant in this process."""
    run = {"logits": logits, "rows": rows}[kind](variant, args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.process_time()
    run()
    spent = time.process_time() - began
    return {"cpu_s": spent, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before}


def main() -> None:
    """Measure every variant in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32_768, help="of the logits' part")
    parser.add_argument("--tokens", type=int, default=2048, help="sampled tokens of the logits' part")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--groups", type=int, default=8, help="of eight attempts")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--answer", type=int, default=512, help="tokens of the longest answers")
    parser.add_argument("--budget", type=int, default=4096, help="tokens per micro-batch")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], args)))
        return
    console = Console()
    table = Table("what", "variant", "CPU s", "peak MB above start", box=None)
    cases = [("logits", one) for one in LOGITS] + [("rows", one) for one in ROWS]
    with console.status("measuring") as status:
        found: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
        for turn in range(args.repeat):
            for case in cases:
                status.update(f"round {turn + 1} of {args.repeat}: {case[0]}, {case[1]}")
                command = [sys.executable, "-m", "benchmarks.compute", *sys.argv[1:], "--one", *case]
                found[case].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    for (kind, variant), results in found.items():
        best = {name: min(one[name] for one in results) for name in results[0]}
        table.add_row(kind, variant, f"{best['cpu_s']:.2f}", f"{best['peak_mb']:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
