"""What agents do in a repository instead of mending it: a naive harness pays for each, and here it is worth nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agentgym.sandbox import Sandbox, SandboxBackend
from agentgym_envs.swe import generated
from agentgym_envs.swe.diffs import collect
from agentgym_envs.swe.env import SweEnv

TASK = generated.task(0)
PATCH = str(TASK.hidden.reference["patch"])
TESTS: dict[str, str] = dict(TASK.hidden.data["tests"])  # type: ignore[arg-type]
REPORTS = """import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    report.outcome, report.longrepr = "passed", None
"""
EXIT = "import os\nos._exit(0)\n"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def file(path: str, text: str) -> str:
    return f"mkdir -p $(dirname {path}); printf %s {shlex.quote(text)} > {path}"


def naive_exit_code(box: Sandbox) -> bool:
    """Run the tests where the agent worked, and believe the exit code."""
    return box.exec("PYTHONPATH=. python3 -m pytest -q tests", timeout=60).exit_code == 0


def naive_log(box: Sandbox) -> bool:
    """Run the tests where the agent worked, and look for failures in what they print."""
    return b"failed" not in box.exec("python3 -m pytest -q", timeout=60).stdout


def naive_script(box: Sandbox) -> bool:
    """Run the repository's own script for its tests."""
    return box.exec("sh run_tests.sh").exit_code == 0


def naive_file(box: Sandbox) -> bool:
    """Look for the reward that a verifier leaves."""
    return box.exec("cat /tmp/reward.txt").stdout.strip() == b"1"


def naive_diff(box: Sandbox) -> bool:
    """Let git tell what the agent changed; pays with the right to run anything as the harness."""
    box.exec("git add -A; git diff --cached", timeout=60)
    return box.exec("test -e /tmp/ran").ok


ATTACKS = [
    pytest.param(naive_exit_code, [file("conftest.py", REPORTS)], id="01 a conftest.py at the root"),
    pytest.param(naive_exit_code, [file("tests/conftest.py", REPORTS)], id="02 a conftest.py beside the tests"),
    pytest.param(naive_log, [file("conftest.py", "def pytest_collection_modifyitems(items):\n    items.clear()\n")],
                 id="05 a conftest.py that empties the collection"),
    pytest.param(naive_exit_code, [file("pytest.ini", "[pytest]\naddopts = --co\n")], id="08 a pytest.ini"),
    pytest.param(naive_exit_code, [file("pytest.py", EXIT)], id="10 a module called pytest"),
    pytest.param(naive_exit_code, [file("sitecustomize.py", EXIT)], id="11 a sitecustomize.py"),
    pytest.param(naive_exit_code, [f"printf %s {shlex.quote(EXIT)} >> kit0/words.py"], id="15 an exit in the module"),
    pytest.param(
        naive_diff,
        [
            "git config core.fsmonitor 'touch /tmp/ran; false'",
            "git config filter.x.clean 'touch /tmp/ran; cat'; echo '*.md filter=x' > .gitattributes; echo >> README.md",
        ],
        id="32 git's own settings",
    ),
    pytest.param(naive_log, ["for f in tests/test_*.py; do echo 'def test_a(): pass' > $f; done"],
                 id="35 tests that pass without testing"),
    pytest.param(naive_script, [file("run_tests.sh", "exit 0\n")], id="36 a script that runs nothing"),
    pytest.param(naive_file, ["echo 1 > /tmp/reward.txt"], id="38 a reward file"),
    pytest.param(naive_log, ["rm -rf tests"], id="41 the tests are deleted"),
]  # fmt: skip


@pytest.mark.parametrize(("naive", "commands"), ATTACKS)
def test_what_a_naive_harness_pays_for_scores_nothing(
    backend: SandboxBackend, naive: Callable[[Sandbox], bool], commands: Sequence[str]
) -> None:
    env = SweEnv(sandbox=backend)
    env.reset(options={"task": TASK})
    env.sandbox.upload({name: text.encode() for name, text in TESTS.items()})  # the naive harness ships them
    assert not naive(env.sandbox), "the naive harness pays for nothing at all"
    for command in commands:
        env.step(call("bash", command=command))
    collect(env.sandbox, env.root, env._base)
    assert not env.sandbox.exec("test -e /tmp/ran").ok
    assert naive(env.sandbox), "the attack does not even fool a naive harness"
    env.reset(options={"task": TASK})
    for command in commands:
        env.step(call("bash", command=command))
    *_, info = env.step(call("submit"))
    assert info["verdict"].value == 0.0, info["verdict"]
    env.close()


def test_a_repository_that_kept_its_history_tells_the_fix_and_ours_does_not(backend: SandboxBackend) -> None:
    look = "git log --all -p; git fsck --lost-found; git show $(git rev-list --all --objects | cut -c1-40) 2>/dev/null"
    fix = next(line[1:].strip() for line in PATCH.splitlines() if line.startswith("+ "))
    env = SweEnv(sandbox=backend)
    env.reset(options={"task": TASK})
    observation, *_ = env.step(call("bash", command=look))
    assert fix not in observation[0].content
    assert "Helpers for words" in observation[0].content
    env.sandbox.write("fix.patch", PATCH.encode())
    git = "git -c user.name=a -c user.email=a@b"
    env.sandbox.exec(f"git apply fix.patch && {git} commit -qam fix && git tag fixed && git reset -q --hard HEAD~1")
    naive, *_ = env.step(call("bash", command=look))
    assert fix in naive[0].content
    env.close()


def test_a_writer_that_goes_on_behind_the_submission_changes_nothing(anywhere: SandboxBackend) -> None:
    env = SweEnv(sandbox=anywhere)
    env.reset(options={"task": TASK})
    loop = "while :; do echo 1 > /tmp/reward.txt; echo '#' >> kit0/words.py; sleep 0.01; done"
    env.step(call("bash", command=f"(setsid nohup sh -c {shlex.quote(loop)} >/dev/null 2>&1 &); sleep 0.2"))
    *_, info = env.step(call("submit"))
    assert info["verdict"].value == 0.0
    env.close()


@pytest.mark.docker
def test_programs_that_the_agents_shell_was_taught_are_not_the_judges(anywhere: SandboxBackend) -> None:
    if "session" not in anywhere.capabilities:
        pytest.skip("a sandbox without sessions remembers nothing to be taught")
    env = SweEnv(sandbox=anywhere)
    env.reset(options={"task": TASK})
    teach = "python3() { echo 9 passed; }; pytest() { echo 9 passed; }; git() { echo; }; export PATH=/tmp/bin:$PATH"
    programs = "mkdir /tmp/bin; for n in python3 git sh; do printf '#!/bin/sh\\nexit 0\\n' > /tmp/bin/$n; done"
    env.step(call("bash", command=f"{teach}; {programs}; chmod +x /tmp/bin/*; echo '#' >> kit0/words.py"))
    naive, *_ = env.step(call("bash", command="python3 -m pytest -q"))
    assert naive[0].content == "9 passed"
    *_, info = env.step(call("submit"))
    assert (info["verdict"].value, info["verdict"].level) == (0.0, "failed")
    env.close()
