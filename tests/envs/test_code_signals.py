"""What a turn of the code environment measures, and what gated rewards make of it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentgym.cli import app
from agentgym.evaluate import evaluate
from agentgym.graders.sources import parse
from agentgym.policy import ScriptedPolicy
from agentgym.rewards import GatedRewards
from agentgym.run import RunDirectory
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym_envs.code.env import CodeEnv

LADDER = {"no_submission": -1.0, "empty": -0.5, "broken": -0.5, "failed": 0.0, "passed": 1.0}
DOUBLE = Task(
    id="double",
    split="train",
    public=Public(
        prompt="Double it.",
        data={"examples": [{"call": f"f({x})", "expected": 2 * x} for x in (0, 3)], "entry": ["f"]},
    ),
    hidden=Hidden(data={"cases": [{"call": "f(7)", "expected": 14}]}, reference={"code": "def f(x): return 2 * x"}),
)
RIGHT = "def f(x): return 2 * x"
SCRIPTS = {
    "does not parse": "def f(x) return",
    "raises": "def f(x): return 1 / 0",
    "wrong": "def f(x): return x",
    "right": RIGHT,
}


def signals(backend: SandboxBackend, task: Task, *messages: str, **options: Any) -> list[dict[str, float]]:
    env = CodeEnv(TaskSet("one", lambda: [task]), sandbox=backend, **options)
    env.reset(options={"task": task})
    found = []
    for one in messages:
        *_, info = env.step(one)
        found.append(info["signals"])
    env.close()
    return found


def test_each_turn_says_what_its_code_did(backend: SandboxBackend) -> None:
    turns = signals(
        backend, DOUBLE, *(f"```test\n{code}\n```" for code in SCRIPTS.values()), f"```submit\n{RIGHT}\n```"
    )
    told = [
        tuple(turn.get(name, -1) for name in ("compiles", "runs", "visible_passed", "visible_gained")) for turn in turns
    ]
    assert told == [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0.5, 0.5), (1, 1, 1, 0.5), (1, -1, 1, 0)]
    assert [turn.get("submitted", 0) for turn in turns] == [0, 0, 0, 0, 1]
    assert [turn.get("tests_run", 0) for turn in turns] == [1, 1, 1, 1, 0]


def test_what_is_handed_in_untested_is_measured_too(backend: SandboxBackend) -> None:
    (broken,) = signals(backend, DOUBLE, "```submit\ndef f(x) return\n```")
    (wrong,) = signals(backend, DOUBLE, "```submit\ndef f(x): return x\n```")
    assert (broken["submitted"], broken["compiles"], broken["visible_passed"]) == (1, 0, 0)
    assert (wrong["submitted"], wrong["compiles"], wrong["visible_passed"], wrong["visible_gained"]) == (1, 1, 0.5, 0.5)


def test_testing_the_same_again_gains_nothing_and_a_new_episode_begins_anew(backend: SandboxBackend) -> None:
    env = CodeEnv(TaskSet("one", lambda: [DOUBLE]), sandbox=backend)
    for _ in range(2):
        env.reset(options={"task": DOUBLE})
        gained = [env.step(f"```test\n{RIGHT}\n```")[4]["signals"]["visible_gained"] for _ in range(3)]
        assert gained == [1, 0, 0]
    env.close()


@pytest.mark.parametrize("signal", CodeEnv.signals)
def test_gated_rewards_pay_each_signal_behind_the_gate_only(backend: SandboxBackend, data: Path, signal: str) -> None:
    (task,) = CodeEnv(family="classeval", path=str(data / "classeval" / "classeval.jsonl")).tasks.take(1)
    right, stub = (str(task.hidden.reference[name]) for name in ("code", "stub"))
    scheme = GatedRewards(ladder=LADDER, threshold=1.0, step_weights={signal: 0.25})
    paid = []
    for last in (right, stub):
        env = CodeEnv(TaskSet("one", lambda: [task]), sandbox=backend, scheme=scheme)
        env.reset(options={"task": task})
        env.step(f"```test\n{right}\n```")
        paid.append(env.step(f"```submit\n{last}\n```")[1])
        env.close()
    assert paid[0] > 1.0
    assert paid[1] == 0.0


def with_methods(skeleton: str, solution: str, count: int) -> str:
    """The skeleton with the bodies of so many of the solution's methods, beside its constructor and helpers."""
    module, solved = parse(solution), parse(skeleton)
    stubs = {
        part.name: part
        for one in solved.body
        if isinstance(one, ast.ClassDef)
        for part in one.body
        if isinstance(part, ast.FunctionDef)
    }
    for one in module.body:
        if isinstance(one, ast.ClassDef):
            methods = [part for part in one.body if isinstance(part, ast.FunctionDef) and part.name != "__init__"]
            for part in methods[count:]:
                if part.name in stubs:
                    part.body = stubs[part.name].body
    return ast.unparse(module)


def test_a_class_that_grows_by_a_method_a_turn_gains_a_step_at_a_time(backend: SandboxBackend, data: Path) -> None:
    tasks = list(CodeEnv(family="classeval", path=str(data / "classeval" / "classeval.jsonl")).tasks)
    scheme = GatedRewards(ladder=LADDER, threshold=1.0, step_weights={"suites_gained": 0.5})
    stepwise = 0
    for task in tasks[1:6:2]:
        skeleton, solution = (str(task.hidden.reference[name]) for name in ("stub", "code"))
        drafts = [with_methods(skeleton, solution, count) for count in range(0, 12, 2)]
        env = CodeEnv(TaskSet("one", lambda task=task: [task]), sandbox=backend, scheme=scheme)  # type: ignore[misc]
        env.reset(options={"task": task})
        gains = [env.step(f"```test\n{draft}\n```")[4]["signals"]["suites_gained"] for draft in drafts]
        _, paid, *_, info = env.step(f"```submit\n{solution}\n```")
        assert info["verdict"].components["suites"] == 1.0
        assert sum(gains) == pytest.approx(1.0)
        assert paid == pytest.approx(1.5)
        stepwise += sum(gain > 0 for gain in gains) > 1
        env.close()
    assert stepwise >= 2


def test_most_classes_show_a_test_of_each_method_and_hide_others(data: Path) -> None:
    from agentgym.graders.twins import tests_of

    tasks = list(CodeEnv(family="classeval", path=str(data / "classeval" / "classeval.jsonl")).tasks)
    for task in tasks:
        ((_, whole),) = task.hidden.data["tests"].items()  # type: ignore[union-attr]
        ((_, shown),) = task.public.data["visible"].items()  # type: ignore[union-attr]
        hidden, visible = tests_of(str(whole)), tests_of(str(shown))
        assert {suite for suite, _ in visible} == {suite for suite, _ in hidden}
        assert len(visible) < len(hidden)


def test_a_transcript_can_be_read_turn_by_turn(backend: SandboxBackend, tmp_path: Path) -> None:
    messages = ["```test\ndef f(x): return x\n```", "Let me think.", f"```submit\n{RIGHT}\n```"]
    run = RunDirectory.create(tmp_path, {"name": "shown", "seed": 0}, name="shown", kind="eval")
    evaluate(
        lambda: CodeEnv(TaskSet("one", lambda: [DOUBLE]), sandbox=backend),
        [DOUBLE],
        ScriptedPolicy(lambda _: messages),
        run=run,
    )
    shown = CliRunner().invoke(app, ["show", str(run.path), "--task", "double"], env={"COLUMNS": "200"}).stdout
    lines = shown.splitlines()
    heads = [index for index, line in enumerate(lines) if line.startswith("── turn ")]
    first = "\n".join(lines[heads[0] : heads[1]])
    assert len(heads) == 3
    assert "def f(x): return x" in first
    assert "tool: f(3): got 3, want 6" in first
    assert "visible_passed 0.5" in first
    assert "malformed 1" in "\n".join(lines[heads[1] : heads[2]])
    last = "\n".join(lines[heads[2] :])
    assert "submitted 1" in last
    assert "ended by submitted: 1 (passed, trust rpc)" in last
    assert "measured: passed 1, visible 1" in last
