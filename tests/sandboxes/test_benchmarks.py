"""The benchmarks run, check what they time, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError

from agentgym.errors import SandboxError
from agentgym.graders.function import FunctionGrader
from agentgym_sandboxes.process import ProcessBackend
from benchmarks.grading_tasks import problems
from benchmarks.leftovers import Leftovers
from benchmarks.measures import ROUNDS, measures, promises
from benchmarks.results import Ratio, Results
from benchmarks.systems import SYSTEMS, Worker, WorkerError

ROOT = Path(__file__).resolve().parents[2]
_BENCHMARK_S = 240


def _start(*arguments: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", *arguments]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(*arguments: str) -> str:
    with _start(*arguments) as running:
        out, err = running.communicate(timeout=_BENCHMARK_S)
    assert running.returncode == 0, err
    assert not _made_by(running)
    return out


def _made_by(benchmark: subprocess.Popen[str]) -> list[str]:
    client = docker.from_env()
    labels: Any = {"label": ["agentgym.benchmark", f"agentgym.pid={benchmark.pid}"]}
    try:
        containers = client.containers.list(all=True, filters=labels, ignore_removed=True)
        images = client.images.list(all=True, filters=labels)
        return [str(one.id) for one in (*containers, *images)]
    finally:
        client.close()


@pytest.fixture(scope="module")
def daemon() -> None:
    """A daemon that does everything, unlike one behind a proxy that only starts hardened containers."""
    try:
        with Leftovers() as leftovers:
            leftovers.require_image("agentgym-base:latest")
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    except APIError as error:
        if error.status_code != HTTPStatus.FORBIDDEN:
            raise
        pytest.skip("this Docker daemon only starts sandboxes, and a benchmark also commits and builds")


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessBackend]:
    backend = ProcessBackend()
    try:
        backend.check()
    except SandboxError as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_every_system_of_ours_fills_its_column(daemon: None, process: ProcessBackend, tmp_path: Path) -> None:
    file = tmp_path / "sandbox.json"
    only = [word for key in ("process", "docker", "pool", "docker-exec") for word in ("--only", key)]
    out = _run("benchmarks.sandbox", "--rounds", "1", "--concurrent", "1,2", "--many", "2", "--json", str(file), *only)
    found = json.loads(file.read_text())
    figures = {(row["system"], row["measure"]): row for row in found["figures"]}
    assert not [row for row in found["missing"] if row["why"].startswith("failed")]
    assert {measure for system, measure in figures if system == "docker"} >= {row.key for row in measures([1, 2])[:-1]}
    assert all(row["median"] > 0 and len(row["figures"]) == row["n"] for row in figures.values())
    assert {row["measured"] is not None for row in found["promised"] if "docker exec" in row["ratio"]} == {True}
    assert [row["sandboxes"] for row in found["growth"]] == [1, 2]
    assert "agentgym docker, warm" in out


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_verdicts_are_timed_and_right(daemon: None, process: ProcessBackend, tmp_path: Path) -> None:
    file = tmp_path / "grading.json"
    _run("benchmarks.grading", "--rounds", "1", "--json", str(file))
    rows = {(row["system"], row["measure"]): row["n"] for row in json.loads(file.read_text())["figures"]}
    assert rows == {
        (system, measure): count
        for system in ("process", "docker", "pool", "docker-run")
        for measure, count in (("verdict", 20), ("at-4", 1))
    }


@pytest.mark.docker
def test_an_oracle_that_hands_in_at_once_costs_one_sandbox_a_task(daemon: None, tmp_path: Path) -> None:
    tests = ["assert twice(1) == 2", "assert twice(4) == 8"]
    row = {"text": "Double it.", "code": "def twice(x):\n    return 2 * x\n", "test_setup_code": "", "test_list": tests}
    rows = tmp_path / "mbpp.jsonl"
    rows.write_text("".join(json.dumps({**row, "task_id": number}) + "\n" for number in range(4)))
    file = tmp_path / "oracle.json"
    said = _run("benchmarks.oracle_eval", str(rows), "--tasks", "4", "--warm", "2", "--json", str(file))
    timed = json.loads(file.read_text())
    assert (timed["tasks"], timed["sandboxes"]) == (4, 4)
    assert said.startswith(f"4 tasks in {timed['seconds']:.1f} s")


@pytest.mark.docker
def test_an_interrupted_benchmark_leaves_nothing_behind(daemon: None) -> None:
    with _start("benchmarks.sandbox", "--rounds", "500", "--only", "docker-exec", "--only", "true") as running:
        deadline = time.monotonic() + 60
        while not (made := _made_by(running)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert made
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    assert not _made_by(running)


def test_a_name_with_a_typo_is_answered_with_the_nearest() -> None:
    with _start("benchmarks.sandbox", "--only", "dokcer") as running:
        _out, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "did you mean 'docker'" in " ".join(err.split())


def test_the_figure_of_a_command_that_failed_is_refused(process: ProcessBackend) -> None:
    program = (
        "from benchmarks.workers import worker, ours\nclass Wrong(ours.Ours):\n    def execute(self, box, argv):\n"
    )
    program += "        return super().execute(box, ['false'])\nworker.serve(Wrong('process'))\n"
    asked = "".join(
        json.dumps({"do": do, "with": given}) + "\n"
        for do, given in (("open", {"image": "", "labels": {}, "run": ""}), ("true", {}), ("life", {}))
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=asked,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(answer) for answer in answers] == [["figures"], ["failed"], ["failed"]]
    assert "exit code" in answers[1]["failed"]


def test_a_worker_that_ended_is_told_of_and_can_be_replaced(process: ProcessBackend) -> None:
    worker = Worker(SYSTEMS["process"])
    try:
        worker.open(image="", labels={}, run="")
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="agentgym process ended"):
            worker.ask("true")
        worker.restart()
        assert worker.ask("true")["figures"]["true"][0] > 0
    finally:
        worker.hang_up()
        worker.wait()


def test_ratios_are_met_or_missed_by_the_medians() -> None:
    results = Results()
    results.add("docker", {"true": [0.001, 0.002, 0.9], "at-8": [800.0]})
    results.add("docker-exec", {"true": [0.020, 0.021, 0.019], "at-8": [100.0]})
    command = Ratio("a", ("docker", "true"), ("docker-exec", "true"), 10)
    rate = Ratio("b", ("docker", "at-8"), ("docker-exec", "at-8"), 9)
    bound = Ratio("c", ("docker", "true"), ("docker-exec", "true"), 0.05, at_most=True)
    absent = Ratio("d", ("docker", "start"), ("docker-exec", "start"), 1)
    said = results.as_json([command, rate, bound, absent], {"true": "ms", "at-8": "per s"})["promised"]
    assert [(row["measured"], row["met"]) for row in said] == [  # type: ignore[attr-defined]
        (pytest.approx(10), True),
        (pytest.approx(8), False),
        (pytest.approx(0.1), False),
        (None, None),
    ]


def test_every_promise_and_every_row_is_measured_by_somebody() -> None:
    rows = measures([1, 8, 32])
    assert {row.asks for row in rows} == {*ROUNDS, "crowd"}
    for ratio in promises([1, 8, 32]):
        for system, measure in (ratio.better, ratio.other):
            row = next(row for row in rows if row.key == measure)
            assert SYSTEMS[system].asks is None or row.asks in (SYSTEMS[system].asks or ())


def test_the_submissions_to_time_are_what_they_claim(process: ProcessBackend) -> None:
    every = problems()
    assert len(every) == 20
    said = [FunctionGrader().grade(one.task, one.submission, process).value == 1.0 for one in every]
    assert said == [one.passes for one in every]
