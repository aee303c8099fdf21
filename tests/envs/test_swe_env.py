"""Software engineering end to end: a scripted agent mends real repositories; nothing tells it how."""

from __future__ import annotations

import gzip
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentgym.env import AgentEnv
from agentgym.errors import InfrastructureError, RecipeError, TaskError, UnknownNameError
from agentgym.graders.patches import apply, parse
from agentgym.graders.pytest_ids import PytestGrader
from agentgym.image import ImageSpec
from agentgym.redteam import Attack, run, target_of
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.scripted import junk_call
from agentgym.task import Hidden, Task, TaskSet
from agentgym.types import Submission
from agentgym.validate import Plan, validate
from agentgym.validate.inside import future_in, hidden_in
from agentgym_envs.swe import generated, mined
from agentgym_envs.swe.diffs import change
from agentgym_envs.swe.env import SweEnv
from agentgym_envs.swe.rewards import G_RA, LEVELS
from agentgym_envs.swe.sources import InImage
from agentgym_envs.swe.tasks import Environment, SweInstance, gold_files, to_task

REAL = "mahmoud__boltons-4aa77cddb5"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


SCRIPT = (
    call("search", pattern="maxsplit == 0", path="boltons"),
    call("bash", command="python3 -c 'from boltons.iterutils import split; print(split([1, 2], maxsplit=0))'"),
    call("editor", command="view", path="boltons/iterutils.py", view_range=[155, 165]),
    call(
        "editor",
        command="str_replace",
        path="boltons/iterutils.py",
        old_str="            yield [src]\n            return\n",
        new_str="            yield list(src)\n            return\n",
    ),
    call("bash", command="python3 -c 'from boltons.iterutils import split; print(split([1, 2], maxsplit=0))'"),
    call("bash", command="git diff --stat; python3 -m pytest -q tests/test_iterutils.py 2>&1 | tail -1"),
    call("submit"),
)


@pytest.fixture(scope="session")
def real(data: Path) -> Task:
    """A task of a real repository, from the source package that an index has of it."""
    with gzip.open(data / "swe_mined/tasks.jsonl.gz", "rt") as lines:
        row = next(row for row in map(json.loads, lines) if row["instance_id"] == REAL)
    try:
        return mined.convert(row)
    except InfrastructureError as missing:
        pytest.skip(str(missing))


def played(env: AgentEnv, task: Task, messages: Sequence[str]) -> tuple[float, dict[str, Any], list[str]]:
    """Return the reward of an episode, its last info, and what the tools answered."""
    env.reset(seed=0, options={"task": task})
    total, info, heard = 0.0, dict[str, Any](), []
    for message in messages:
        observation, reward, terminated, truncated, info = env.step(message)
        total += reward
        heard += [one.content for one in observation]
        if terminated or truncated:
            break
    return total, info, heard


@pytest.mark.docker
def test_a_scripted_agent_mends_a_real_repository_in_docker(docker: SandboxBackend, real: Task) -> None:
    env = SweEnv(sandbox=docker, scheme="g_ra")
    reward, info, heard = played(env, real, SCRIPT)
    assert "boltons/iterutils.py:160:" in heard[0]
    assert (heard[1], heard[4]) == ("[[[1, 2]]]", "[[1, 2]]")
    assert "1 file changed, 1 insertion(+), 1 deletion(-)" in heard[5]
    assert "passed" in heard[5]
    verdict = info["verdict"]
    assert (verdict.level, verdict.value, verdict.feedback) == ("passed", 1.0, "")
    assert reward == pytest.approx(1.0 + 0.05 + 0.1 + 0.2 + 0.05)
    signals = {one.name: one.value for turn in env.turns for one in turn.signals if one.value}
    wanted = ("found_gold", "edited", "ran_tests", "submitted", "changed", "applies", "touches_gold", "tests_run")
    assert {*wanted, "fail_to_pass", "pass_to_pass"} <= set(signals)
    env.close()


@pytest.mark.docker
def test_nothing_in_a_real_agents_sandbox_tells_the_fix(docker: SandboxBackend, real: Task) -> None:
    env = SweEnv(sandbox=docker)
    observation, info = env.reset(options={"task": real})
    gold = [line[1:].strip() for line in str(real.hidden.reference["patch"]).splitlines() if line[:2] == "+ "]
    tests = real.hidden.data["fail_to_pass"]
    assert gold == ["yield list(src)"]
    assert isinstance(tests, list)
    assert not any(str(one) in str((observation, info)) for one in (*gold, *tests))
    assert hidden_in(env, real) is None
    assert future_in(env.sandbox, own=True) == []
    one_commit_of(env.sandbox, env._base)
    names = [str(one).rpartition("::")[2].partition("[")[0] for one in tests]
    for secret in (*names, "instance_id", "fail_to_pass"):
        found = env.sandbox.exec(("grep", "-rlaF", "-e", secret, "/workspace", "/tmp", "/.agentgym", "/proc/1/environ"))
        assert found.stdout == b"", secret
    leaked = str(real.hidden.reference["patch"])
    env.sandbox.write("notes/old.patch", leaked.encode())
    assert "notes/old.patch" in str(hidden_in(env, real))
    env.close()


def one_commit_of(box: Sandbox, base: dict[str, bytes]) -> None:
    """Assert that a repository holds one commit, and no bytes but those of its files."""

    def git(*words: str) -> list[str]:
        result = box.exec(("git", *words))
        assert result.ok, result.output
        return result.stdout.decode().splitlines()

    held = [
        line.split() for line in git("cat-file", "--batch-all-objects", "--batch-check=%(objecttype) %(objectname)")
    ]
    assert [kind for kind, _ in held].count("commit") == 1
    blobs = {hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for data in base.values()}
    assert {name for kind, name in held if kind == "blob"} == blobs
    assert git("fsck", "--full", "--unreachable", "--lost-found", "--no-reflogs") == []
    assert git("reflog", "--all") == git("stash", "list") == git("tag") == git("remote") == []
    assert git("rev-list", "--all", "--count") == ["1"]
    assert git("status", "--porcelain") == []


def test_an_agents_repository_has_one_commit_and_no_other_object(backend: SandboxBackend) -> None:
    env = SweEnv(sandbox=backend)
    env.reset(seed=0)
    one_commit_of(env.sandbox, env._base)
    env.sandbox.exec("echo more >> README.md; git -c user.name=a -c user.email=a@b commit -qam more")
    assert "holds 2 commits, wanted one" in future_in(env.sandbox, own=True)[0]
    env.close()


def test_generated_repositories_are_sound_tasks_that_their_oracle_mends(backend: SandboxBackend) -> None:
    tasks = list(SweEnv(count=12).tasks)
    assert {one.public.prompt for one in tasks} == {one.public.prompt for one in generated.tasks(12, 12)}
    for task in tasks:
        base = {name: text.encode() for name, text in task.public.files.items()}
        fixed = apply(base, parse(str(task.hidden.reference["patch"]))).files
        for files, sound in ((base, False), (fixed, True)):
            tests = {**files, **{name: str(text).encode() for name, text in dict(task.hidden.data["tests"]).items()}}  # type: ignore[arg-type]
            assert holds(tests) is sound, task.id
    assert generated.task(3) == generated.task(3)
    found = validate(
        lambda: SweEnv(TaskSet("few", lambda: tasks[:1]), sandbox=backend, max_turns=4),
        tasks[:1],
        plan=Plan(attacks=3, calls=3),
    )
    assert found.passed, found.findings


def test_no_defect_of_a_generated_repository_that_is_trained_on_is_held_out() -> None:
    seen: dict[str, set[str]] = {}
    for one in SweEnv().tasks:
        seen.setdefault(one.split, set()).add(one.public.prompt)
    assert {name: len(prompts) for name, prompts in seen.items()} == {"train": 8, "validation": 2, "test": 2}
    assert len(set.union(*seen.values())) == 12


def holds(files: dict[str, bytes]) -> bool:
    """Whether the tests of a generated repository pass: its code is ours, so it may run here."""
    modules = {name.rpartition("/")[2][:-3]: text for name, text in files.items() if not name.startswith("tests/")}
    for name, text in files.items():
        if not name.startswith("tests/test_"):
            continue
        module = name.removeprefix("tests/test_").removesuffix(".py")
        library = type("library", (), {})()
        names: dict[str, Any] = {}
        exec(modules[module], names)
        library.__dict__.update(names)
        space: dict[str, Any] = {module: library}
        body = text.decode().partition("\n")[2]
        exec(body, space)
        try:
            for test in [one for one in space if one.startswith("test_")]:
                space[test]()
        except (AssertionError, ZeroDivisionError):
            return False
    return True


def test_doing_nothing_and_spam_are_worth_nothing(backend: SandboxBackend) -> None:
    env = SweEnv(sandbox=backend, max_turns=3)
    task = next(iter(env.tasks))
    for messages, level in (
        ([""] * 3, "no_submission"),
        ([call("submit")], "empty"),
        (["\n".join(junk_call(one) for one in env.tools.values())], "empty"),
        ([call("bash", command="echo 'x = 1' > kit0/words.py"), call("submit")], "failed"),
    ):
        reward, info, _ = played(env, task, messages)
        assert (reward, info["verdict"].value, info["verdict"].level) == (0.0, 0.0, level)
    env.close()


def test_what_agents_do_instead_of_mending_scores_nothing(backend: SandboxBackend) -> None:
    task = generated.task(0)

    def make() -> AgentEnv:
        return SweEnv(TaskSet("one", lambda: [task]), sandbox=backend)

    target = target_of(make, task)
    assert "diff" in target.gold.data
    attacks = make().attacks(task)
    assert len(attacks) >= 15
    for name, messages in attacks.items():
        assert not isinstance(messages, str)
        outcome = run(make, target, Attack(name, 35, "agents try", messages=tuple(messages)))  # type: ignore[arg-type]
        assert outcome.held, outcome


def test_an_attack_counts_only_because_it_does_not_mend(backend: SandboxBackend) -> None:
    task = generated.task(0)
    env = SweEnv(sandbox=backend)
    plant = call("editor", command="create", path="conftest.py", file_text="raise SystemExit(0)\n")
    _, info, _ = played(env, task, [plant, *env.oracle(task)])
    assert info["verdict"].passed
    assert "left out of the submission: conftest.py" in info["verdict"].feedback
    env.close()


def test_a_submission_that_cannot_be_a_diff_is_refused_and_the_episode_goes_on(backend: SandboxBackend) -> None:
    env = SweEnv(sandbox=backend)
    _, info, heard = played(
        env, generated.task(0), [call("bash", command="rm README.md; ln -s /etc/passwd README.md"), call("submit")]
    )
    assert "verdict" not in info
    assert heard[-1] == "error: 'README.md' was a plain file and is a link or something else now: make it a file"
    env.step(call("bash", command="rm README.md; git checkout README.md"))
    *_, info = env.step(call("submit"))
    assert info["verdict"].level == "empty"
    env.close()


def test_the_ladder_names_every_level_and_its_gate_opens_for_real_changes_only() -> None:
    rungs = [G_RA.ladder[one] for one in LEVELS]
    assert rungs == sorted(rungs)
    assert (rungs[0], rungs[-1]) == (-1.0, 1.0)
    best = [dict.fromkeys(("found_gold", "touches_gold", "fail_to_pass", "pass_to_pass"), 1.0)]
    assert sum(G_RA.settle("empty", best)[1]) == 0.0
    assert sum(G_RA.settle("failed", best)[1]) == pytest.approx(0.4)
    assert sum(G_RA.settle("failed", best)[1]) < G_RA.ladder["passed"] - G_RA.ladder["failed"]
    assert SweEnv(scheme="g_ra").scheme == G_RA
    with pytest.raises(RecipeError, match="signal"):
        SweEnv(scheme=G_RA.model_copy(update={"step_weights": {"no_such": 1.0}}))


def test_the_signals_that_pay_are_given_once(backend: SandboxBackend) -> None:
    env = SweEnv(sandbox=backend)
    view = call("editor", command="view", path="kit0/words.py")
    played(env, generated.task(0), [view, view, call("bash", command="python3 -m pytest -q"), *[view] * 2])
    assert sum(turn.signal("found_gold") for turn in env.turns) == 1.0
    assert [turn.signal("ran_tests") for turn in env.turns] == [0.0, 0.0, 1.0, 0.0, 0.0]
    env.close()


def test_families_are_named_and_their_paths_asked_for() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mined'"):
        SweEnv(family="mine")
    with pytest.raises(TaskError, match="pass path="):
        SweEnv(family="mined")
    with pytest.raises(TaskError, match="drop path="):
        SweEnv(path="x")


@pytest.mark.docker
def test_a_repository_in_an_image_loses_its_past_and_is_mended_there(docker: SandboxBackend) -> None:
    if "writable_root" not in docker.capabilities:
        pytest.skip("the socket proxy before this Docker allows no writable root")
    made = generated.task(0)
    base = {name: text.encode() for name, text in made.public.files.items()}
    right = apply(base, parse(str(made.hidden.reference["patch"]))).files["kit0/words.py"].decode()
    tests: dict[str, str] = dict(made.hidden.data["tests"])  # type: ignore[arg-type]
    test_patch = change(base, {**base, **{name: text.encode() for name, text in tests.items()}}).diff
    git = "git -c user.name=a -c user.email=a@b"
    fixed = shlex.quote(right)
    history = (
        f"cd /testbed; git init -q; git add -A; {git} commit -qm base; cp kit0/words.py /w; printf %s {fixed} > "
        f"kit0/words.py; {git} commit -qam 'the fix'; git tag fixed; {git} stash list; git gc -q; mv /w kit0/words.py; "
        f"git add -A; {git} commit -qm back"
    )
    files = {f"/testbed/{name}": text or "#\n" for name, text in made.public.files.items()}
    old = ImageSpec(files=files, run=(history,)).name
    with docker.start(SandboxSpec(image=old)) as box:
        assert box.exec("git -c safe.directory='*' -C /testbed log --all --oneline").stdout.count(b"\n") == 3
    instance = SweInstance(
        instance_id="kit0-1",
        repo="kit/kit0",
        base_commit="HEAD",
        problem_statement=made.public.prompt,
        patch=str(made.hidden.reference["patch"]),
        test_patch=test_patch,
        FAIL_TO_PASS=tuple(map(str, made.hidden.data["fail_to_pass"])),  # type: ignore[arg-type]
        PASS_TO_PASS=tuple(map(str, made.hidden.data["pass_to_pass"])),  # type: ignore[arg-type]
        source=InImage(root="/testbed"),
        environment=Environment(image=old, twins=0),
    )
    task = to_task(instance)
    env = SweEnv(TaskSet("image", lambda: [task]), sandbox=docker)
    env.reset(options={"task": task})
    assert env.root == "/testbed"
    one_commit_of(env.sandbox, env._base)
    assert future_in(env.sandbox, own=False) == []
    _, info, heard = played(env, task, env.oracle(task))
    assert (heard, info["verdict"].level) == (["[no output]"], "passed")
    env.close()


STRIDE = 50
"""Every so many mined tasks are judged; with 1, all 134 pass with their gold and fail with a comment."""
UNFIT = {
    "andialbrecht__sqlparse-46971e5a80": "hunk 1 does not fit",
    "andialbrecht__sqlparse-a194d3187b": "test_issue484_comments_and_newlines is marked as expected to fail",
    "andialbrecht__sqlparse-df8e28495a": "test_issue484_comments_and_newlines is marked as expected to fail",
    "pytoolz__toolz-1b23ada481": "hunk 2 does not fit",
    "pytoolz__toolz-eb665b9189": "hunk 1 does not fit",
    "sdispater__tomlkit-f14e9c78b4": "hunk 1 does not fit",
}


@pytest.mark.docker
@pytest.mark.usefixtures("real")
def test_the_gold_of_mined_tasks_passes_and_a_comment_in_its_place_does_not(
    docker: SandboxBackend, data: Path, tmp_path: Path
) -> None:
    with gzip.open(data / "swe_mined/tasks.jsonl.gz", "rt") as lines:
        rows = [row for row in map(json.loads, lines) if row["pypi_sdist"]]
    sound = [row for row in rows if row["instance_id"] not in UNFIT]
    assert (len(rows), len(sound)) == (140, 134)
    file = tmp_path / "few.jsonl"
    chosen = [*sound[::STRIDE], *(row for row in rows if row["instance_id"] in UNFIT)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in chosen))
    tasks = mined.tasks(file)
    for task in tasks:
        bare = task.model_copy(update={"hidden": Hidden(data={**task.hidden.data, "twins": 0})})
        gold = str(task.hidden.reference["patch"])
        name = next(one for one in gold_files(gold) if one in task.public.files)
        base = {name: task.public.files[name].encode()}
        comment = change(base, {name: base[name] + b"\n# mended\n"}).diff
        verdicts = [PytestGrader().grade(bare, Submission(data={"diff": diff}), docker) for diff in (gold, comment)]
        assert [one.value for one in verdicts] == [1.0, 0.0], (task.id, verdicts)
    refused = tasks.refused()
    assert set(refused) == set(UNFIT)
    assert all(UNFIT[name] in reason for name, reason in refused.items())
