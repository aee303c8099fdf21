"""How long a verdict takes: the `function` grader on three backends against a fresh container that runs pytest."""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from agentgym import registry
from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from benchmarks.grading_tasks import Problem, problems
from benchmarks.leftovers import Leftovers
from benchmarks.results import Measure, Ratio, Results
from benchmarks.workers.ours import settle

_WARM = 4
_AT_ONCE = 4
_TITLES = {
    "process": "function grader, process",
    "docker": "function grader, docker",
    "pool": "function grader, docker, warm",
    "docker-run": "docker run, pytest",
}
_ROWS = [
    Measure("verdict", "one verdict", "verdict"),
    Measure(f"at-{_AT_ONCE}", f"verdicts without a pause, {_AT_ONCE} at once", "sustained", "per s"),
]
_RATIOS = [Ratio("a verdict from a warm pool, against docker run and pytest", ("pool", "verdict"),
                 ("docker-run", "verdict"), 10)]  # fmt: skip
_TEST = "cd /tmp && tar x && exec python3 -m pytest -q -p no:cacheprovider test_solution.py"

Judge = Callable[[Problem], bool]
app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often all 20 submissions are judged.")] = 5,
    image: Annotated[str, typer.Option(help="The image that Docker's sandboxes start from.")] = "agentgym-base:latest",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure verdicts on 20 tasks as in MBPP, half of the submissions wrong, and check that every verdict is right.

    A warm pool is full whenever a single verdict is asked for; "without a pause" shows what is left of that when it
    must refill itself meanwhile.

    For example:

        python -m benchmarks.grading --rounds 2

        python -m benchmarks.grading --json grading.json
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = Results()
    try:
        with Leftovers() as leftovers, ExitStack() as stack:
            leftovers.require_image(image)
            _measure(_judges(stack, leftovers, image), rounds, results, console)
    except KeyboardInterrupt:
        console.print("interrupted: everything is removed again")
        raise typer.Exit(130) from None
    except SandboxError as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None
    notes = Console(width=None if Console().is_terminal else 160)
    notes.print(results.table("verdicts", _ROWS, _TITLES))
    notes.print(results.verdicts(_RATIOS, _TITLES))
    machine = f"{os.cpu_count()} processors, Linux {platform.release()}, image {image}"
    notes.print(f"- {machine}; the process backend runs this machine's own Python", markup=False)
    if json_file is not None:
        found = results.as_json(_RATIOS, {row.key: row.unit for row in _ROWS})
        json_file.write_text(json.dumps({"notes": [machine], "rounds": rounds, **found}, indent=1) + "\n")


def _judges(stack: ExitStack, leftovers: Leftovers, image: str) -> Mapping[str, tuple[Judge, Callable[[], None]]]:
    """Return how each system judges, and what it does before while nobody waits."""
    from agentgym_sandboxes.docker import DockerBackend
    from agentgym_sandboxes.process import ProcessBackend

    grader = registry.create("graders", "function")
    process, docker = ProcessBackend(), DockerBackend(image, leftovers.token)
    warm = DockerBackend(image, leftovers.token, warm=_WARM)

    def judge(backend: Any, problem: Problem) -> bool:
        return bool(grader.grade(problem.task, problem.submission, backend).value)

    for backend in (process, docker, warm):
        stack.callback(backend.close)
        backend.check()
    return {
        "process": (partial(judge, process), _nothing),
        "docker": (partial(judge, docker), _nothing),
        "pool": (partial(judge, warm), partial(settle, warm, SandboxSpec(), _WARM)),
        "docker-run": (partial(_docker_run, leftovers.labels, image), _nothing),
    }


def _measure(
    judges: Mapping[str, tuple[Judge, Callable[[], None]]], rounds: int, results: Results, console: Console
) -> None:
    every = problems()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("verdicts", total=rounds * (len(every) + len(judges)))
        for _ in range(rounds):
            for problem in every:
                for system, (judge, before) in judges.items():
                    before()
                    results.add(system, {"verdict": [_timed(judge, [problem], 1)]})
                    before()
                bar.advance(task)
            for system, (judge, before) in judges.items():
                before()
                results.add(system, {f"at-{_AT_ONCE}": [len(every) / _timed(judge, every, _AT_ONCE)]})
                before()
                bar.advance(task)


def _timed(judge: Judge, every: list[Problem], at_once: int) -> float:
    began = time.perf_counter()
    if at_once == 1:
        said = [judge(problem) for problem in every]
    else:
        with ThreadPoolExecutor(at_once) as threads:
            said = list(threads.map(judge, every))
    took = time.perf_counter() - began
    wrong = [problem.task.id for problem, passed in zip(every, said, strict=True) if passed != problem.passes]
    if wrong:
        raise AssertionError(f"the verdicts on {', '.join(wrong)} are wrong, so their time means nothing")
    return took


def _docker_run(labels: Mapping[str, str], image: str, problem: Problem) -> bool:
    """Judge as many projects do: a fresh container, the submission beside its tests, pytest's exit code."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, data in problem.files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    marked = [word for pair in labels.items() for word in ("--label", "=".join(pair))]
    limits = ["--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--memory=512m"]
    argv = ["docker", "run", "--rm", "-i", *limits, "--pids-limit=66", *marked, image, "/bin/sh", "-c", _TEST]
    done = subprocess.run(argv, input=whole.getvalue(), capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise SandboxError(f"docker run failed: {done.stderr.decode(errors='replace').strip()}")
    return done.returncode == 0


def _nothing() -> None:
    """Most systems have nothing to prepare."""


if __name__ == "__main__":
    app()
