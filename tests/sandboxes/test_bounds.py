"""What a command may use up: time, output, processes, memory."""

import time
from collections.abc import Callable

import pytest

from agentgym.errors import AgentFault
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec

ESCAPES = {
    "child": "sleep {0} & sleep {0}",
    "setsid": "setsid sleep {0} & sleep {0}",
    "nohup": "nohup setsid sleep {0} >/dev/null 2>&1 & sleep {0}",
    "double-fork": "(setsid sh -c '(sleep {0} &)' &) ; sleep {0}",
    "ignores-term": "trap '' TERM HUP INT; setsid sh -c \"trap '' TERM; sleep {0}\" & sleep {0}",
    "stopped": "sh -c 'kill -STOP $$; sleep {0}' & sleep {0}",
    "closed-streams": "exec >&- 2>&-; sleep {0}",
    "forks-on": "while :; do setsid sleep {0} & sleep 0.02; done",
}


@pytest.mark.parametrize("script", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_timeout_kills_the_whole_tree_keeps_the_output_and_leaves_the_sandbox_usable(
    box: Sandbox, marker: str, survivors: Callable[[str], list[str]], script: str
) -> None:
    result = box.exec("echo before; " + script.format(marker), timeout=0.7)
    assert (result.timed_out, result.exit_code, result.stdout) == (True, None, b"before\n")
    assert 0.6 < result.duration_s < 5
    assert survivors(marker) == []
    assert box.exec("echo after").stdout == b"after\n"


def test_a_background_child_that_holds_the_pipe_does_not_hold_the_caller(
    box: Sandbox, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    began = time.monotonic()
    result = box.exec(f"sleep {marker} & echo started", timeout=20)
    assert (result.exit_code, result.stdout) == (0, b"started\n")
    assert time.monotonic() - began < 10
    box.close()
    assert survivors(marker) == []


def test_output_beyond_the_limit_keeps_head_and_tail_and_counts_the_rest(box: Sandbox) -> None:
    script = "import sys; sys.stdout.write('H' + 'x' * 999_998 + 'T'); sys.stderr.write('short')"
    result = box.exec(["python3", "-c", script], output_limit=1000)
    assert result.truncated
    assert result.stdout == b"H" + b"x" * 499 + b"\n[... 999000 bytes dropped ...]\n" + b"x" * 499 + b"T"
    assert result.stderr == b"short"


def test_output_at_the_limit_is_whole(box: Sandbox) -> None:
    result = box.exec(["python3", "-c", "print('x' * 999)"], output_limit=1000)
    assert (len(result.stdout), result.truncated) == (1000, False)


def test_endless_output_is_bounded_and_ends_at_the_timeout(box: Sandbox) -> None:
    result = box.exec("yes & yes >&2", timeout=0.7, output_limit=100)
    assert result.timed_out
    assert result.truncated
    assert len(result.stdout) < 200
    assert len(result.stderr) < 200


def test_a_fork_bomb_hits_the_limit_and_only_that(backend: SandboxBackend) -> None:
    bomb = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except OSError:
    print(made, flush=True)
os._exit(7)
"""
    with backend.start(SandboxSpec(pids=20)) as box:
        result = box.exec(["python3", "-c", bomb], timeout=20)
        assert result.exit_code == 7
        assert 10 <= int(result.stdout) <= 20
        assert box.exec("echo alive").stdout == b"alive\n"


def test_a_shell_fork_bomb_ends_at_the_timeout(
    box: Sandbox, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    script = f": {marker}; bomb() {{ bomb | bomb & }}; bomb; sleep 60"
    result = box.exec(script, timeout=1)
    assert result.timed_out or not result.ok
    assert survivors(marker) == []
    assert box.exec("echo alive").stdout == b"alive\n"


def test_a_memory_bomb_is_the_commands_failure_and_not_the_machines(backend: SandboxBackend) -> None:
    with backend.start(SandboxSpec(memory_mb=128)) as box:
        result = box.exec(["python3", "-c", "x = bytearray(1 << 30); print(len(x))"], timeout=20)
        assert not result.ok
        assert result.stdout == b""
        assert result.oom or b"MemoryError" in result.stderr
        assert box.exec("echo alive").stdout == b"alive\n"


def test_the_limits_of_the_spec_leave_room_for_what_is_allowed(backend: SandboxBackend) -> None:
    with backend.start(SandboxSpec(memory_mb=256)) as box:
        assert box.exec(["python3", "-c", "x = bytearray(100 << 20); print(len(x))"]).stdout == b"104857600\n"


def test_kill_minus_one_is_the_agents_own_loss(
    box: Sandbox, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    result = box.exec(f"sleep {marker} & kill -9 -1; sleep 0.2; echo still here", timeout=10)
    assert not result.timed_out
    assert survivors(marker) == []
    try:
        assert box.exec("echo alive").stdout == b"alive\n"
    except AgentFault:
        pytest.fail("PID 1 must survive kill -9 -1")


def test_small_special_filesystems_are_bounded_too(box: Sandbox) -> None:
    for folder in ("/dev", "/", "/dev/shm"):
        result = box.exec(f"head -c 200000000 /dev/zero > {folder}/fill; s=$?; rm -f {folder}/fill; exit $s")
        assert not result.ok, folder
