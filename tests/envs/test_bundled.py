"""Every environment that the project brings keeps what is promised of environments; none can be forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

from agentgym import registry
from agentgym.errors import SandboxError, VerifierError
from agentgym.task import Task
from agentgym.testing import ToyEnv
from agentgym.types import Submission
from agentgym.validate import Plan, validate
from agentgym_envs.code.tasks import GENERATED as CODE
from agentgym_envs.puzzles.tasks import FAMILIES as PUZZLES
from benchmarks.bundled import Bundled, bundled, bundled_ids
from benchmarks.conformance import AGENTS, END, PAGE, Effort, Line, Score, measure, shown_lines, table, with_lines
from benchmarks.crowd import _MORE, crowd, temporary_files

SOME = 2
"""Attacks where each takes a sandbox; `agentgym redteam` makes all, and tests/redteam all those of each grader."""
ROWS = [
    pytest.param(one, id=one.name, marks=[pytest.mark.docker] if one.backend == "docker" else []) for one in bundled()
]
CROWDS = [one for one in ROWS if one.id in ("Calculator-v0", "Code-v0:repair", "Mcp-v0:outside")]
"""One without sandboxes, one with them, one with a server behind it; `python -m benchmarks.crowd` does it with all."""


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Bundled:
    """A family whose sandboxes can be had here."""
    found: Bundled = request.param
    try:
        registry.create("sandboxes", found.backend).check()
    except SandboxError as missing:
        if found.backend == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    return found


def test_every_registered_environment_and_generated_family_is_played() -> None:
    assert {one.id for one in bundled()} == {*bundled_ids()}
    assert {"agentgym/Calculator-v0", "agentgym/Swe-v0"} <= {*bundled_ids()} <= {*registry.names("envs")}
    names = {one.name for one in bundled()}
    assert {f"Code-v0:{one}" for one in CODE} <= names
    assert {f"Puzzle-v0:{one}" for one in PUZZLES} <= names


@pytest.mark.parametrize("row", ROWS, indirect=True)
def test_ignorant_agents_score_nothing_and_the_expert_everything(row: Bundled) -> None:
    line = measure(row, Effort(tasks=2, attempts=1, jobs=4))
    assert line.tasks == 2
    assert line.broken() == []
    assert all(one.attempts == 2 for scores in line.scores.values() for one in scores)


@pytest.mark.parametrize("row", ROWS, indirect=True)
def test_it_passes_check_env_and_validate_and_the_red_team(row: Bundled) -> None:
    with row.furnished() as place:
        attacks = SOME if (sandboxed := place.make_env().sandboxed) else None
        found = validate(place.make_env, place.draw(1, seed=1), plan=Plan(jobs=2, attacks=attacks, calls=10))
        assert place.backend.open_count == 0
    assert found.passed, found.findings
    assert found.checks["gymnasium's contract holds"] == 1
    assert sum(count for check, count in found.checks.items() if check.startswith("red team")) >= (
        SOME if sandboxed else 4
    )


class Generous(ToyEnv):
    """Takes anything that is handed in for right, and loses its verdicts on one task."""

    def grade(self, task: Task, submission: Submission) -> bool:
        if task.id == "toy-3":
            raise VerifierError("lost")
        return submission.answer is not None


def test_an_environment_that_pays_ignorance_and_a_lost_verdict_are_told() -> None:
    registry.register("tests/Generous-v0", Generous)
    line = measure(Bundled("tests/Generous-v0"), Effort(tasks=20, attempts=1))
    told = line.broken()
    assert [one.split(" scored ")[0] for one in told] == [
        f"tests/Generous-v0 -: {script}" for script in ("random", "hasty", "spam", "recital", "oracle")
    ]
    assert "scored 1.000 where 0 is right (toy-0, toy-1, toy-2); unscored: VerifierError: lost" in told[1]
    assert line.scores["expert"][0].attempts == 20
    assert len(line.scores["expert"][0].unscored) == 1
    assert "| 100.0 [83, 100], 1 unscored |" in table([line])


def test_a_new_line_replaces_the_old_one_and_what_is_gone_goes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [*shown_lines(page).values()]
    stale = page.replace(rows[0], f"| `agentgym/Gone-v0` | - | 1 | 0 | 0 | 0 | 1 |\n{rows[0]}")
    first = bundled()[0]
    score = Score("noop", 0.5, 0.25, 0.75, 4, (), ())
    found = with_lines(stale, [Line(first.id, first.family, 4, dict.fromkeys(AGENTS, (score,)))])
    assert [*shown_lines(found).values()] == [
        f"| `{first.id}` | {first.family} | 4 | 50.0 [25, 75] | 50.0 [25, 75] | 50.0 [25, 75] | 50.0 [25, 75] |",
        *rows[1:],
    ]
    assert found.partition(END)[2] == page.partition(END)[2]


def test_the_page_has_a_line_for_every_family_and_a_figure_for_every_agent() -> None:
    page = PAGE.read_text(encoding="utf-8")
    lines = shown_lines(page)
    wanted = [(f"`{one.id}`", one.family) for one in bundled()]
    told = "run `python -m benchmarks.conformance --page`, with --only for what is new"
    assert [*lines] == wanted, told
    for line in lines.values():
        *ignorant, expert = line.strip("| ").split(" | ")[-len(AGENTS) :]
        assert all(cell.startswith("0.0 [0, ") for cell in ignorant), line
        assert expert.startswith("100.0 ["), line


@pytest.mark.parametrize("row", CROWDS, indirect=True)
def test_a_crowd_plays_at_once_on_a_server_and_leaves_nothing_behind(row: Bundled) -> None:
    with temporary_files():
        found = crowd(row, 16)
    assert found.is_well, found
    assert found.at_once == found.episodes


def test_a_crowd_of_which_one_fails_is_told() -> None:
    class Failing(ToyEnv):
        def oracle(self, task: Task) -> Sequence[str]:
            return ["```answer\nwrong\n```"] if task.id == "toy-0" else super().oracle(task)

    registry.register("tests/Failing-v0", Failing)
    with temporary_files():
        found = crowd(Bundled("tests/Failing-v0"), 20)
    assert not found.is_well
    assert (found.solved, found.episodes, found.at_once) == (19, 20, 20)
    assert not found.left


def test_what_each_crowd_leaves_is_told_and_what_one_leaves_warm_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[IO[str]] = []

    class Leaking(ToyEnv):
        bound = 10_000
        """Files that stay open at most."""

        def close(self) -> None:
            if len(kept) < self.bound:
                kept.append(Path("/dev/null").open())  # noqa: SIM115 -- this is the leak
            super().close()

    registry.register("tests/Leaking-v0", Leaking)
    monkeypatch.setattr("benchmarks.crowd._SETTLE_S", 0.5)
    with temporary_files():
        leaking = crowd(Bundled("tests/Leaking-v0"), 20)
        monkeypatch.setattr(Leaking, "bound", len(kept) + 50)  # full during the second crowd after the first
        warming = crowd(Bundled("tests/Leaking-v0"), 20)
    for one in kept:
        one.close()
    assert not leaking.is_well
    assert leaking.left["files"] >= 20
    assert leaking.solved == leaking.episodes == 20 * (1 + _MORE)
    assert warming.is_well, warming
    assert warming.solved == warming.episodes > 20


@pytest.mark.parametrize("row", [one for one in ROWS if one.id == "Swe-v0"], indirect=True)
def test_an_interrupted_crowd_ends_at_once_and_leaves_the_figures_of_the_families_before(
    row: Bundled, tmp_path: Path
) -> None:
    file = tmp_path / "crowd.json"
    words = ["--only", "Calculator-v0", "--only", row.name, "--episodes", "12", "--json", str(file)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.crowd", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(4)  # into the midst of the second crowd
        running.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, said = running.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert running.returncode == 130, said
    assert "interrupted" in said
    assert [one["environment"] for one in json.loads(file.read_text())] == ["agentgym/Calculator-v0"]
    assert [*tmp_path.iterdir()] == [file]
