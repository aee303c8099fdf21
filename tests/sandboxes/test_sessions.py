"""Shells that remember, and programs on terminals, on every backend that has them."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from carried import carried

from agentgym.errors import SandboxError
from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend, SandboxSpec, Shell, Terminal


@pytest.fixture
def box(backend: SandboxBackend) -> Iterator[Sandbox]:
    if "session" not in backend.capabilities:
        pytest.skip(f"the {backend.name!r} sandbox has no sessions")
    with backend.start(SandboxSpec(memory_mb=256)) as sandbox:
        yield sandbox


@pytest.fixture
def shell(box: Sandbox) -> Iterator[Shell]:
    with box.shell() as session:
        yield session


def said(result: ExecResult) -> tuple[int | None, str, str]:
    return result.exit_code, result.stdout.decode(), result.stderr.decode()


# ---- shells ----


def test_folder_variables_functions_and_exports_persist(box: Sandbox, shell: Shell) -> None:
    shell.run(
        "mkdir -p a/b; cd a; cd b; plain=1; export out=2; twice() { echo $(($1 * 2)); }; umask 027; alias hi='echo hi'"
    )
    assert said(shell.run("pwd; echo $plain; sh -c 'echo $out'; twice 21; umask\nhi")) == (
        0,
        f"{box.workdir}/a/b\n1\n2\n42\n0027\nhi\n",
        "",
    )
    assert shell.run("false; echo $?").stdout == b"1\n"
    assert shell.run("false").exit_code == 1
    assert shell.run("echo $?").stdout != b""


def test_streams_are_separate_and_exact_to_the_byte(shell: Shell) -> None:
    script = "import os; os.write(1, bytes(range(256))); os.write(2, b'\\x00\\xff\\r\\x1b[2J\\x1b[31m')"
    result = shell.run(f'python3 -c "{script}"')
    assert (result.exit_code, result.stdout, result.stderr) == (0, bytes(range(256)), b"\x00\xff\r\x1b[2J\x1b[31m")


@pytest.mark.parametrize("ending", ["", "; exit 3", "; kill -9 $$"], ids=["returns", "exits", "dies"])
def test_a_megabyte_arrives_whole_and_belongs_to_its_own_command(shell: Shell, ending: str) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096); sys.stderr.buffer.write(b'e' * 1000000)"
    for _ in range(5):
        result = shell.run(f'python3 -c "{script}"{ending}', output_limit=1 << 21)
        assert result.stdout == bytes(range(256)) * 4096
        assert result.stderr == b"e" * 1000000
        assert said(shell.run("echo next")) == (0, "next\n", "")


def test_output_beyond_the_limit_keeps_head_and_tail_and_counts_the_rest(shell: Shell) -> None:
    result = shell.run("echo first; head -c 1000000 /dev/zero; echo last", output_limit=1000)
    assert result.truncated
    assert result.stdout.startswith(b"first\n")
    assert result.stdout.endswith(b"last\n")
    assert result.dropped == 1_000_011 - 1000


@pytest.mark.parametrize(
    ("script", "code", "signal"),
    [
        ("exit 3", 3, None),
        ("exit", 0, None),
        ("exec true", 0, None),
        ("exec sh -c 'exit 5'", 5, None),
        ("exec no-such-program", 127, None),
        ("kill -9 $$", 137, 9),
        ("kill -TERM $$", 143, 15),
        ("set -e; false", 1, None),
        ("trap 'exit 9' EXIT; exit 1", 9, None),
    ],
)
def test_whatever_ends_the_shell_ends_not_the_session(
    box: Sandbox, shell: Shell, script: str, code: int, signal: int | None
) -> None:
    shell.run("mkdir 'a b'; cd 'a b'; export kept='x\n\"y'\\''z'; gone=1")
    result = shell.run(f"echo before; {script}")
    assert (result.exit_code, result.signal, result.stdout, result.timed_out) == (code, signal, b"before\n", False)
    assert said(shell.run('pwd; echo "$kept"; echo "${gone-none}"')) == (0, f"{box.workdir}/a b\nx\n\"y'z\nnone\n", "")


@pytest.mark.parametrize(
    "script", ["echo 'open", 'echo "open', "if true; then", "}", "( echo", "echo $(", "cat <<END", "case x"]
)
def test_unbalanced_quotes_and_other_nonsense_are_an_exit_code(shell: Shell, script: str) -> None:
    shell.run("kept=1")
    began = time.monotonic()
    result = shell.run(script, timeout=10)
    assert result.exit_code is not None
    assert result.exit_code != 0 or script.startswith("cat")
    assert time.monotonic() - began < 5
    assert shell.run("echo $kept").stdout in (b"1\n", b"\n")
    assert shell.run("echo alive").stdout == b"alive\n"


@pytest.mark.parametrize("script", ["set -u; echo $not_set_at_all", "echo ${bad substitution}", "readonly r=1; r=2"])
def test_an_error_that_would_end_a_script_does_not_end_the_shell(shell: Shell, script: str) -> None:
    shell.run("kept=1")
    result = shell.run(script)
    assert result.exit_code == 2
    assert result.stderr
    assert said(shell.run("echo $kept")) == (0, "1\n", "")


def test_options_of_the_agents_do_not_break_the_session(shell: Shell) -> None:
    assert shell.run("set -x; echo one").stdout == b"one\n"
    traced = shell.run("echo two")
    assert traced.stdout == b"two\n"
    assert not re.search(rb"[0-9a-f]{32}", traced.stderr)
    assert shell.run("set +x; set -eu; IFS=0123456789abcdef; set -f; set -C").exit_code == 0
    assert shell.run("cd /usr; echo three").stdout == b"three\n"
    assert shell.run("pwd").stdout == b"/usr\n"


def test_functions_in_place_of_what_the_session_itself_uses_do_not_break_it(shell: Shell) -> None:
    shell.run("printf() { echo mine; }; pwd() { echo nowhere; }; alias export=false")
    assert said(shell.run("printf x; pwd", timeout=5)) == (0, "mine\nnowhere\n", "")
    assert shell.run("cd /usr").exit_code == 0
    shell.run("exit")
    assert shell.run("pwd").stdout == b"/usr\n"


def test_a_closed_stream_is_the_agents_own_loss_until_the_shell_ends(shell: Shell) -> None:
    result = shell.run("echo before; exec 1>&- 2>&- 3>&-; echo after; cd /usr", timeout=10)
    assert (result.exit_code, result.stdout) == (0, b"before\n")
    assert shell.run("echo unheard", timeout=10).stdout == b""
    assert shell.run("exit 4", timeout=10).exit_code == 4
    assert said(shell.run("echo heard; pwd")) == (0, "heard\n/usr\n", "")


def test_a_script_has_no_input_and_cannot_eat_the_next_one(shell: Shell) -> None:
    assert said(
        shell.run("cat; read line; echo $? $line; python3 -c 'print(repr(input()))' 2>/dev/null; echo end")
    ) == (
        0,
        "1\nend\n",
        "",
    )
    assert shell.run("exec <&-; echo x").stdout == b"x\n"
    assert shell.run("echo next").stdout == b"next\n"


GUESS = r"""
import glob, os, re, sys
shell = os.getppid()
found = set()
def look(path):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        found.update(re.findall(rb"[0-9a-f]{32}", os.read(fd, 1 << 20)))
        os.close(fd)
    except OSError:
        pass
for name in ("environ", "cmdline"):
    for path in glob.glob(f"/proc/[0-9]*/{name}"):
        look(path)
for path in glob.glob(f"/proc/{shell}/fd/*"):
    if "pipe" in os.readlink(path):
        look(path)
print(len(found))
"""


def test_the_word_that_ends_a_command_cannot_be_read_from_where_programs_look(box: Sandbox, shell: Shell) -> None:
    box.write("guess.py", GUESS.encode())
    assert shell.run("python3 guess.py; :", timeout=10).stdout == b"0\n"
    assert not re.search(rb"[0-9a-f]{32}", shell.run("set; export -p; alias; trap", timeout=10).stdout)


@pytest.mark.parametrize(
    "forged",
    [
        "for n in 1 2 3 4 5 6 7 8 9; do echo 0123456789abcdef0123456789abcdef 0 >&$n; done 2>/dev/null",
        "for f in /proc/$$/fd/*; do echo 0123456789abcdef0123456789abcdef 0 > $f; done 2>/dev/null",
        "printf 'agentgym done 0\\n/\\n' | tee /dev/fd/2; echo EXIT:0",
    ],
)
def test_a_printed_sentinel_ends_nothing(shell: Shell, forged: str) -> None:
    shell.run("cd /usr")
    result = shell.run(f"{forged}\necho real; false", timeout=5)
    assert b"real\n" in result.stdout
    assert result.exit_code != 0
    alive = shell.run("echo alive; pwd", timeout=5)
    # Whoever writes into what the shell reads has its own shell run that.
    assert (alive.exit_code, alive.stdout.removeprefix(b"0123456789abcdef0123456789abcdef 0\n")) == (
        0,
        b"alive\n/usr\n",
    )


def test_a_timeout_keeps_partial_output_folder_and_exports_and_kills_the_tree(
    box: Sandbox, shell: Shell, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    shell.run("mkdir d; cd d; export kept=1")
    began = time.monotonic()
    result = shell.run(
        f"cd /; export kept=2; echo partial; sleep {marker} & setsid sleep {marker} & sleep {marker}", timeout=1
    )
    assert (result.exit_code, result.timed_out, result.stdout) == (None, True, b"partial\n")
    assert time.monotonic() - began < 5
    assert said(shell.run("pwd; echo $kept")) == (0, f"{box.workdir}/d\n1\n", "")
    assert survivors(marker) == []


def test_a_shell_that_waits_for_ever_between_commands_is_found_out(shell: Shell) -> None:
    assert shell.run("set -n", timeout=1).timed_out
    assert shell.run("echo alive").stdout == b"alive\n"


def test_background_jobs_live_on_and_do_not_hold_up_the_next_command(box: Sandbox, shell: Shell) -> None:
    began = time.monotonic()
    assert b"started\n" in shell.run("(while :; do echo tick; sleep 0.01; done) & echo started").stdout
    assert time.monotonic() - began < 2
    time.sleep(0.3)
    assert shell.run("sleep 0.3; echo later > file; jobs >/dev/null").stdout.count(b"tick") > 3
    assert box.read("file") == b"later\n"
    assert b"tick" not in shell.run("kill %1 2>/dev/null || kill $!; wait; echo over").stdout.partition(b"over")[2]


def test_a_background_flood_is_bounded_and_heard_by_nobody(box: Sandbox, shell: Shell) -> None:
    shell.run("yes & echo $!")
    time.sleep(1)
    result = shell.run("echo in between", timeout=10, output_limit=100_000)
    assert result.exit_code == 0
    assert len(result.stdout) < 101_000
    assert box.exec("echo alive").stdout == b"alive\n"
    assert shell.run("kill $!; wait", timeout=10).exit_code is not None
    assert shell.run("echo quiet", timeout=10).stdout.endswith(b"quiet\n")


def test_a_shell_that_dies_between_commands_costs_no_command(shell: Shell) -> None:
    shell.run("cd /usr; (sleep 0.2; kill -9 $$) >/dev/null 2>&1 &")
    time.sleep(0.6)
    assert said(shell.run("echo here; pwd")) == (0, "here\n/usr\n", "")


def test_a_folder_that_is_gone_is_replaced_by_the_working_directory(box: Sandbox, shell: Shell) -> None:
    shell.run("mkdir d; cd d")
    box.exec("rmdir d")
    assert shell.run("exit 1").exit_code == 1
    assert said(shell.run("pwd")) == (0, f"{box.workdir}\n", "")


@pytest.mark.parametrize("name", ["with space", "with\nnewline", "-n", "$(touch pwned)", "'", "ünïcode", "\\377"])
def test_a_new_shell_finds_a_folder_whatever_its_name(box: Sandbox, shell: Shell, name: str) -> None:
    box.write("name", name.encode())
    prepare = 'd=$(printf \'%bx\' "$(cat name)"); d=${d%x}; mkdir -- "$d"; cd -- "$d"; touch mark'
    assert said(shell.run(prepare)) == (0, "", "")
    shell.run("exit")
    assert shell.run("ls").stdout == b"mark\n"
    assert box.exec("ls pwned").exit_code != 0


def test_two_sessions_at_once_are_kept_apart(box: Sandbox) -> None:
    with box.shell() as one, box.shell() as other:
        results: dict[str, list[ExecResult]] = {"one": [], "other": []}

        def work(name: str, session: Shell) -> None:
            session.run(f"me={name}; mkdir {name}; cd {name}")
            results[name].extend(session.run("echo $me; pwd; sleep 0.01") for _ in range(20))

        threads = [threading.Thread(target=work, args=pair) for pair in (("one", one), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name, found in results.items():
        assert [result.stdout.decode() for result in found] == [f"{name}\n{box.workdir}/{name}\n"] * 20


def test_long_scripts_work_and_impossible_ones_are_refused(shell: Shell) -> None:
    assert shell.run(f"x='{'y' * 700_000}'; echo ${{#x}}").stdout == b"700000\n"
    for script, word in (("echo a\0b", "NUL"), ("x" * (1 << 20) + "x", "1048577 bytes"), ("echo \udc80", "Unicode")):
        with pytest.raises(ValueError, match=word):
            shell.run(script)
    assert shell.run("echo alive").stdout == b"alive\n"


def test_closing_a_session_kills_all_that_it_ever_started(
    box: Sandbox, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    with box.shell() as session:
        session.run(f"sleep {marker} & setsid sleep {marker} & exit 0")
        session.run(f"(setsid sleep {marker} &) ; sleep {marker} &")
        assert box.exec("echo alive").ok
    assert survivors(marker) == []
    with pytest.raises(SandboxError, match="closed"):
        session.run("true")
    assert box.exec("echo alive").stdout == b"alive\n"


@pytest.mark.parametrize("name", ["bash", "busybox"])
def test_any_posix_shell_will_do(backend: SandboxBackend, name: str) -> None:
    if not {"session", "user", "writable_root"} <= backend.capabilities:
        pytest.skip(f"the {backend.name!r} sandbox cannot replace /bin/sh")
    with backend.start(SandboxSpec(memory_mb=256, writable_root=True)) as box:
        box.upload(carried(name))
        box.exec("chmod 755 carried/run-*")
        replaced = box.exec(
            f"cp carried/{name} /bin/{name} && chmod 755 /bin/{name}; ln -sf {name} /bin/sh", user="root"
        )
        assert box.exec("true").ok, replaced.output
        box.write("guess.py", GUESS.encode())
        with box.shell() as shell:
            shell.run("mkdir 'a b'; cd 'a b'; x=1; export y='2\n\"3'; f() { echo f$1; }")
            assert said(shell.run('pwd; echo $x "$y"; f 4')) == (0, f'{box.workdir}/a b\n1 2\n"3\nf4\n', "")
            assert shell.run("python3 ../guess.py; :").stdout == b"0\n"
            for nonsense in ("echo 'open", "if true; then", "}", "echo $("):
                assert shell.run(nonsense).exit_code not in (0, None)
                assert said(shell.run("echo $x")) == (0, "1\n", "")
            for fatal, code in (("exit 3", 3), ("kill -9 $$", 137), ("set -e; false", 1), ("exec sh -c 'exit 5'", 5)):
                assert shell.run(fatal).exit_code == code
                assert said(shell.run('pwd; echo "$y"')) == (0, f'{box.workdir}/a b\n2\n"3\n', "")
            assert shell.run("cat; sleep 60", timeout=0.5).timed_out
            assert said(shell.run("pwd")) == (0, f"{box.workdir}/a b\n", "")


# ---- terminals ----


def look(terminal: Terminal, until: str, timeout: float = 30) -> str:
    data = terminal.read(timeout=timeout, until=until.encode()).data.decode(errors="replace")
    assert until in data, data
    return data


def test_a_program_has_a_terminal_of_the_size_that_was_asked_for(box: Sandbox) -> None:
    with box.terminal(rows=33, columns=111) as terminal:
        terminal.send("test -t 0 && test -t 1 && stty size; tty; echo $TERM; pwd\r")
        seen = look(terminal, f"{box.workdir}\r\n")
        assert "33 111\r\n" in seen
        assert "/dev/pts/" in seen
        assert "xterm-256color" in seen


def test_a_prompt_comes_and_typed_text_is_echoed(box: Sandbox) -> None:
    with box.terminal(["python3", "-q"]) as terminal:
        look(terminal, ">>> ")
        terminal.send("6*7\r")
        assert re.search(r"6\*7\r\n42\r\n", look(terminal, "42\r\n"))


def test_a_resize_reaches_the_program(box: Sandbox) -> None:
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
print("ready", *os.get_terminal_size(), flush=True)
while signal.sigwait([signal.SIGWINCH]): print("now", *os.get_terminal_size(), flush=True)
"""
    with box.terminal(["python3", "-c", script]) as terminal:
        look(terminal, "ready 80 24")
        terminal.resize(50, 132)
        look(terminal, "now 132 50")
        for shape in ((0, 80), (24, 1 << 16), (-1, -1)):
            with pytest.raises(ValueError, match="1 to 65535"):
                terminal.resize(*shape)


def test_control_c_control_d_and_control_z_do_what_they_do(box: Sandbox) -> None:
    with box.terminal(["/bin/sh", "-i"]) as terminal:
        terminal.send("PS1=REA''DY\r")
        look(terminal, "READY")
        terminal.send("sh -c 'echo BE''GUN; exec sleep 60'\r")
        look(terminal, "BEGUN\r\n")
        terminal.send("\x03")
        look(terminal, "READY")
        terminal.send("echo code $?\r")
        look(terminal, "code 130\r\nREADY")
        terminal.send("cat; echo cat $?\r")
        time.sleep(0.3)
        terminal.send("typed\r\x04")
        assert "typed\r\ntyped\r\ncat 0" in look(terminal, "cat 0\r\nREADY")
        terminal.send("sh -c 'echo A''GAIN; exec sleep 61'\r")
        look(terminal, "AGAIN\r\n")
        terminal.send("\x1a")
        assert "Stopped" in look(terminal, "READY")
        terminal.send("fg\r")
        look(terminal, "sleep 61")  # which the shell says as it hands the terminal over
        time.sleep(0.3)
        terminal.send("\x03")
        look(terminal, "READY")
        terminal.send("exit 7\r")
        assert terminal.read(timeout=10, until=b"never").exit_code == 7


FULL_SCREEN = """
import curses
def main(screen):
    screen.addstr(5, 10, "marble")
    screen.refresh()
    screen.timeout(100)  # curses misses a signal between its look for one and its read until it looks again
    while (key := screen.getch()) != ord("q"):
        if key == -1:
            continue
        screen.erase()
        screen.addstr(1, 1, f"key {key} of {screen.getmaxyx()}")
        screen.refresh()
curses.wrapper(main)
print("left")
"""


def test_a_full_screen_program_draws_hears_keys_and_leaves(box: Sandbox) -> None:
    with box.terminal(["python3", "-c", FULL_SCREEN]) as terminal:
        seen = look(terminal, "marble")
        assert "\x1b[?1049h" in seen
        assert "\x1b[6;11H" in seen
        terminal.send("\x1bOA")
        look(terminal, "key 259 of (24, 80)")
        terminal.resize(30, 90)
        look(terminal, "of (30, 90)")
        terminal.send("q")
        end = terminal.read(timeout=10, until=b"never")
        assert b"\x1b[?1049l" in end.data
        assert b"left\r\n" in end.data
        assert end.exit_code == 0


def test_a_file_can_be_edited_with_vi(box: Sandbox) -> None:
    box.upload(carried("vi"))
    box.write("text", b"one\ntwo\nthree\n")
    with box.terminal(["sh", "carried/run-vi", "-u", "NONE", "-N", "text"]) as terminal:
        look(terminal, "three")
        terminal.send("2Gcwmarble\x1b:wq\r")
        assert terminal.read(timeout=10, until=b"never").exit_code == 0
    assert box.read("text") == b"one\nmarble\nthree\n"


def test_a_pager_shows_pages(box: Sandbox) -> None:
    box.upload(carried("less"))
    box.write("text", b"".join(b"line %d\n" % i for i in range(1000)))
    with box.terminal(["sh", "carried/run-less", "text"], rows=10) as terminal:
        assert "line 500" not in look(terminal, "line 8\r\n")
        terminal.send("500g")
        assert "line 499" in look(terminal, "line 507")
        terminal.send("q")
        assert terminal.read(timeout=10, until=b"never").exit_code == 0


def test_a_flood_stops_where_nobody_reads_and_is_read_in_pieces(box: Sandbox) -> None:
    with box.terminal(["yes"]) as terminal:
        time.sleep(1)
        sizes = [len(terminal.read(timeout=1).data) for _ in range(3)]
        assert all(0 < size <= 1 << 20 for size in sizes), sizes
        began = time.monotonic()
        assert len(terminal.read(timeout=20, until=b"never").data) < 6 << 20
        assert time.monotonic() - began < 20
        assert box.exec("echo alive").stdout == b"alive\n"
    assert box.exec("echo alive").stdout == b"alive\n"


@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
def test_the_last_words_of_a_program_are_not_lost(box: Sandbox, size: int) -> None:
    script = f"import sys; sys.stdout.write('x' * {size} + 'END'); sys.stdout.flush()"
    with box.terminal(["python3", "-c", script]) as terminal:
        time.sleep(0.5)
        whole = b""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            seen = terminal.read(timeout=1)
            whole += seen.data
            if seen.exit_code is not None:
                break
    assert whole == b"x" * size + b"END"
    assert seen.exit_code == 0


def test_a_word_far_down_the_output_is_waited_for(box: Sandbox) -> None:
    with box.terminal(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; echo MARK; sleep 60"]) as terminal:
        assert len(terminal.read(timeout=20, until=b"MARK").data) >= 1_000_004


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 7", 7), ("kill -9 $$", 137), ("kill -HUP $$", 129), (["no-such-program"], 127), (["/usr"], 126)],
)
def test_the_end_of_a_program_is_told(box: Sandbox, command: str | list[str], code: int) -> None:
    with box.terminal(command) as terminal:
        assert terminal.read(timeout=10, until=b"never").exit_code == code
        terminal.send("into nowhere")
        assert terminal.read(timeout=0.1).exit_code == code


def test_bytes_typed_into_a_raw_terminal_arrive_as_they_are(box: Sandbox) -> None:
    data = bytes(range(256)) * 400
    script = f"stty raw -echo; echo go; head -c {len(data)} | sha256sum; head -c 3"
    with box.terminal(script) as terminal:
        look(terminal, "go")
        terminal.send(data)
        look(terminal, hashlib.sha256(data).hexdigest())
        terminal.send(b"\x03\x04\x1a")
        assert terminal.read(timeout=10, until=b"never").data.endswith(b"\x03\x04\x1a")


def test_a_program_that_reads_nothing_makes_typing_time_out(box: Sandbox) -> None:
    with box.terminal("stty raw -echo; echo go; sleep 60") as terminal:
        look(terminal, "go")
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="taken no input for 1 s"):
            terminal.send(b"x" * (2 << 20), timeout=1)
        assert time.monotonic() - began < 5
        assert box.exec("echo alive").stdout == b"alive\n"


def test_closing_a_terminal_kills_all_that_it_started(
    box: Sandbox, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    start = f"sleep {marker} & setsid sleep {marker} & (trap '' HUP TERM INT; exec sleep {marker}) & echo up"
    with box.terminal() as terminal:
        terminal.send(f"{start}; sleep {marker}\r")
        look(terminal, "up\r\n")
    assert survivors(marker) == []
    with box.terminal(f"{start}; exit 0") as terminal:
        assert terminal.read(timeout=10, until=b"never").exit_code == 0
    assert survivors(marker) == []
    assert box.exec("echo alive").stdout == b"alive\n"


def test_shells_terminals_and_commands_work_side_by_side(box: Sandbox) -> None:
    with box.terminal() as terminal, box.shell() as shell:
        terminal.send("echo from-$((40 + 2))\r")
        shell.run("x=1")
        assert box.exec("echo exec").stdout == b"exec\n"
        look(terminal, "from-42")
        assert shell.run("echo $x").stdout == b"1\n"


def test_closing_the_sandbox_ends_its_sessions(box: Sandbox) -> None:
    shell, terminal = box.shell(), box.terminal()
    shell.run("true")
    failed: list[Exception] = []

    def run() -> None:
        try:
            shell.run("sleep 60")
        except SandboxError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    box.close()
    thread.join(10)
    assert failed
    with pytest.raises(SandboxError):
        terminal.read(timeout=5)
