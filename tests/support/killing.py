"""Trains a run in children that are killed with SIGKILL one after another, the last one not; imports are paid once.

`python killing.py RUN MOMENT ...`: the moment STEP:SECONDS is so many seconds after the child told of this step or of a
later one; step 0 is told of from the beginning. `checkpoint` is while the child's first one is written, `evaluation`
when its first one begins. Prints one line per child: the signal that ended it and what it was at, or `ended`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import agentgym_trainers.loop  # before the forks
from agentgym import registry
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym_trainers.checkpoint import Checkpoints
from agentgym_trainers.native import NativeTrainer

CALCULATOR = "agentgym/Calculator-v0"
NEXT = {"sft": ("warm start", "evaluation"), "policy": ("policy", "evaluation"), "eval": ("policy", "end")}
"""What comes after a line of progress, and after the last one of its kind."""
WITHIN = {"checkpoint": (Checkpoints, "_place"), "evaluation": (agentgym_trainers.loop.Trainer, "_evaluate")}
"""What begins in the middle of a moment that has a name."""


def train(folder: Path, out: int) -> None:
    """Go on with a run, telling which step is done and what begins."""
    if CALCULATOR not in registry.names("envs"):
        registry.register(CALCULATOR, "agentgym_envs.calculator:CalculatorEnv")
    run = RunDirectory.open(folder)
    recipe = Recipe.parse(run.manifest.recipe)
    warm = recipe.trainer_settings().sft.steps

    def tell(phase: str, done: int, steps: int, metrics: object) -> None:
        if phase in NEXT:
            step = done if phase == "sft" else warm + done
            os.write(out, f"{step} {NEXT[phase][done == steps]}\n".encode())

    NativeTrainer().train(recipe.prepare(), run, resume=True, progress=tell)


def child(folder: Path, moment: str | None) -> str:
    """Train in a child, kill it at the moment, and say how it ended."""
    inlet, outlet = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(inlet)
        if moment in WITHIN:
            setattr(*WITHIN[moment], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        try:
            train(folder, outlet)
        except BaseException as error:  # noqa: BLE001 -- the parent wants to know
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(outlet)
    told = ["0 set-up\n"]
    with os.fdopen(inlet) as lines:
        if moment is not None and moment not in WITHIN:
            step, _, seconds = moment.partition(":")
            while _step(told[-1]) < int(step) and (line := lines.readline()):
                told.append(line)
            time.sleep(float(seconds))
            os.kill(pid, signal.SIGKILL)
        told.extend(lines)
        status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status):
        return f"ended {os.WEXITSTATUS(status)}"
    if moment in WITHIN:
        return f"{signal.Signals(os.WTERMSIG(status)).name} in {moment}"
    aside = any((folder / "checkpoints").glob(f".*-{pid}"))  # which only the writing of a checkpoint leaves
    return f"{signal.Signals(os.WTERMSIG(status)).name} in {'checkpoint' if aside else _begun(told[-1])}"


def _step(line: str) -> int:
    return int(line.partition(" ")[0])


def _begun(line: str) -> str:
    return line.partition(" ")[2].strip()


if __name__ == "__main__":
    for one in (*sys.argv[2:], None):
        os.write(1, f"{child(Path(sys.argv[1]), one)}\n".encode())
