"""Many episodes at once on our server, each environment in turn: none fails, and nothing is left behind."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from agentgym.errors import AgentgymError
from agentgym.serving.app import create_app
from agentgym.serving.client import RemoteEnv
from agentgym.serving.patience import KEPT_S
from agentgym.serving.sessions import Bounds, Sessions
from agentgym.task import Task
from benchmarks.bundled import Bundled, Furnished
from benchmarks.bundled_places import serving
from benchmarks.conformance import choose

_SETTLE_S = 20.0
"""What ends in the background has so long to be gone."""
_MORE = 4
"""Crowds that may show that what is left of one is not left by each."""
_DRAIN_S = 1
"""For answers that are on their way when a server ends."""
app = typer.Typer(rich_markup_mode="rich", add_completion=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds."""

    threads: int
    files: int
    children: int
    sandboxes: int
    folders: int
    """In the folder for temporary files."""

    @classmethod
    def now(cls, place: Furnished) -> Usage:
        """Look at this process and its sandboxes."""
        gc.collect()
        return cls(
            threads=threading.active_count(),
            files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            children=len(_children()),
            sandboxes=place.backend.open_count,
            folders=sum(1 for _ in Path(tempfile.gettempdir()).glob("*/*")),
        )

    def above(self, other: Usage) -> dict[str, int]:
        """Return what is more than there was."""
        mine, theirs = asdict(self), asdict(other)
        return {name: mine[name] - theirs[name] for name in mine if mine[name] > theirs[name]}


@dataclass(frozen=True, slots=True)
class Crowd:
    """What became of one crowd."""

    environment: str
    family: str
    episodes: int
    """Of all crowds."""
    at_once: int
    """The most sessions that were open at the same time."""
    solved: int
    errors: dict[str, int]
    left: dict[str, int]
    """What there is more of afterwards than before; of threads and files, what there is more of after every crowd."""
    seconds: float
    memory_mb: float
    """By how much the resident memory of server and clients rose over these crowds, after one before them."""
    load: float
    """The mean number of processes that ran or waited during the minute before."""

    @property
    def is_well(self) -> bool:
        """Whether every episode was solved, and nothing is left."""
        return self.solved == self.episodes and not self.errors and not self.left


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="A family, such as Puzzle-v0:sat; may be repeated.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="At once.")] = 200,
    docker: Annotated[int, typer.Option(min=1, help="At once where each has a container.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Crowds that are measured, after a first one.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file, after each family.")
    ] = None,
) -> None:
    """Let scripted experts play many episodes of every environment at once, as clients of a server in this process.

    Every client begins its episode; when all have begun, all play. Exit code 1 if one fails or something is left.

    For example:

        python -m benchmarks.crowd

        python -m benchmarks.crowd --only Code-v0:repair --episodes 400 --json crowd.json
    """
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found: list[Crowd] = []
    try:
        chosen = choose(only or [])
        with Progress(console=console) as bars, temporary_files():
            bar = bars.add_task("crowds", total=len(chosen))
            for row in chosen:
                bars.update(bar, description=row.name)
                found.append(crowd(row, docker if row.backend == "docker" else episodes, rounds))
                _write(json_file, found)
                bars.advance(bar)
                console.print(_line(found[-1]), markup=False, style=None if found[-1].is_well else "red")
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(130) from None
    except AgentgymError as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None
    print(table(found))
    raise typer.Exit(not all(one.is_well for one in found))


@contextmanager
def temporary_files() -> Iterator[Path]:
    """Have a folder of our own for temporary files, which sandboxes can reach."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="agentgym-crowd-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def crowd(row: Bundled, episodes: int, rounds: int = 1) -> Crowd:
    """Play crowds of one family and compare what the process holds before and after."""
    with row.furnished() as place:
        tasks = place.draw(episodes, seed=0)
        lines = _scripts(place, tasks)
        _round(place, tasks, lines, episodes)  # what the first crowd leaves warm is no leak
        before, load, began = Usage.now(place), os.getloadavg()[0], time.monotonic()
        memory, most, ends = _resident_mb(), 0, list[bool | str]()
        for _ in range(rounds):
            ended, at_once = _round(place, tasks, lines, episodes)
            ends += ended
            most = max(most, at_once)
        seconds = (time.monotonic() - began) / rounds
        left = _left(place, before)
        grown = _resident_mb() - memory
        # Pools of threads and connections that are kept fill up and stop; a leak goes on.
        may_be_warm = all(one is True for one in ends) and left.keys() <= {"threads", "files"}
        for _ in range(_MORE if left and may_be_warm else 0):
            now = Usage.now(place)
            ends += _round(place, tasks, lines, episodes)[0]
            if not (left := _left(place, now)):
                break
    errors = Counter(one for one in ends if isinstance(one, str))
    solved = sum(one is True for one in ends)
    return Crowd(row.id, row.family, len(ends), most, solved, dict(errors), left, seconds, grown, load)


def table(crowds: Sequence[Crowd]) -> str:
    """Return a table in Markdown."""
    rows = [
        "| environment | family | at once | solved | errors | left | seconds | memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in crowds:
        left = ", ".join(f"{count} {name}" for name, count in one.left.items()) or "nothing"
        rows.append(
            f"| `{one.environment}` | {one.family} | {one.at_once} | {one.solved} | {sum(one.errors.values())} "
            f"| {left} | {one.seconds:.0f} | {one.memory_mb:+.0f} |"
        )
    return "\n".join(rows)


def _round(
    place: Furnished, tasks: Sequence[Task], lines: Sequence[Sequence[str]], episodes: int
) -> tuple[list[bool | str], int]:
    """Return whether each episode was solved, or its error, and how many sessions were open at once."""
    sessions = Sessions(place.make_env, Bounds(sessions=episodes + 1))
    all_begun = threading.Barrier(episodes)
    most = 0

    def play(number: int, url: str) -> bool | str:
        nonlocal most
        info: dict[str, Any] = {}
        with closing(RemoteEnv(url)) as env:
            try:
                env.reset(seed=number, options={"task": tasks[number % len(tasks)].id})
            except Exception as error:  # noqa: BLE001 -- whatever fails is what is measured
                all_begun.abort()
                return f"{type(error).__name__}: {error}"[:300]
            try:
                all_begun.wait(600)
                most = max(most, len(sessions))
                for line in lines[number % len(tasks)]:
                    *_, info = env.step(line)
            except Exception as error:  # noqa: BLE001
                return f"{type(error).__name__}: {error}"[:300]
        return "verdict" in info and bool(info["verdict"].passed)

    config = {"backlog": 2 * episodes, "timeout_keep_alive": KEPT_S, "timeout_graceful_shutdown": _DRAIN_S}
    application = create_app(sessions, None, name="crowd")
    # The server ends first: an interrupt would else wait for players, and they for answers.
    with ThreadPoolExecutor(episodes) as pool, serving(application, **config) as url:
        try:
            found = list(pool.map(play, range(episodes), [url] * episodes))
        except BaseException:
            # That it breaks off answers is what is wanted, and no news.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            pool.shutdown(wait=False, cancel_futures=True)
            all_begun.abort()
            raise
    return found, most


def _write(file: Path | None, crowds: Sequence[Crowd]) -> None:
    """Write the figures so far, whole or not at all."""
    if file is not None:
        part = file.with_name(f".{file.name}.part")
        part.write_text(json.dumps([asdict(one) for one in crowds], indent=1) + "\n", encoding="utf-8")
        part.replace(file)


def _scripts(place: Furnished, tasks: Sequence[Task]) -> list[list[str]]:
    env = place.make_env()
    found = [[*env.oracle(task)] for task in tasks]
    env.close()
    return found


def _left(place: Furnished, before: Usage) -> dict[str, int]:
    """Return what there is more of, once it no longer shrinks."""
    deadline = time.monotonic() + _SETTLE_S
    while (left := Usage.now(place).above(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def _children() -> list[str]:
    found: list[str] = []
    for one in Path("/proc/self/task").iterdir():
        try:
            found += (one / "children").read_text().split()
        except OSError:  # that thread has ended
            continue
    return found


def _resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _line(one: Crowd) -> str:
    told = "" if one.is_well else f": {one.errors or ''} left {one.left}"
    return f"{one.environment} {one.family}: {one.solved} of {one.episodes} in {one.seconds:.0f} s{told}"


if __name__ == "__main__":
    app()
