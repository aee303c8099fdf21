"""Attacks fit any environment, fool a naive one, hold against an honest one, and harm nothing outside a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from pydantic import JsonValue

from agentgym import redteam, registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import AgentgymError
from agentgym.redteam import FAMILIES, Attack, Outcome, Target, attacks_on, chosen, isolated, run, target_of
from agentgym.rollout import Limits
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task
from agentgym.testing import ToyEnv
from agentgym.types import Submission, Trust, Verdict

Shell = Callable[..., CompletedProcess[str]]
NAIVE = """
from agentgym.env import AgentEnv, Submit, tool
from agentgym.sandbox import SandboxSpec
from agentgym.task import Hidden, Public, Task, TaskSet

def make(index):
    reference = {"code": f"def f(x):\\n    return x + {index}\\n"}
    return Task(id=f"n{index}", split="train", public=Public(prompt=f"Write f(x), which adds {index} to x."),
                hidden=Hidden(data={"want": 1 + index}, reference=reference))

class Naive(AgentEnv):
    "Believes an exit code."
    tasks = TaskSet("naive", lambda: [make(index) for index in range(2)])

    @tool
    def submit(self, code: str) -> Submit:
        "Hand in."
        return Submit(code)

    def grade(self, task, submission):
        code = f"{submission.answer or 'f = None'}\\nassert f(1) == {task.hidden.data['want']}\\n"
        return RUN

    def oracle(self, task):
        return [f"```submit\\n{task.hidden.reference['code']}\\n```"]
"""
IN_A_SANDBOX = 'self.sandboxes.start(SandboxSpec()).exec(["python3", "-I", "-c", code], timeout=9).exit_code == 0'
IN_THIS_PROCESS = "exec(code, {}) is None"


def outcomes(file: str) -> dict[str, Outcome]:
    found = [Outcome.model_validate(one) for one in json.loads(Path(file).read_text())]
    return {one.attack: one for one in found}


def test_a_naive_environment_is_fooled_and_reported_so(shell: Shell, needs_sandbox: None) -> None:
    Path("naive.py").write_text(NAIVE.replace("RUN", IN_A_SANDBOX))
    found = shell("redteam", "naive.py", "--sample", 1, "--json", "found.json")
    assert found.returncode == 1
    told = outcomes("found.json")
    fooled = {name for name, one in told.items() if one.end == "fooled"}
    assert {"exits at import", "exits politely", "equals everything", "asks its caller"} <= fooled
    assert {"does nothing", "is a comment", "returns not a number"}.isdisjoint(fooled)
    assert "FOOLED" in found.stdout
    assert "held" in found.stdout
    assert f"{len(fooled)} of {len(told)} attacks succeeded" in found.stdout
    assert "left out: nothing isolates" in found.stdout
    assert "kills everything" not in told
    validated = shell("validate", "naive.py", "--attacks", 100, "--json", "valid.json")
    assert validated.returncode == 1
    assert "red team, values: scores 0" in validated.stdout


def test_an_environment_that_runs_submissions_in_its_own_process_is_found_out_and_outlived(shell: Shell) -> None:
    Path("naive.py").write_text(NAIVE.replace("RUN", IN_THIS_PROCESS))
    found = shell("redteam", "naive.py", "--task", "n1", "--json", "found.json")
    assert found.returncode == 1
    told = outcomes("found.json")
    assert (told["exits at import"].end, told["exits at import"].value) == ("void", None)
    assert "in its own process" in told["exits at import"].detail
    assert told["equals everything"].end == "fooled"


def test_an_honest_environment_holds_and_the_exit_code_says_so(shell: Shell, needs_sandbox: None) -> None:
    found = shell("redteam", "agentgym/Calculator-v0", "--sample", 2, "--json", "found.json")
    assert found.returncode == 0, found.stdout
    assert len(outcomes("found.json")) > 30
    assert "attacks on 2 tasks held" in found.stdout
    one = shell("redteam", "agentgym/Code-v0", "--sample", 1, "--attack", "kills everything")
    assert one.returncode == 0, one.stdout
    assert "1 attacks on 1 tasks held" in one.stdout


def test_an_unknown_attack_or_task_is_one_sentence(shell: Shell) -> None:
    toy = "agentgym/Calculator-v0"
    assert "did you mean 'is infinite'" in shell("redteam", toy, "--attack", "is infinit").stderr
    assert shell("redteam", toy, "--task", "nowhere").returncode == 2


def test_attacks_that_could_harm_the_machine_are_only_made_where_a_sandbox_isolates_them(needs_sandbox: None) -> None:
    backend: SandboxBackend = registry.create("sandboxes", "process")
    make: Callable[..., AgentEnv] = registry.lookup("envs", "agentgym/Code-v0")

    class Own(type(make())):  # type: ignore[misc]
        """Judges by itself, and so perhaps anywhere."""

        def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
            found: Verdict = super().grade(task, submission)
            return found

    class Bare:
        """A backend without isolation."""

        def __getattr__(self, name: str) -> Any:
            return frozenset({"network_full"}) if name == "capabilities" else getattr(backend, name)

    task = next(iter(make().tasks))
    target = target_of(lambda: make(sandbox=backend), task)
    safe = make(sandbox=backend)
    assert isolated(safe, target)
    assert "kills everything" in {one.name for one in attacks_on(target, safe)}
    for env in (Own(sandbox=backend), make(sandbox=Bare())):
        assert not isolated(env, target)
        assert {one.danger for one in attacks_on(target, env)} == {"none"}
    backend.close()


class Attacked(ToyEnv):
    """Has a back door that only its author knows."""

    @tool
    def whisper(self, text: str) -> Submit:
        """Hand in a whisper."""
        return Submit(files={"whisper": text})

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        return super().grade(task, submission) or submission.files.get("whisper") == "sesame"

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        return {
            "says sesame": ["```whisper\nsesame\n```"],
            "hands sesame in": Submission(files={"whisper": "sesame"}),
            "says mustard": ["```whisper\nmustard\n```"],
        }


def ends(env: type[AgentEnv]) -> dict[str, str]:
    task = next(iter(env.tasks))
    target = target_of(env, task)
    return {one.name: run(env, target, one).end for one in attacks_on(target, env())}


def test_an_author_adds_attacks_by_a_method_and_a_package_by_an_entry_point() -> None:
    def more(target: Target) -> list[Attack]:
        return [Attack("from a package", 30, "is one of a package's", Submission(answer=target.task.id))]

    registry.add("attacks", "test-more", more)
    try:
        found = ends(Attacked)
    finally:
        del registry._registered["attacks"]["test-more"]
    assert (found["says sesame"], found["hands sesame in"], found["says mustard"]) == ("fooled", "fooled", "held")
    assert found["from a package"] == "held"
    assert "from a package" not in ends(ToyEnv)


def test_an_attempt_that_an_attack_leaves_unscored_is_no_held_attack() -> None:
    class Fragile(ToyEnv):
        """Breaks on long answers."""

        def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
            if len(submission.answer or "") > 10_000:
                return Verdict(value=None, level="unscored", trust=Trust.RPC, error="too long for me")
            if submission.answer == "nan":
                raise ZeroDivisionError
            return super().grade(task, submission)

    found = ends(Fragile)
    assert (found["is very long"], found["is not a number"], found["is infinite"]) == ("void", "void", "held")


def test_a_grader_that_never_returns_is_no_held_attack() -> None:
    import threading

    class Hanging(ToyEnv):
        """Waits for ever for the end of an answer."""

        def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
            if submission.answer == "inf":
                released.wait()
            return super().grade(task, submission)

    released = threading.Event()
    target = target_of(Hanging, next(iter(Hanging.tasks)))
    (attack,) = [one for one in attacks_on(target, Hanging()) if one.name == "is infinite"]
    found = run(Hanging, target, attack, Limits(turn_timeout_s=0.3))
    released.set()
    assert (found.end, found.value) == ("void", None)


def test_a_partial_value_is_a_success_only_for_an_attack_that_does_not_hold_the_answer() -> None:
    class Partial(ToyEnv):
        """Pays for overlap."""

        levels = ("no_submission", "failed", "partial", "passed")

        def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
            right, text = str(task.hidden.data["answer"]), submission.answer or ""
            value = 1.0 if text == right else 0.5 if right in text or text == "." else 0.0
            return Verdict(value=value, level="passed" if value == 1 else "partial", trust=Trust.RPC)

    found = ends(Partial)
    assert (found["is an essay"], found["is punctuation"], found["is a colon"]) == ("held", "fooled", "held")


def test_an_oracle_that_hands_nothing_in_is_one_sentence() -> None:
    class Silent(ToyEnv):
        """Has no expert."""

        def oracle(self, task: Task) -> Sequence[str]:
            return ["```reverse\nabc\n```"]

    with pytest.raises(AgentgymError, match="hands nothing in"):
        target_of(Silent, next(iter(Silent.tasks)))


def test_attacks_take_turns_so_that_many_tasks_meet_them_all() -> None:
    target = target_of(ToyEnv, next(iter(ToyEnv.tasks)))
    every = attacks_on(target, ToyEnv())
    met = {one.name for turn in range(20) for one in chosen(every, 3, turn)}
    assert met == {one.name for one in every}
    assert chosen(every, None, 3) == every
    assert chosen(every, 0, 3) == []


def test_two_attacks_of_one_name_and_a_row_that_is_not_in_the_catalogue_are_refused() -> None:
    class Twice(ToyEnv):
        """Names its attack like another."""

        def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
            return {"is empty": [""]}

    target = target_of(Twice, next(iter(Twice.tasks)))
    with pytest.raises(AgentgymError, match=r"two attacks .* 'is empty'"):
        attacks_on(target, Twice())
    with pytest.raises(AgentgymError, match="1 to 55; found 56"):
        Attack("x", 56, "y", Submission())
    with pytest.raises(AgentgymError, match="either a submission or messages"):
        Attack("x", 1, "y")


GOLDS: dict[str, tuple[Task, Submission]] = {
    "function": (
        Task(id="t", split="train", public=Public(prompt="p", data={"entry": ["f"]}), hidden=Hidden()),
        Submission(files={"a.py": "def f(x): return x"}),
    ),
    "stdio": (
        Task(id="t", split="train", public=Public(prompt="p", data={"languages": ["python"]}), hidden=Hidden()),
        Submission(files={"main.py": "print(1)"}),
    ),
    "answer": (Task(id="t", split="train", public=Public(prompt="p")), Submission(answer="Lima")),
    "state": (Task(id="t", split="train", public=Public(prompt="p")), Submission(data={"world": {"a": [1, "x"]}})),
    "pytest_ids": (
        Task(
            id="t",
            split="train",
            public=Public(prompt="p", files={"a.py": "x = 1\n", "tests/test_a.py": "def test_x(): assert 0\n"}),
            hidden=Hidden(data={"fail_to_pass": ["tests/test_a.py::test_x[1]"], "pass_to_pass": []}),
        ),
        Submission(files={"a.py": "x = 2\n"}),
    ),
}


@pytest.mark.parametrize("grader", GOLDS)
def test_every_grader_has_attacks_of_its_kind_that_never_are_the_solution(grader: str) -> None:
    task, gold = GOLDS[grader]
    found = attacks_on(Target(task, gold, (grader,), {}), ToyEnv(), "machine")
    handed_in = [one.submission for one in found if one.submission is not None]
    assert len(handed_in) >= 9
    assert gold not in handed_in
    assert all(one.row in FAMILIES[one.family] for one in found)


def test_a_composite_meets_the_attacks_of_all_its_parts() -> None:
    inner: list[JsonValue] = [{"name": "c", "grader": "function"}]
    parts: list[JsonValue] = [
        {"name": "a", "grader": "answer"},
        {"name": "b", "grader": "all", "hidden": {"components": inner}},
    ]

    class Both(ToyEnv):
        """Names a composite."""

        grader = "all"

    task = Task(id="t", split="train", public=Public(prompt="p"), hidden=Hidden(data={"components": parts}))
    graders = redteam.harness._graders(task, Both.grader)
    assert graders == ("all", "answer", "function")
    gold = Submission(answer="def f(x): return x")
    names = [one.name for one in attacks_on(Target(task, gold, graders, {}), ToyEnv(), "machine")]
    assert {"exits at import", "is an essay", "is empty", "is empty (2)"} <= {*names}
    assert len({*names}) == len(names)


def test_a_diff_is_answered_with_diffs() -> None:
    task, _ = GOLDS["pytest_ids"]
    diff = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
    found = attacks_on(Target(task, Submission(data={"diff": diff}), ("pytest_ids",), {}), ToyEnv(), "machine")
    given = {one.name: one.submission.data for one in found if one.submission is not None}
    assert all(isinstance(one["diff"], str) for one in given.values())
    assert "new file mode 120000" in str(given["is a symbolic link"]["diff"])
    from agentgym.graders.patches import apply, parse

    base = {name: text.encode() for name, text in task.public.files.items()}
    assert apply(base, parse(str(given["exits at import"]["diff"]))).files["a.py"].endswith(b"os._exit(0)\n")
