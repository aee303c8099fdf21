"""Trains a run in children that are killed with SIGKILL one after another, the last one not; imports are paid once.

`python killing.py RUN 'PHASES:LINES:SECONDS' ...`: each child is killed so many seconds after it told so many lines of
progress of one of the phases (joined by +). Prints one line per child: the signal that ended it, or `ended`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import agentgym_trainers.loop  # noqa: F401 -- before the forks
from agentgym import registry
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.native import NativeTrainer

CALCULATOR = "agentgym/Calculator-v0"


def train(folder: Path, out: int) -> None:
    """Go on with a run, telling of its progress."""
    if CALCULATOR not in registry.names("envs"):
        registry.register(CALCULATOR, "agentgym_envs.calculator:CalculatorEnv")
    run = RunDirectory.open(folder)

    def tell(phase: str, done: int, steps: int, metrics: object) -> None:
        os.write(out, f"{phase}\n".encode())

    NativeTrainer().train(Recipe.parse(run.manifest.recipe).prepare(), run, resume=True, progress=tell)


def child(folder: Path, moment: str | None) -> str:
    """Train in a child, kill it at the moment, and say how it ended."""
    inlet, outlet = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(inlet)
        try:
            train(folder, outlet)
        except BaseException as error:  # noqa: BLE001 -- the parent wants to know
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(outlet)
    with os.fdopen(inlet) as lines:
        if moment is not None:
            phases, wanted, seconds = moment.split(":")
            left = int(wanted)
            while left and (line := lines.readline()):
                left -= line.strip() in phases.split("+")
            time.sleep(float(seconds))
            os.kill(pid, signal.SIGKILL)
        else:
            lines.read()
        status = os.waitpid(pid, 0)[1]
    return signal.Signals(status).name if os.WIFSIGNALED(status) else f"ended {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    for one in (*sys.argv[2:], None):
        os.write(1, f"{child(Path(sys.argv[1]), one)}\n".encode())
