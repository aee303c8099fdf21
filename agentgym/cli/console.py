"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_OF_A_KIND = 3


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on in silence: what nobody reads any more ends no run."""
        self.quiet = True


class _OneLine(logging.Formatter):
    """Tells an exception by its last line."""

    def formatException(self, ei: Any) -> str:
        """Return the exception without its traceback."""
        return f"  {traceback.format_exception_only(*ei[:2])[-1].strip()}; --debug shows where"


class _Handler(logging.StreamHandler[FileProxy]):
    """Writes above the progress bars; unless everything is wanted, only what is ours or an error, and no floods."""

    def __init__(self, console: Console, *, brief: bool) -> None:
        super().__init__(FileProxy(console, sys.stderr))
        self._brief = brief
        self._told: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if self._brief and record.levelno < logging.ERROR and not record.name.startswith("agentgym"):
            return
        if not self._brief or record.levelno != logging.WARNING:
            super().emit(record)
            return
        kind = record.name, str(record.msg)
        self._told[kind] += 1
        if self._told[kind] <= _OF_A_KIND:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines; what comes behind a carriage return would hide what is before it."""
        text = super().format(record).replace("\r\n", "\n").replace("\r", " ")
        if self._told[record.name, str(record.msg)] == _OF_A_KIND:
            text += "\n  further ones of this kind are left out; agentgym -v shows them"
        return text


class _Errors:
    """How failures are told."""

    debug = False

    @cached_property
    def console(self) -> Console:
        return _Console(stderr=True, highlight=False, soft_wrap=True)

    def tell(self, sentence: str) -> None:
        self.console.print("error:", style="bold red", end=" ")
        self.console.print(sentence, markup=False)

    def log(self, level: str) -> None:
        handler = _Handler(self.console, brief=level == "WARNING")
        handler.setFormatter((logging.Formatter if self.debug else _OneLine)("%(levelname)s %(name)s %(message)s"))
        logging.basicConfig(level=level, handlers=[handler])
        # What takes long tells so to everybody, such as an image that is built before the first episode.
        logging.getLogger("agentgym.progress").setLevel("INFO")


errors = _Errors()
out = Console(highlight=False)


def say(text: str = "", style: str | None = None) -> None:
    """Print one line as it is: no markup, no wrapping."""
    out.print(text, style=style, markup=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show bars on standard error while something takes longer than a moment."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=errors.console, transient=True) as bars:
        yield bars
