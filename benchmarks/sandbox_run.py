"""One run over all systems: in turn, so that what else the machine does falls on all of them."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import memory, peers
from benchmarks.leftovers import Leftovers
from benchmarks.measures import CROWD_ROUNDS, MEMORY, ROUNDS, measures, promises
from benchmarks.results import Measure, Ratio, Results
from benchmarks.systems import SYSTEMS, SystemInfo, Worker, WorkerError

_CROWD_S = 1.0
_MOST_IN_A_ROW = 200
_MANY_STEPS = 4
_SETTLE_S = 1.0
_RESTARTS = 3


class Run:
    """One run of the benchmark."""

    def __init__(self, rows: Sequence[Measure], crowds: Sequence[int], rounds: int, console: Console) -> None:
        self._rows = rows
        self._crowds = crowds
        self._rounds = rounds
        self._console = console
        self._workers: list[Worker] = []
        self._results = Results()
        self._growth: list[dict[str, float]] = []
        self._notes: list[str] = []
        self._restarts: Counter[str] = Counter()

    def open(
        self, stack: ExitStack, leftovers: Leftovers, image: str, systems: Sequence[SystemInfo], with_peers: bool
    ) -> None:
        """Start every system's process."""
        stack.callback(self._end)
        self._notes.append(f"{os.cpu_count()} processors, Linux {platform.release()}, image {image}")
        for system in systems:
            try:
                worker = self._start(system, leftovers, image, with_peers)
            except (peers.PeerError, WorkerError) as error:
                self._notes.append(f"{system.title}: not measured, as {error}")
                continue
            if worker is not None:
                self._workers.append(worker)
                self._notes.extend([f"{system.title}: {system.note}"] if system.note else [])

    def measure(self) -> None:
        """Ask everybody everything, in turn."""
        wanted = {row.asks for row in self._rows}
        asks = {ask: max(1, round(share * self._rounds)) for ask, share in ROUNDS.items() if ask in wanted}
        total = sum(asks.values()) + ("crowd" in wanted) * len(self._workers)
        with _progress(self._console) as bar:
            task = bar.add_task("", total=total)
            for ask, count in asks.items():
                bar.update(task, description=ask)
                for _ in range(count):
                    for worker in self._workers:
                        self._ask(worker, ask)
                    bar.advance(task)
            for worker in self._workers if "crowd" in wanted else []:
                bar.update(task, description=f"{worker.system.title}, many at once")
                self._crowd(worker)
                bar.advance(task)

    def grow(self, most: int) -> None:
        """Start idle sandboxes of the Docker backend, and look at the memory as they become more."""
        worker = next((one for one in self._workers if one.system.key == "docker"), None)
        if worker is None:
            return
        before = memory.measure(worker.pid, [])
        steps = sorted({max(1, round(most * step / _MANY_STEPS)) for step in range(1, _MANY_STEPS + 1)} | {1})
        with _progress(self._console) as bar:
            task = bar.add_task(f"growing to {most} sandboxes", total=most)
            for step in steps:
                gathered = worker.ask("gather", count=step)
                if "figures" not in gathered:
                    raise WorkerError(f"the Docker backend could not start {step} sandboxes: {gathered['failed']}")
                found = gathered["figures"]
                time.sleep(_SETTLE_S)
                now = memory.measure(worker.pid, found["containers"])
                grown = {"client": now.client - before.client, "daemons": now.daemons - before.daemons}
                per_second = len(found["seconds"]) / sum(found["seconds"])
                each = (now.inside + now.shims + grown["client"] + grown["daemons"]) / step
                row = {"sandboxes": step, "each": each, **asdict(now), **grown, "starts per s": per_second}
                self._growth.append(row)
                bar.update(task, completed=step)
        worker.ask("disperse")

    def show(self, console: Console) -> None:
        """Print the tables."""
        titles = {worker.system.key: worker.system.title for worker in self._workers}
        console.print(self._results.table("sandboxes", self._rows, titles))
        promised = self._results.verdicts(self._promises(), titles)
        if promised.row_count:
            console.print(promised)
        if self._growth:
            table = Table(title="idle sandboxes, MB in all (PSS; of client and daemons the growth)", box=box.MARKDOWN)
            for name in self._growth[0]:
                table.add_column(name, justify="right")
            for row in self._growth:
                table.add_row(*(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in row.values()))
            console.print(table)
        for note in [*self._notes, *self._failures()]:
            console.print(f"- {note}", markup=False)

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        units = {row.key: row.unit for row in measures(self._crowds)}
        titles = {worker.system.key: worker.system.title for worker in self._workers}
        found = self._results.as_json(self._promises(), units)
        return {"notes": self._notes, "rounds": self._rounds, "systems": titles, **found, "growth": self._growth}

    def _promises(self) -> list[Ratio]:
        """What is promised of the rows that were asked for."""
        asked = {row.key for row in self._rows}
        return [one for one in promises(self._crowds) if {one.better[1], one.other[1]} <= asked]

    def _start(self, system: SystemInfo, leftovers: Leftovers, image: str, with_peers: bool) -> Worker | None:
        python = None
        if system.peer is not None:
            if not with_peers:
                self._notes.append(f"{system.title}: not measured; --peers installs and measures {system.peer}")
                return None
            with self._console.status(f"preparing {system.peer}"):
                peers.install(system, image)
                image = peers.image_for(system, image, leftovers.labels.items())
            python = str(peers.python_of(system))
            self._notes.append(f"{system.title} is {system.peer}")
        worker = Worker(system, python) if python else Worker(system)
        try:
            answer = worker.open(image=image, labels=leftovers.labels, run=leftovers.token)
        except BaseException:
            worker.hang_up()
            worker.wait()
            raise
        if "figures" not in answer:
            worker.hang_up()
            worker.wait()
            raise WorkerError(f"it says: {answer.get('lacking') or answer.get('failed')}")
        return worker

    def _ask(
        self, worker: Worker, ask: str, key: str | None = None, keep: bool = True, **arguments: Any
    ) -> Mapping[str, Any] | None:
        """Take what a system answers into the results; a system that failed at something is not asked again."""
        system, about = worker.system, key or ask
        if not worker.is_well or (system.key, about) in self._results.reasons:
            return None
        if system.asks is not None and about not in system.asks:
            return None
        try:
            answer = worker.ask(ask, **arguments)
        except WorkerError as error:
            self._revive(worker, error)
            return None
        if "figures" in answer:
            found: Mapping[str, Any] = answer["figures"]
            if keep and ask not in ("gather", "disperse"):
                self._results.add(system.key, found)
            return found
        reason = answer.get("lacking") or f"failed: {answer['failed']}"
        self._results.reasons[system.key, about] = reason
        return None

    def _revive(self, worker: Worker, error: WorkerError) -> None:
        """Give a system that ended or hung another chance, and tell of it: one lost call is not the whole column."""
        self._notes.append(f"{error}; that call has no figure")
        self._restarts[worker.system.key] += 1
        try:
            if self._restarts[worker.system.key] > _RESTARTS:
                raise error
            worker.restart()
        except WorkerError as last:
            worker.is_well = False
            self._notes.append(f"{worker.system.title}: given up, as {last}")

    def _crowd(self, worker: Worker) -> None:
        wanted = {row.key for row in self._rows}
        before = _memory(worker.pid, []) if MEMORY.key in wanted else None
        gathered = self._ask(worker, "gather", "crowd", count=max(self._crowds))
        if gathered is None:
            return
        names = gathered["containers"]
        if before is not None and names:
            time.sleep(_SETTLE_S)
            now = _memory(worker.pid, names)
            if now is not None:
                each = (now.inside + now.shims + now.client - before.client) / len(names)
                self._results.add(worker.system.key, {MEMORY.key: [each]})
        for count in self._crowds:
            if f"at-{count}" not in wanted:
                continue
            rate = (self._ask(worker, "crowd", None, False, at_once=count, each=1) or {}).get(f"at-{count}", [0.0])[0]
            each = max(1, min(_MOST_IN_A_ROW, round(rate * _CROWD_S / count)))
            for _ in range(max(1, round(CROWD_ROUNDS * self._rounds))):
                self._ask(worker, "crowd", at_once=count, each=each)
        self._ask(worker, "disperse", "crowd")

    def _failures(self) -> list[str]:
        return [
            f"{SYSTEMS[system].title}, {ask}: {reason}"
            for (system, ask), reason in self._results.reasons.items()
            if reason.startswith("failed")
        ]

    def _end(self) -> None:
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.wait()


def _memory(pid: int, containers: Sequence[str]) -> memory.Memory | None:
    try:
        return memory.measure(pid, containers)
    except PermissionError:
        return None


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    with Progress(console=console, transient=True) as bar:
        yield bar
