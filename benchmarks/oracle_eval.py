"""How long the oracle's evaluation of many function tasks takes in Docker sandboxes with a warm pool."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from agentgym.errors import AgentgymError, SandboxError
from agentgym.evaluate import evaluate
from agentgym.rollout import Limits
from agentgym.scripted import oracle
from agentgym.testing import CountingBackend
from agentgym_envs.code.env import CodeEnv
from agentgym_sandboxes.docker import DockerBackend
from benchmarks.leftovers import Leftovers

PROMISED_S = 30.0
"""What 164 tasks may take on two cores that nobody else uses."""
app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@dataclass(frozen=True, slots=True)
class Timed:
    """One evaluation."""

    tasks: int
    seconds: float
    sandboxes: int
    cores: int
    load: float
    """The mean number of processes that ran or waited during the minute before: more than 0 slows the figure down."""


@app.command()
def main(
    path: Annotated[Path | None, typer.Argument(help="A file in the MBPP format; without one tasks are made.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 164,
    warm: Annotated[int, typer.Option(min=1, help="How many unused sandboxes are kept ready.")] = 8,
    at_once: Annotated[int, typer.Option(min=1, help="How many episodes run at once.")] = 16,
    image: Annotated[str, typer.Option(help="The image that sandboxes start from.")] = "agentgym-base:latest",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Evaluate the oracle, check that it passes every task, and say how long that took from a full pool on.

    For example:

        python -m benchmarks.oracle_eval mbpp.jsonl

        python -m benchmarks.oracle_eval --tasks 20 --json oracle.json
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Leftovers() as leftovers:
            leftovers.require_image(image)
            backend = DockerBackend(image, leftovers.token, warm=warm)
            try:
                timed = _timed(backend, warm, path, tasks, at_once, console)
            finally:
                backend.close()
    except KeyboardInterrupt:
        console.print("interrupted: everything is removed again")
        raise typer.Exit(130) from None
    except AgentgymError as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None
    print(
        f"{timed.tasks} tasks in {timed.seconds:.1f} s, {timed.seconds / timed.tasks * 1000:.0f} ms each, with "
        f"{timed.sandboxes} sandboxes, on {timed.cores} cores with a load of {timed.load:.1f} before"
    )
    if timed.tasks == 164:
        kept = "kept" if timed.seconds <= PROMISED_S else "BROKEN, or others used the machine"
        print(f"promised: at most {PROMISED_S:g} s for 164 tasks on 2 cores: {kept}")
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(timed), indent=1) + "\n", encoding="utf-8")


def _timed(backend: DockerBackend, warm: int, path: Path | None, count: int, at_once: int, console: Console) -> Timed:
    counted = CountingBackend(backend)

    def make_env() -> CodeEnv:
        if path is None:
            return CodeEnv(sandbox=counted, family="functions", count=count)
        return CodeEnv(sandbox=counted, family="mbpp", path=str(path))

    chosen = list(make_env().tasks.take(count))
    if len(chosen) < count:
        raise AgentgymError(f"wanted {count} tasks, found {len(chosen)}")
    backend.prepare(chosen[0].sandbox, warm)
    load = os.getloadavg()[0]
    began = time.monotonic()
    with Progress(console=console) as bars:
        bar = bars.add_task("evaluating", total=count)
        report = evaluate(
            make_env,
            chosen,
            oracle(make_env(), chosen),
            limits=Limits(concurrency=at_once),
            on_done=lambda _: bars.advance(bar),
        )
    seconds = time.monotonic() - began
    if report.scored != count or report.pass_at[0].value != 1.0:
        raise SandboxError(f"the oracle did not pass every task: {report}")
    return Timed(count, seconds, counted.started, os.cpu_count() or 1, load)


if __name__ == "__main__":
    app()
