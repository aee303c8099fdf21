"""Sandboxes against docker exec, three peers and the floor: medians, tails and promised ratios, all in one run."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agentgym.errors import SandboxError
from benchmarks.leftovers import Leftovers
from benchmarks.measures import measures
from benchmarks.peers import PeerError
from benchmarks.results import Measure
from benchmarks.sandbox_run import Run
from benchmarks.systems import SYSTEMS, SystemInfo, WorkerError

app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of a command; slow things are measured less.")] = 100,
    with_peers: Annotated[bool, typer.Option("--peers", help="Install the peers, and measure them.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A system or a row, by its key; may be repeated.")] = None,
    concurrent: Annotated[str, typer.Option(help="How many sandboxes are busy at once.")] = "1,8,32",
    many: Annotated[int, typer.Option(min=0, help="Grow to so many idle sandboxes and report their memory.")] = 0,
    image: Annotated[str, typer.Option(help="The image that all sandboxes start from.")] = "agentgym-base:latest",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure sandboxes against docker exec, three peers and the floor, and say which promises hold.

    Systems are measured in turn within each round, so that what else the machine does falls on all of them.

    For example:

        python -m benchmarks.sandbox --rounds 20

        python -m benchmarks.sandbox --peers --many 200 --json sandbox.json

        python -m benchmarks.sandbox --only docker --only docker-exec --only true
    """
    console, notes = Console(stderr=True), Console(width=None if Console().is_terminal else 200)
    crowds = _counts(concurrent)
    systems, rows = _chosen(only or [], measures(crowds))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = Run(rows, crowds, rounds, console)
    try:
        with Leftovers() as leftovers, ExitStack() as stack:
            leftovers.require_image(image)
            run.open(stack, leftovers, image, systems, with_peers)
            run.measure()
            if many:
                run.grow(many)
    except KeyboardInterrupt:
        console.print("interrupted: everything is removed again")
        raise typer.Exit(130) from None
    except (SandboxError, PeerError, WorkerError) as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None
    run.show(notes)
    if json_file is not None:
        json_file.write_text(json.dumps(run.as_json(), indent=1) + "\n")


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise typer.BadParameter(f"--concurrent wants numbers such as 1,8,32, not {text!r}")
    return sorted({int(word) for word in words})


def _chosen(only: Sequence[str], rows: Sequence[Measure]) -> tuple[list[SystemInfo], list[Measure]]:
    known = [*SYSTEMS, *(row.key for row in rows)]
    for name in only:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise typer.BadParameter(f"--only knows no {name!r}; {hint}")
    systems = [system for key, system in SYSTEMS.items() if key in only] or list(SYSTEMS.values())
    return systems, [row for row in rows if row.key in only] or list(rows)


if __name__ == "__main__":
    app()
