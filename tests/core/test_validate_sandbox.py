"""What validation finds in real sandboxes: hidden texts wherever they lie, repositories with a future, no image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import SandboxError, TaskError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.testing import ToyEnv
from agentgym.types import Submission, Verdict
from agentgym.validate import Plan, Validation, validate
from agentgym.validate.inside import future_in, hidden_in

GOLD = "gold-answer-of-many-letters"
PROGRAM = "def solve(x):\n    y = x\n    return y\n# the end of it\n"
Prepare = Callable[[Sandbox], Any]
HIDDEN, FUTURE = "nothing hidden is in the sandbox", "no repository has a future"


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def backend(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", request.param)
    try:
        found.check()
    except SandboxError as missing:
        if request.param == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    yield found
    found.close()


def nothing(box: Sandbox) -> None:
    """Leave the sandbox as it is."""


class Boxed(AgentEnv):
    """One task in a sandbox that a test prepares."""

    sandboxed = True
    prepare: Prepare = staticmethod(nothing)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        begun = super().reset(seed=seed, options=options)
        type(self).prepare(self.sandbox)
        return begun

    @tool
    def answer(self, text: str) -> Submit:
        """Hand in."""
        return Submit(text)

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        return submission.answer == task.hidden.data["answer"]

    def oracle(self, task: Task) -> Sequence[str]:
        return [f"```answer\n{task.hidden.data['answer']}\n```"]


def task_with(spec: SandboxSpec | None = None, **public: Any) -> Task:
    return Task(
        id="t",
        split="train",
        public=Public(prompt="Say the word.", **public),
        hidden=Hidden(data={"answer": GOLD, "program": PROGRAM}),
        sandbox=spec or SandboxSpec(),
    )


def found_with(backend: SandboxBackend, prepare: Prepare, spec: SandboxSpec | None = None, **public: Any) -> Validation:
    task = task_with(spec, **public)
    env = type("Prepared", (Boxed,), {"prepare": staticmethod(prepare)})
    return validate(lambda: env(TaskSet("t", lambda: [task]), sandbox=backend), [task], plan=Plan(attacks=0))


def write(path: str, text: str) -> Prepare:
    return lambda box: box.exec(["sh", "-c", f'mkdir -p "$(dirname {path})" && cat >{path}'], stdin=text.encode())


def test_an_empty_sandbox_holds_nothing(backend: SandboxBackend) -> None:
    found = found_with(backend, nothing)
    assert found.findings == ()
    assert found.checks[HIDDEN] == found.checks[FUTURE] == found.checks["its sandbox can be had"] == 1


LEFT = {
    "a file": write("answer.txt", f"it is {GOLD}!"),
    "a hidden binary": write(".cache/deep/er/x.bin", f"\x00\x01{GOLD}\x00"),
    "a temporary file": write("/tmp/left", GOLD),
    "a program of short lines": write("all/solution.py", f"import os\n{PROGRAM}"),
}


@pytest.mark.parametrize("prepare", LEFT.values(), ids=LEFT)
def test_a_hidden_text_in_a_file_is_found(backend: SandboxBackend, prepare: Prepare) -> None:
    env = Boxed(TaskSet("t", lambda: [task_with()]), sandbox=backend)
    env.reset()
    assert hidden_in(env, task_with()) is None
    prepare(env.sandbox)
    assert "the agent's sandbox holds" in str(hidden_in(env, task_with()))
    env.close()


def test_a_validation_says_what_lies_in_the_sandbox(backend: SandboxBackend) -> None:
    found = found_with(backend, write("answer.txt", GOLD))
    assert [one.check for one in found.findings] == [HIDDEN], found.findings


def test_a_hidden_text_in_the_environments_variables_is_found(backend: SandboxBackend) -> None:
    found = found_with(backend, nothing, SandboxSpec(env={"HINT": f"x{GOLD}"}))
    (one,) = found.failed(HIDDEN)
    assert "/environ" in one.problem


@pytest.mark.docker
def test_a_hidden_text_in_a_background_process_is_found(backend: SandboxBackend) -> None:
    if "background" not in backend.capabilities:
        pytest.skip("no process outlives its command here")
    found = found_with(backend, lambda box: box.exec(f"setsid sh -c 'sleep 30; : {GOLD}' >/dev/null 2>&1 &"))
    (one,) = found.failed(HIDDEN)
    assert "/cmdline" in one.problem


def test_what_is_public_or_lies_in_every_sandbox_is_no_leak(backend: SandboxBackend) -> None:
    shown = found_with(backend, write("x", GOLD), data={"example": GOLD, "start": PROGRAM})
    assert shown.findings == ()
    with backend.start(SandboxSpec()) as box:
        place = box.workdir
    task = Task(id="t", split="train", public=Public(prompt="Where are you?"), hidden=Hidden(data={"answer": place}))
    if len(place) >= 8:
        own = TaskSet("t", lambda: [task])
        assert not validate(lambda: Boxed(own, sandbox=backend), [task], plan=Plan(attacks=0)).failed(HIDDEN)


def git(script: str) -> Prepare:
    setup = (
        "git init -q r && cd r && git config user.name a && git config user.email a@a && "
        "git config core.logAllRefUpdates false && echo 1 >a && git add a && git commit -qm one && "
        "rm -rf .git/logs && "
    )

    def prepare(box: Sandbox) -> None:
        result = box.exec(setup + script)
        if result.exit_code == 127 or b"git: not found" in result.stderr:
            pytest.skip("no git in this sandbox")
        assert result.ok, result.output

    return prepare


def test_a_repository_of_one_commit_has_no_future(backend: SandboxBackend) -> None:
    assert found_with(backend, git("true")).findings == ()


AMEND = "echo 2 >a && git commit -qa --amend -m two"
FUTURES = {
    "another commit": ("echo 2 >a && git commit -qam two", "holds 2 commits"),
    "a branch": (
        "b=$(git symbolic-ref --short HEAD); git switch -qc x && echo 2 >a && git commit -qam 2 && git checkout $b",
        "holds 2 commits",
    ),
    "a dangling commit": (AMEND, "fsck says"),
    "a dangling file": ("echo the fix | git hash-object -w --stdin", "fsck says: unreachable blob"),
    "a stash": ("echo 2 >a && git stash -q", "has refs/stash"),
    "a reflog": ("git config core.logAllRefUpdates true && git checkout -qb y", "has logs"),
    "a tag": ("git tag v2", "has refs/tags"),
    "packed refs": ("git pack-refs --all", "has packed-refs"),
    "alternates": ("git init -q ../s && echo $PWD/../s/.git/objects >.git/objects/info/alternates", "alternates"),
    "a fetched head": ("git rev-parse HEAD >.git/FETCH_HEAD", "has FETCH_HEAD"),
    "a bare repository": ("git clone -q --bare . ../b.git && rm -rf .git", "packed-refs"),
    "a packed history": (f"{AMEND} && git gc -q --prune=never", "holds 2 commits"),
}


@pytest.mark.parametrize(("script", "said"), FUTURES.values(), ids=FUTURES)
def test_a_repository_with_a_future_is_found(backend: SandboxBackend, script: str, said: str) -> None:
    with backend.start(SandboxSpec()) as box:
        git(script)(box)
        assert said in "; ".join(future_in(box, own=True))


def test_a_validation_says_what_is_wrong_with_a_repository(backend: SandboxBackend) -> None:
    (one,) = found_with(backend, git(AMEND)).findings
    assert (one.check, one.task) == (FUTURE, "t")
    assert "holds 2 commits" in one.problem


def test_a_sandbox_that_cannot_be_had_is_a_finding_and_the_other_tasks_are_checked(backend: SandboxBackend) -> None:
    missing = SandboxSpec(image="agentgym-no-such-image:never")

    def task(name: str, spec: SandboxSpec) -> Task:
        return Task(
            id=name, split="train", public=Public(prompt=name), hidden=Hidden(data={"answer": GOLD}), sandbox=spec
        )

    tasks = [task("there", SandboxSpec()), task("gone", missing)]
    visits: list[int] = []
    found = validate(
        lambda: Boxed(TaskSet("t", lambda: tasks), sandbox=backend), tasks, on_done=lambda: visits.append(1)
    )
    assert [(one.check, one.task) for one in found.findings] == [("its sandbox can be had", "gone")]
    assert found.checks["oracle scores 1"] == 1
    assert len(visits) == 2 * 8


# ------------------------------------------------------------------------------------------- orders, spam, quarantine


def test_a_grader_that_minds_the_order_of_its_tasks_is_found_out() -> None:
    class Ordered(ToyEnv):
        """Knows the first task of the first pass only."""

        served: list[str] = []

        def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
            right = super().grade(task, submission)
            self.served.append(task.id)
            return right and self.served.count(task.id) < 3

    found = validate(Ordered, list(Ordered.tasks.take(3)), plan=Plan(attacks=0))
    assert {one.check for one in found.findings} == {"oracle repeats in another order"}
    assert len(found.findings) == 3


def test_spam_is_as_much_as_it_says() -> None:
    class Patient(ToyEnv):
        """Gives in to the hundredth call of a tool."""

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            self.calls = 0
            return super().reset(seed=seed, options=options)

        @tool
        def beg(self, text: str) -> Any:
            """Beg."""
            self.calls += 1
            return Submit(str(self._full_task.hidden.data["answer"])) if self.calls == 100 else "no"

    tasks = list(Patient.tasks.take(1))
    found = validate(Patient, tasks, plan=Plan(attacks=0))
    assert [one.check for one in found.findings] == ["spam of beg scores 0"]
    assert validate(Patient, tasks, plan=Plan(attacks=0, calls=12)).passed


BAD = """
from agentgym.testing import ToyEnv
class Bad(ToyEnv):
    "Takes everything for some tasks."
    def grade(self, task, submission):
        return task.id in ("toy-1", "toy-3") or super().grade(task, submission)
"""


def test_what_fails_is_quarantined_with_reasons_and_left_out_by_the_environment(
    shell: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    Path("bad.py").write_text(BAD)
    first = shell("validate", "bad.py", "--limit", 6, "--quarantine", "bad.yaml", "--jobs", 2)
    assert first.returncode == 1
    text = Path("bad.yaml").read_text()
    assert [line.partition(":")[0] for line in text.splitlines()] == [text.splitlines()[0], '"toy-1"', '"toy-3"']
    assert "empty submission scores 0: scored 1.0" in text
    again = shell("validate", "bad.py", "quarantine=bad.yaml", "--limit", 6)
    assert again.returncode == 0, again.stdout
    kept = ToyEnv(quarantine="bad.yaml").tasks
    assert [task.id for task in kept.take(3)] == ["toy-0", "toy-2", "toy-4"]
    assert [task.id for task in ToyEnv.tasks.quarantine("bad.yaml")] == [task.id for task in kept]
    shell("validate", "bad.py", "quarantine=bad.yaml", "--limit", 2, "--quarantine", "none.yaml")
    assert len(list(ToyEnv.tasks.quarantine("none.yaml"))) == 20


@pytest.mark.parametrize("text", ["- toy-1\n", "toy-1: 3\n", "a: [", "\xff"])
def test_a_file_that_is_no_quarantine_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(TaskError, match="quarantine file"):
        ToyEnv.tasks.quarantine(file)
    with pytest.raises(TaskError, match="no quarantine file can be read"):
        ToyEnv.tasks.quarantine(tmp_path / "none")


SLOW = """
import time
from agentgym.testing import ToyEnv
class Slow(ToyEnv):
    "Takes its time."
    def grade(self, task, submission):
        with open("graded.txt", "a") as told:
            print(task.id, file=told)
        time.sleep(0.3)
        return super().grade(task, submission)
"""


def test_an_interrupt_writes_what_was_found_until_then(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    program = [sys.executable, "-c", "from agentgym.cli import main; main()", "validate", "slow.py", "--jobs", "2"]
    running = subprocess.Popen(
        [*program, "--json", "found.json", "--quarantine", "bad.yaml"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    graded, deadline = tmp_path / "graded.txt", time.monotonic() + 60
    # An oracle plays twice: at a task's third grade, what was found of its oracle has been told.
    while time.monotonic() < deadline:
        often = Counter(graded.read_text().split() if graded.exists() else ())
        if sum(count >= 3 for count in often.values()) >= 2:
            break
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=30)
    assert running.returncode == 130, told
    found = Validation.model_validate(json.loads((tmp_path / "found.json").read_text()))
    assert not found.complete
    assert not found.passed
    assert found.checks["oracle scores 1"] >= 2
    assert found.findings == ()
    assert "interrupted" in told
    assert (tmp_path / "bad.yaml").is_file()
