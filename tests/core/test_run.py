"""A run directory holds what happened, survives kills, and never holds what is hidden in a task."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym import registry
from agentgym.errors import AgentgymError, MissingExtraError
from agentgym.rewards import GatedRewards, Rewards
from agentgym.run import JsonlTracker, RunDirectory
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import (
    EndReason,
    Group,
    Message,
    Noise,
    Signal,
    ToolCall,
    Trajectory,
    Trust,
    Turn,
    Verdict,
)

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=12)
names = st.text("abcdef", min_size=1, max_size=4)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda one: st.lists(one, max_size=2) | st.dictionaries(words, one, max_size=2),
    max_leaves=4,
)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=words,
    tool_calls=st.lists(
        st.builds(ToolCall, name=names, arguments=st.dictionaries(words, data, max_size=2), id=words, problem=words),
        max_size=2,
    ).map(tuple),
    tool_call_id=st.none() | words,
    name=st.none() | words,
    guidance=words,
    call_format=st.none() | words,
)
turns = st.builds(
    Turn,
    action=messages,
    observation=st.lists(messages, max_size=2).map(tuple),
    signals=st.lists(st.builds(Signal, name=names, value=finite), max_size=2).map(tuple),
    stop_reason=st.sampled_from(["stop", "length", "abort"]),
    weight_version=st.integers(0, 1 << 40),
    seconds=finite,
)
verdicts = st.builds(
    Verdict,
    value=st.none() | st.floats(0, 1),
    level=names,
    trust=st.sampled_from(Trust),
    components=st.dictionaries(words, st.none() | finite, max_size=3),
    feedback=words,
    error=st.none() | words,
    grader=st.none() | words,
    noise=st.none()
    | st.builds(Noise, rho0=finite, rho1=finite, flipped=st.booleans(), clean_value=st.floats(0, 1), clean_level=words),
    appeal=st.none() | st.floats(0, 1),
)


@st.composite
def buffers(draw: st.DrawFn) -> TokenBuffer:
    buffer = TokenBuffer()
    for turn in range(draw(st.integers(0, 3))):
        ids = draw(st.lists(st.integers(0, 200_000), max_size=4))
        kind = draw(st.sampled_from([TokenKind.OBSERVATION, TokenKind.GUIDANCE]))
        buffer.append_text(ids, turn, kind)
        logprobs = st.floats(max_value=0.0, allow_nan=False)
        buffer.append_sampled(ids, draw(st.lists(logprobs, min_size=len(ids), max_size=len(ids))), turn)
        if draw(st.booleans()):
            buffer.fork()
    return buffer


trajectories = st.builds(
    Trajectory,
    task_id=names,
    split=st.sampled_from(["train", "validation", "test"]),
    prompt=st.lists(messages, max_size=2).map(tuple),
    turns=st.lists(turns, max_size=3),
    verdict=st.none() | verdicts,
    tokens=st.none() | buffers(),
    end=st.sampled_from(get_args(EndReason)),
    seed=st.integers(0, 2**63 - 1),
    attempt=st.integers(0, 100),
    hint=st.none() | words,
    off_policy=st.sampled_from(["none", "true", "shaped", "reset"]),
    error=st.none() | words,
    seconds=finite,
    extra=st.dictionaries(words, data, max_size=2),
)


def new_run(root: Path, **recipe: Any) -> RunDirectory:
    return RunDirectory.create(root, {"name": "trial", "seed": 7, **recipe}, name="run")


def plain(task_id: str = "t", turns_: int = 2) -> Trajectory:
    turn = Turn(Message(role="assistant", content="é"), (), (Signal(name="valid_calls", value=1.0),))
    verdict = Verdict(value=1.0, level="passed", trust=Trust.RPC)
    return Trajectory(task_id, "train", (Message(role="user", content="go"),), [turn] * turns_, verdict)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trajectories, max_size=3))
def test_trajectories_come_back_exactly_as_they_were_written(written: list[Trajectory]) -> None:
    with tempfile.TemporaryDirectory() as root:
        run = new_run(Path(root))
        run.write_trajectories(12, [Group("t", written)])
        assert run.read_trajectories(12) == written
        assert run.steps() == [12]


def test_a_file_of_trajectories_is_readable_with_plain_pyarrow_and_holds_the_rewards(tmp_path: Path) -> None:
    group = Group("t", [plain()])
    scheme = GatedRewards(ladder={"passed": 1.0}, threshold=1.0, step_weights={"valid_calls": 0.25})
    path = new_run(tmp_path).write_trajectories(3, [group], [scheme(group)])
    row = pq.read_table(path).to_pylist()[0]
    assert path.name == "step-000003.parquet"
    assert (row["task_id"], row["reward_outcome"], row["reward_steps"], row["reward_keep"]) == (
        "t",
        1.0,
        [0.25] * 2,
        True,
    )
    assert row["turns"][0]["action"]["content"] == "é"
    assert row["verdict"] == {
        "value": 1.0, "level": "passed", "trust": "rpc", "components": [], "feedback": "", "error": None,
        "grader": None, "noise": None, "appeal": None,
    }  # fmt: skip


def test_a_process_that_ends_as_soon_as_it_has_read_a_file_ends_well(tmp_path: Path) -> None:
    path = new_run(tmp_path).write_trajectories(0, [Group("t", [plain()])])
    code = "import sys, pathlib, agentgym.parquet as one; print(len(one.read_rows(pathlib.Path(sys.argv[1]))))"

    def read(_: int) -> tuple[int, str, str]:
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    # pyarrow's threads, if they read, abort or hang some of the processes only.
    with ThreadPoolExecutor(4) as many:
        assert set(many.map(read, range(32))) == {(0, "1\n", "")}


def test_a_step_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(ValueError, match="zip"):
        run.write_trajectories(0, [Group("t", [plain()])], [])
    broken = Rewards(outcome=["no number"], step=[[]], keep=[True])  # type: ignore[list-item]
    with pytest.raises(Exception, match="no number"):
        run.write_trajectories(0, [Group("t", [plain()])], [broken])
    assert run.steps() == []
    assert not list((run.path / "trajectories").glob("*"))


def test_an_exceptions_lone_surrogates_do_not_stop_the_run(tmp_path: Path) -> None:
    run, odd = new_run(tmp_path), plain()
    odd.error = "bad \ud800 text"
    run.write_trajectories(0, [Group("t", [odd])])
    assert run.read_trajectories(0)[0].error == "bad ? text"


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    path = run.write_trajectories(0, [Group("t", [plain()])])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(AgentgymError, match=r"no trajectories can be read at .*step-000000\.parquet"):
        run.read_trajectories(0)


def test_evaluations_are_kept_apart_by_name(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.write_trajectories(5, [Group("t", [plain()])])
    run.write_trajectories(0, [Group("t", [plain("held-out")])], name="evaluation")
    assert (run.steps(), run.steps(name="evaluation"), run.trajectory_names()) == ([5], [0], ["evaluation"])
    assert run.read_trajectories(0, name="evaluation")[0].task_id == "held-out"


def test_the_manifest_says_what_produced_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.open(new_run(tmp_path, tasks={"train": 4}).path)
    manifest = run.manifest
    assert manifest.recipe == {"name": "trial", "seed": 7, "tasks": {"train": 4}}
    assert (manifest.seed, manifest.argv, manifest.kind) == (7, sys.argv, "train")
    assert manifest.packages["numpy"]
    assert manifest.git is not None
    assert len(manifest.git.commit) == 40
    assert not manifest.git.dirty


def test_no_git_repository_is_no_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert new_run(tmp_path).manifest.git is None


def test_a_used_folder_is_refused_and_an_automatic_name_is_always_new(tmp_path: Path) -> None:
    new_run(tmp_path)
    with pytest.raises(AgentgymError, match="exists and is not an empty folder"):
        new_run(tmp_path)
    one, other = (RunDirectory.create(tmp_path, {"name": "auto"}) for _ in range(2))
    assert one.path != other.path


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AgentgymError, match=r"is not a run: it has no readable manifest\.json"):
        RunDirectory.open(tmp_path)


def test_metrics_are_read_back_and_what_is_not_finite_reads_as_nan(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    tracker = registry.create("trackers", "jsonl", folder=run.path)
    tracker.log(0, {"loss": 0.5, "reward": math.nan})
    tracker.log(1, {"loss": math.inf})
    tracker.close()
    first, second = run.metrics()
    assert (first["step"], first["loss"]) == (0, 0.5)
    assert math.isnan(first["reward"])
    assert math.isnan(second["loss"])


@given(st.integers(1, 60))
def test_a_torn_last_line_is_left_out_and_the_next_line_is_whole(cut: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        run = new_run(Path(root))
        tracker = run.tracker()
        for step in range(2):
            tracker.log(step, {"loss": 0.123456})
        tracker.close()
        path = run.path / "metrics.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        assert [line["step"] for line in run.metrics()] == [0]
        again = run.tracker()
        again.log(1, {"loss": 2.0})
        again.close()
        assert [(line["step"], line["loss"]) for line in run.metrics()] == [(0, 0.123456), (1, 2.0)]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    (run.path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(AgentgymError, match=r"metrics\.jsonl:2 is not JSON"):
        run.metrics()


def test_rewinding_forgets_a_step_and_all_after_it(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    tracker = run.tracker()
    for step in range(4):
        tracker.log(step, {"loss": float(step)})
        run.write_trajectories(step, [Group("t", [plain()])])
        run.write_trajectories(step, [Group("t", [plain()])], name="evaluation")
    tracker.close()
    (run.path / "trajectories" / ".step-000009.parquet.1").write_bytes(b"torn")
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    run.rewind(2)
    assert [line["step"] for line in run.metrics()] == [0, 1]
    assert (run.steps(), run.steps(name="evaluation")) == ([0, 1], [0, 1])
    assert not list((run.path / "trajectories").glob(".*"))


WRITER = """
import sys
from agentgym.run import RunDirectory
from agentgym.types import Group, Message, Trajectory
run = RunDirectory.open(sys.argv[1])
tracker = run.tracker()
for step in range(10**6):
    prompt = (Message(role="user", content="x" * 5000),)
    run.write_trajectories(step, [Group("t", [Trajectory("t", "train", prompt, [])])])
    tracker.log(step, {"loss": 1.0})
    print(step, flush=True)
"""


def test_what_was_written_before_a_kill_is_still_there_and_whole(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(run.path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == "8\n":
                os.kill(writer.pid, signal.SIGKILL)
                break
        last = max([8, *(int(rest) for rest in writer.stdout)])
    assert [line["step"] for line in run.metrics()][: last + 1] == list(range(last + 1))
    assert all(run.read_trajectories(step) for step in run.steps())
    assert run.steps()[: last + 1] == list(range(last + 1))


def test_without_pyarrow_the_error_says_how_to_add_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed; add it with: pip install .*\[train\]"):
        run.write_trajectories(0, [])


def test_reports_are_json(tmp_path: Path) -> None:
    path = new_run(tmp_path).write_json("report.json", {"pass": "100 %"})
    assert json.loads(path.read_text()) == {"pass": "100 %"}


def test_closing_a_tracker_twice_is_harmless(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.close()
    tracker.close()
