"""How a command is given, and how its end is told."""

import signal
import subprocess
import sys

import pytest

from agentgym.errors import CapabilityError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec


def test_a_string_is_a_shell_script(box: Sandbox) -> None:
    assert box.exec("echo $((6 * 7)); exit 3").stdout == b"42\n"
    assert box.exec("exit 3").exit_code == 3


def test_a_list_is_an_argument_vector_that_no_shell_reads(box: Sandbox) -> None:
    words = ["$HOME", "a b", "*", "'", "", "-n", "\n"]
    assert box.exec(["printf", "<%s>", *words]).stdout == "".join(f"<{word}>" for word in words).encode()


def test_streams_are_separate_and_exact_to_the_byte(box: Sandbox) -> None:
    script = "import os; os.write(1, bytes(range(256))); os.write(2, b'\\x00\\xff\\r\\x1b[2J')"
    result = box.exec(["python3", "-c", script])
    assert (result.exit_code, result.stdout, result.stderr) == (0, bytes(range(256)), b"\x00\xff\r\x1b[2J")
    assert result.output.endswith("\r\x1b[2J")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_stdin_arrives_whole_and_ends(box: Sandbox, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    assert box.exec(["cat"], stdin=data, output_limit=size * 2).stdout == data


def test_a_command_that_ignores_its_stdin_just_ends(box: Sandbox) -> None:
    assert box.exec("exec 0<&-; sleep 0.1; echo done", stdin=b"x" * 3_000_000).stdout == b"done\n"


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "ABRT", "INT"])
def test_death_by_a_signal_is_128_plus_its_number_and_adds_nothing_to_stderr(box: Sandbox, name: str) -> None:
    code = 128 + getattr(signal, f"SIG{name}")
    result = box.exec(f"kill -{name} $$")
    assert (result.exit_code, result.stderr) == (code, b"")


def test_a_missing_program_is_exit_code_127_and_not_a_broken_sandbox(box: Sandbox) -> None:
    assert box.exec(["no-such-program"]).exit_code == 127
    assert box.exec("true").ok


def test_a_file_that_may_not_run_is_exit_code_126(box: Sandbox) -> None:
    box.write("plain", b"text")
    assert box.exec(["./plain"]).exit_code == 126


def test_commands_run_in_the_working_directory_or_where_they_are_told(box: Sandbox) -> None:
    assert box.exec("pwd").stdout.decode().strip() == box.workdir
    box.exec("mkdir -p a/b")
    assert box.exec("pwd", cwd="a/b").stdout.decode().strip() == f"{box.workdir}/a/b"
    assert box.exec("pwd", cwd="/usr").stdout == b"/usr\n"


def test_a_missing_cwd_is_the_commands_failure_and_not_a_broken_sandbox(box: Sandbox) -> None:
    result = box.exec("pwd", cwd="nowhere")
    assert (result.exit_code, result.stdout) == (126, b"")
    assert b"nowhere" in result.stderr


def test_the_environment_is_the_specs_and_the_callers_and_nothing_of_the_hosts(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "from-the-host")
    with backend.start(SandboxSpec(env={"ONE": "spec", "TWO": "spec"})) as box:
        result = box.exec("echo $ONE $TWO $SECRET_TOKEN", env={"TWO": 'it\'s\n"caller" $x'})
        assert result.stdout == b'spec it\'s "caller" $x\n'
        assert b"SECRET" not in box.exec("env").stdout


@pytest.mark.parametrize("env", [{"A=B": "x"}, {"": "x"}, {"A": "x\0y"}])
def test_an_impossible_variable_is_refused(box: Sandbox, env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="environment variable"):
        box.exec("true", env=env)


@pytest.mark.parametrize("command", [[], [""], ["echo", "a\0b"], ["echo", "x" * 300_000]])
def test_an_impossible_command_is_refused(box: Sandbox, command: list[str]) -> None:
    with pytest.raises(ValueError, match="command"):
        box.exec(command)
    assert box.exec("true").ok


def test_files_in_the_working_directory_and_in_tmp_live_on_until_the_next_command(box: Sandbox) -> None:
    box.exec("echo one > kept; echo two > /tmp/kept")
    assert box.exec("cat kept /tmp/kept").stdout == b"one\ntwo\n"


def test_another_user_is_taken_or_refused_by_name(backend: SandboxBackend, box: Sandbox) -> None:
    assert box.exec("id -un", user="agent").stdout == b"agent\n"
    if "user" not in backend.capabilities:
        with pytest.raises(CapabilityError, match="not as 'root'"):
            box.exec("id -u", user="root")
        return
    assert box.exec("id -u; pwd; echo $A", user="root", env={"A": "b"}, cwd="/usr").stdout == b"0\n/usr\nb\n"
    assert box.exec("cat", user="65534", stdin=b"in").stdout == b"in"
    assert box.exec("echo before; sleep 60", user="root", timeout=0.5).timed_out
    with pytest.raises(ValueError, match="no user 'nobody-at-all'"):
        box.exec("id -u", user="nobody-at-all")


def test_python_and_the_usual_tools_are_there(box: Sandbox) -> None:
    assert box.exec("python3 -c 'import json, sqlite3, ssl' && which sed awk grep tar").ok
    assert box.exec("echo x > /dev/null && head -c 1 /dev/urandom | wc -c").stdout.strip() == b"1"
    multiprocessing = "import multiprocessing as m; print(m.Pool(2).map(abs, [-1]))"
    assert box.exec(["python3", "-c", multiprocessing]).stdout == b"[1]\n"


def test_streams_can_be_opened_again_by_name(box: Sandbox) -> None:
    if not box.exec("test -e /proc/self/fd").ok:
        pytest.skip("this machine forbids a sandbox its own /proc, of which these names are a part")
    result = box.exec("cat /dev/stdin > /dev/stdout; echo err > /dev/stderr", stdin=b"in")
    assert (result.stdout, result.stderr) == (b"in", b"err\n")


IGNORING = """
import signal
import subprocess
import sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.process import ProcessBackend
with ProcessBackend().start(SandboxSpec()) as sandbox:
    print(sandbox.exec("kill -INT $$").exit_code)
"""


def test_a_command_does_not_inherit_that_its_owner_ignores_a_signal() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORING], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "130\n", done.stderr
