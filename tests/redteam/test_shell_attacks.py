"""Attacks on the way commands are run: each gets the better of a naive runner, and of no sandbox."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator

import pytest

from agentgym import registry
from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxBackend, SandboxSpec


@pytest.fixture(scope="module", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def anywhere(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    made: SandboxBackend = registry.create("sandboxes", request.param)
    try:
        made.check()
    except SandboxError as missing:
        if request.param == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    yield made
    made.close()


def naively(command: str) -> str:
    """Run a command and wait until nobody holds its output any more."""
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False).stdout


class NaiveShell:
    """A shell that is kept, and read until a fixed word comes."""

    END = "__END__"

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["/bin/sh"], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def run(self, script: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{script}\necho {self.END}\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.strip() == self.END:
                break
            lines.append(line)
        return "".join(lines)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            assert self.process.returncode is not None


def test_a_child_that_holds_the_pipe_holds_up_a_naive_runner_and_nobody_else(anywhere: SandboxBackend) -> None:
    began = time.monotonic()
    naively("sleep 3 & echo done")
    assert time.monotonic() - began >= 3
    with anywhere.start(SandboxSpec()) as box:
        result = box.exec("sleep 40 & echo done", timeout=30)
    assert (result.stdout, result.timed_out) == (b"done\n", False)
    assert result.duration_s < 20


def alive(marker: str) -> bool:
    return subprocess.run(["pgrep", "-f", f"sleep {marker}"], capture_output=True, check=False).returncode == 0


def test_a_child_that_leaves_its_group_outlives_a_naive_timeout_and_no_other(anywhere: SandboxBackend) -> None:
    naive, ours = (f"9.{secrets.randbelow(10**9):09d}" for _ in range(2))
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            ["/bin/sh", "-c", f"setsid nohup sleep {naive} >/dev/null 2>&1 & exec sleep 5"], timeout=0.5, check=False
        )
    assert alive(naive)
    with anywhere.start(SandboxSpec()) as box:
        result = box.exec(f"setsid nohup sleep {ours} >/dev/null 2>&1 & exec sleep 60", timeout=1)
        assert result.timed_out
        deadline = time.monotonic() + 3
        while alive(ours) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(ours)


@pytest.mark.parametrize("script", ["exit 0", "exec true", "kill -9 $$"])
def test_what_ends_the_shell_ends_a_naive_session_and_no_other(anywhere: SandboxBackend, script: str) -> None:
    naive = NaiveShell()
    naive.run(script)
    naive.process.wait(10)
    with pytest.raises(BrokenPipeError):
        naive.run("echo alive")
    naive.close()
    if "session" not in anywhere.capabilities:
        pytest.skip("this backend has no sessions")
    with anywhere.start(SandboxSpec()) as box, box.shell() as shell:
        shell.run(script)
        assert shell.run("echo alive").stdout == b"alive\n"


def test_a_printed_end_forges_a_naive_sessions_output_and_no_others(anywhere: SandboxBackend) -> None:
    naive = NaiveShell()
    script = f"echo PASSED; echo {naive.END}; echo FAILED"
    assert "FAILED" not in naive.run(script)
    naive.close()
    if "session" not in anywhere.capabilities:
        pytest.skip("this backend has no sessions")
    with anywhere.start(SandboxSpec()) as box, box.shell() as shell:
        assert shell.run(script).stdout.endswith(b"FAILED\n")
        assert shell.run("echo next").stdout == b"next\n"


LATER = "git init -q r && cd r && git config user.name a && git config user.email a@a && echo bug >a && git add a && "
LATER += "git commit -qm one && echo the-fix >a && git commit -qam two && git reset -q --hard HEAD~1"


def test_a_naively_prepared_repository_tells_its_future(anywhere: SandboxBackend) -> None:
    from agentgym.validate.inside import future_in

    with anywhere.start(SandboxSpec()) as box:
        if not box.exec("git --version").ok:
            pytest.skip("no git in this sandbox")
        assert box.exec(LATER).ok
        naive = box.exec("cd r && git show $(git reflog --format=%h | tail -n +2 | head -n 1):a").stdout
        assert naive == b"the-fix\n"
        assert "holds 2 commits" in "; ".join(future_in(box, own=True))
