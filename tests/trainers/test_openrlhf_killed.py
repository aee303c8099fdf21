"""A launcher that is killed without a word takes the training that it started along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

LAUNCHER = """
import sys, threading, time
from pathlib import Path
from agentgym_trainers.bridges.openrlhf import submit

log, grace_s, cluster, *words = sys.argv[1:]
submit._GRACE_S = float(grace_s)
submit._RAY = (sys.executable, str(Path(log).with_name("ray.py")))
running = submit.Job(words, cluster or None, "run-0", Path(log)).running()
starter = threading.Thread(target=lambda: print(running.__enter__().pid, flush=True))
starter.start()
starter.join()
time.sleep(600)
"""
"""Starts a job from a thread that ends, as a program of somebody else's may."""
TRAINING = """
import os, subprocess, sys, time

worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
try:
    print("began", os.getpid(), worker.pid, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + TRAINING
Launch = Callable[..., tuple[subprocess.Popen[str], int, Path]]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Return what starts a launcher, with a program in OpenRLHF's place; it is killed with the test."""
    log = tmp_path / "log.txt"
    script = tmp_path / "openrlhf" / "cli" / "train_ppo_ray.py"
    script.parent.mkdir(parents=True)
    (tmp_path / "openrlhf" / "__init__.py").touch()
    with ExitStack() as launchers:

        def start(program: str, *, grace_s: float = 30.0, cluster: str = "") -> tuple[subprocess.Popen[str], int, Path]:
            (tmp_path / "ray.py" if cluster else script).write_text(program)
            words = [sys.executable, "-c", LAUNCHER, str(log), str(grace_s), cluster]
            launcher = launchers.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
            launchers.callback(launcher.kill)
            assert launcher.stdout is not None
            return launcher, int(launcher.stdout.readline()), log

        yield start


def alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def begun(log: Path) -> list[int]:
    """The processes of a training that has begun."""
    assert eventually(lambda: "began" in log.read_text() and log.read_text().endswith("\n"))
    return [int(word) for word in log.read_text().splitlines()[0].split()[1:]]


def test_a_training_goes_on_though_the_thread_that_started_it_ended(launch: Launch) -> None:
    launcher, _, log = launch(TRAINING)
    processes = begun(log)
    time.sleep(1.0)
    assert all(map(alive, processes))
    launcher.kill()
    assert eventually(lambda: not any(map(alive, processes)))


def test_a_training_whose_launcher_is_killed_is_interrupted_and_ends_with_its_workers(launch: Launch) -> None:
    launcher, _, log = launch(TRAINING)
    processes = begun(log)
    launcher.kill()
    assert eventually(lambda: not any(map(alive, processes)))
    assert "interrupted" in log.read_text()


def test_a_training_that_hears_no_interrupt_is_killed_after_its_grace(launch: Launch) -> None:
    launcher, _, log = launch(DEAF, grace_s=1.0)
    processes = begun(log)
    launcher.kill()
    assert eventually(lambda: not any(map(alive, processes)))
    assert "interrupted" not in log.read_text()


def test_a_training_ends_though_all_that_watched_over_it_is_killed(launch: Launch) -> None:
    launcher, started, log = launch(DEAF)
    training, worker = begun(log)
    assert started != training
    try:
        launcher.kill()
        os.kill(started, signal.SIGKILL)
        assert eventually(lambda: not alive(training))
    finally:
        os.kill(worker, signal.SIGKILL)


SILENT = """
import os, time
from pathlib import Path

Path("began").write_text(str(os.getpid()))
time.sleep(600)
"""


def test_a_training_whose_log_cannot_be_written_ends_with_its_launcher_too(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    launcher, started, _ = launch(SILENT, grace_s=1.0)
    began = tmp_path / "began"
    assert eventually(lambda: began.exists() and began.read_text() != "")
    launcher.kill()
    try:
        assert eventually(lambda: not alive(int(began.read_text())))
    finally:
        if alive(started):
            os.killpg(started, signal.SIGKILL)


CLUSTER = """
import sys, time
from pathlib import Path

told = Path(__file__).with_name("told")
told.write_text(told.read_text() + " ".join(sys.argv[1:]) + "\\n" if told.exists() else " ".join(sys.argv[1:]) + "\\n")
if sys.argv[2] == "submit":
    time.sleep(600)
"""


def test_the_job_on_a_cluster_is_stopped_where_its_launcher_is_killed(launch: Launch, tmp_path: Path) -> None:
    launcher, _, _ = launch(CLUSTER, cluster="http://head:8265")
    told = tmp_path / "told"
    assert eventually(told.exists)
    launcher.kill()
    assert eventually(lambda: "job stop --address http://head:8265 run-0\n" in told.read_text())
