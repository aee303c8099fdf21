"""Warnings of ours reach a person without being asked for, above the bars, and never in floods."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOISY = """
import logging
from agentgym.testing import ToyEnv
class Noisy(ToyEnv):
    "Warns of every attempt."
    def grade(self, task, submission):
        logging.getLogger("agentgym_envs.noisy").warning("an odd task=%s", task.id)
        logging.getLogger("urllib3.noisy").warning("of a stranger")
        return super().grade(task, submission)
"""
TOLD = "WARNING agentgym_envs.noisy an odd task=toy-"
LEFT_OUT = "further ones of this kind are left out; agentgym -v shows them"


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    return file


def evaluate(noisy: Path, *words: str, attempts: int = 6, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from agentgym.cli import main; main()", *words]
    done = subprocess.run(
        [*program, "eval", noisy.name, "--limit", "1", "-k", str(attempts)],
        cwd=noisy.parent, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_first_warnings_of_a_kind_are_told_and_how_to_see_the_others(noisy: Path) -> None:
    done = evaluate(noisy)
    assert done.stderr.count(TOLD) == 3
    assert done.stderr.count(LEFT_OUT) == 1
    assert "of a stranger" not in done.stderr
    assert "odd" not in done.stdout


def test_a_few_warnings_are_all_told(noisy: Path) -> None:
    done = evaluate(noisy, attempts=2)
    assert done.stderr.count(TOLD) == 2
    assert LEFT_OUT not in done.stderr


def test_on_demand_every_warning_is_told(noisy: Path) -> None:
    done = evaluate(noisy, "-v")
    assert done.stderr.count(TOLD) == 6
    assert "WARNING urllib3.noisy of a stranger" in done.stderr
    assert LEFT_OUT not in done.stderr


def test_a_warning_tears_no_progress_bar(noisy: Path) -> None:
    done = evaluate(noisy, FORCE_COLOR="1", TERM="xterm", COLUMNS="120")
    erased = "\x1b[2K"
    assert f"{erased}{TOLD}" in done.stderr
