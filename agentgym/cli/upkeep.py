"""`agentgym sandbox ps`, `gc`, `doctor` and `build-base`: what backends keep on this machine, and what they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentgym import registry
from agentgym.cli.console import errors, out, say
from agentgym.errors import AgentgymError, SandboxError
from agentgym.upkeep import Decision, Finding, Kept, Upkeep

Answer = TypeVar("Answer")
_MARKS = {"ok": ("✓ ok", "green"), "warn": ("! warn", "yellow"), "fail": ("✗ fail", "red")}
_LIVES = {"living": "", "dead": " (ended)", "unknown": " (unseen)"}


def ps(backends: Sequence[str]) -> None:
    """Print a table of the sandboxes of every run."""
    show(_ask(backends, "asking {}", lambda upkeep: upkeep.inventory()))


def show(places: Iterable[tuple[str, Sequence[Kept]]]) -> None:
    """Print a table of what is kept at each place."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("sandbox", "backend", "run", "owner", "age", "ends in", "state", "memory"):
        table.add_column(title, overflow="fold", no_wrap=title not in ("run", "owner"))
    for name, found in places:
        for kept in sorted(found, key=lambda one: one.created or 0):
            table.add_row(kept.name, name, *map(Text, _cells(kept)))
    if not table.row_count:
        say("there are no sandboxes")
        return
    out.print(table)


def gc(backends: Sequence[str], *, images: bool, expired: bool, dry_run: bool) -> None:
    """Remove what has no living owner; print what went, what stayed, and why."""
    found = _ask(backends, "tidying {}", lambda upkeep: upkeep.collect(images=images, expired=expired, dry_run=dry_run))
    tell((("", decisions) for _, decisions in found), dry_run=dry_run)


def tell(places: Iterable[tuple[str, Sequence[Decision]]], *, dry_run: bool) -> None:
    """Print what went from each place, what stayed, and why, each line after the place's own words."""
    removed = 0
    for where, decisions in places:
        for one in decisions:
            removed += one.removed
            verb = ("would remove" if dry_run else "removed") if one.removed else "kept"
            say(f"{where}{verb} {one.kept.kind} {one.kept.name}: {one.reason}", None if one.removed else "dim")
    say(f"{removed} {'thing' if removed == 1 else 'things'} {'would go' if dry_run else 'removed'}", "bold")


def doctor(backends: Sequence[str]) -> None:
    """Print what each backend needs of this machine, and leave with exit code 1 if something is missing."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("no_wrap", "no_wrap", "fold"):
        table.add_column(no_wrap=column == "no_wrap", overflow="fold")
    failed = False
    for name in _names(backends):
        with _busy(f"looking at {name}"):
            findings = _diagnosed(name)
        if not findings:
            continue
        table.add_row(Text(name, style="bold"), "", "")
        for one in findings:
            mark, style = _MARKS[one.level]
            found = Text(one.found + (f"; {one.mend}" if one.mend else ""))
            table.add_row(Text(f"  {mark}", style=style), one.subject, found)
            failed |= one.level == "fail"
    if not table.row_count:
        raise SandboxError('no sandbox backend is installed; add one with: pip install "agentgym-rlvr[docker]"')
    out.print(table)
    if failed:
        raise typer.Exit(1)


def build_base(backend: str, name: str | None, base: str | None) -> None:
    """Build the image of tasks that name none, and show what happens meanwhile."""
    with _busy("building the base image") as tell:
        made = _upkeep(backend).build_base(name, base, tell)
    say(f"{made} is ready")


def _names(backends: Sequence[str]) -> Sequence[str]:
    return backends or registry.names("sandboxes")


def _ask(
    backends: Sequence[str], title: str, question: Callable[[Upkeep], Sequence[Answer]]
) -> Iterator[tuple[str, Sequence[Answer]]]:
    """Yield what each backend answers; one that is missing here is a failure if somebody named it, and else a line."""
    for name in _names(backends):
        if not backends and not _is_maintained(name):
            continue
        upkeep = _upkeep(name)
        try:
            with _busy(title.format(name)):
                answer = question(upkeep)
        except SandboxError as error:
            if backends:
                raise
            errors.console.print(f"{name}: {error}", markup=False, style="dim")
        else:
            yield name, answer


def _is_maintained(name: str) -> bool:
    try:
        return callable(getattr(registry.lookup("sandboxes", name), "upkeep", None))
    except ImportError:
        return False


def _upkeep(name: str) -> Upkeep:
    owner = registry.lookup("sandboxes", name)
    if not callable(getattr(owner, "upkeep", None)):
        raise AgentgymError(f"the sandbox backend {name!r} keeps nothing on this machine to look after")
    upkeep: Upkeep = registry.create("sandboxes", name).upkeep()
    return upkeep


def _diagnosed(name: str) -> Sequence[Finding]:
    try:
        owner = registry.lookup("sandboxes", name)
    except ImportError as error:
        found, _, mend = str(error).partition("; ")
        return [Finding("package", "fail", found, mend)]
    return _upkeep(name).diagnose() if callable(getattr(owner, "upkeep", None)) else []


def _cells(kept: Kept) -> Iterator[str]:
    now = time.time()
    yield kept.run or "-"
    yield (kept.owner or "-") + (_LIVES[kept.life] if kept.owner else "")
    yield "-" if kept.created is None else _span(now - kept.created)
    yield "-" if kept.ends is None else _span(kept.ends - now) if kept.ends > now else "over"
    yield kept.state if kept.kind == "sandbox" else f"{kept.state} {kept.kind}"
    used, limit = kept.memory_bytes, kept.memory_limit_bytes
    yield "-" if used is None else f"{_mb(used)} of {_mb(limit)} MB" if limit else f"{_mb(used)} MB"


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.0f}"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


@contextmanager
def _busy(title: str) -> Iterator[Callable[[str], None]]:
    """Show that something takes a while, and yield what tells how it goes: to people by a clock, else line by line."""
    if not errors.console.is_terminal:
        yield lambda line: errors.console.print(line, markup=False)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=errors.console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda line: bar.update(task, description=f"{title}: {line[:100]}")
