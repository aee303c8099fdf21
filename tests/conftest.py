"""Settings of the whole suite, and the command line, run in this process, in a folder of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from hypothesis import settings

from agentgym import cli
from agentgym.cli.console import out

collect_ignore = ["support/trl_runs.py"]  # a program for TRL's own environment
# A busy machine is no failure: pytest-timeout bounds each test, so hypothesis need not bound each example.
settings.register_profile("agentgym", deadline=None)
settings.load_profile("agentgym")


@pytest.fixture
def shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., CompletedProcess[str]]]:
    """Return what runs one command; `stdin` is what a person types."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    # Read when the console was made, which is long ago, in a process that another may have given its own width.
    monkeypatch.setattr(out, "width", 200)

    def run(*words: object, stdin: str = "") -> CompletedProcess[str]:
        typed = iter(stdin.splitlines())

        def read(prompt: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(sys, "argv", ["agentgym", *map(str, words)])
        monkeypatch.setattr("builtins.input", read)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        written = capsys.readouterr()
        return CompletedProcess(sys.argv, int(end.value.code or 0), written.out, written.err)

    yield run
    signal.signal(signal.SIGTERM, before)
