"""OpenRLHF's process, or its job on a cluster, ends with the launcher, and says why it failed."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from pathlib import Path

import pytest

from agentgym_trainers.bridges.openrlhf import submit
from agentgym_trainers.bridges.openrlhf.submit import Job, TrainingFailedError


def test_a_training_that_fails_says_the_last_error_of_its_log(tmp_path: Path) -> None:
    job = Job(["--no.such.option"], None, "name", tmp_path / "log.txt")
    with job.running() as process:
        process.wait(60)
        with pytest.raises(TrainingFailedError, match=r"ended with code [12]: .*; its log is"):
            job.check(process)


def test_a_job_ends_with_its_block(tmp_path: Path) -> None:
    script = tmp_path / "openrlhf" / "cli" / "train_ppo_ray.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    )
    (tmp_path / "openrlhf" / "__init__.py").touch()
    job = Job([], None, "name", tmp_path / "log.txt")  # runs where the log is, and so finds the script above
    with job.running() as process:
        assert process.poll() is None
    assert process.returncode is not None


@pytest.mark.parametrize(
    ("program", "grace_s", "reason"),
    [
        ("import time; time.sleep(600)", 1.0, "no answer within 1 s"),
        ("raise SystemExit('no such cluster')", 60.0, "no such cluster"),
    ],
)
def test_a_cluster_that_does_not_end_a_job_is_told_and_nothing_goes_on_here(
    program: str,
    grace_s: float,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(submit, "_GRACE_S", grace_s)
    monkeypatch.setattr(submit, "_RAY", (sys.executable, "-c", program))
    job = Job(["--a"], "http://head:8265", "name", tmp_path / "log.txt")
    with pytest.raises(KeyboardInterrupt), job.running() as process:
        raise KeyboardInterrupt
    assert process.returncode is not None
    assert f"the job name may go on, for http://head:8265 did not end it: {reason}; end it with:" in caplog.text


def test_an_impatient_second_interrupt_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "openrlhf" / "cli" / "train_ppo_ray.py"
    script.parent.mkdir(parents=True)
    script.write_text("import signal, time\nsignal.signal(2, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n")
    (tmp_path / "openrlhf" / "__init__.py").touch()
    job = Job([], None, "name", tmp_path / "log.txt")
    running = job.running()
    process = running.__enter__()
    while "deaf" not in job.log.read_text():
        time.sleep(0.05)
    threading.Timer(0.5, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        running.__exit__(None, None, None)
    assert process.poll() is not None
