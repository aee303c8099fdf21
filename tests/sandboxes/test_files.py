"""Files go in and out byte for byte, and nothing but files ever does."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentgym.sandbox import Sandbox

TRAPS = {
    "link-to-file": "ln -s /etc/passwd trap",
    "link-to-shadow": "ln -s /etc/shadow trap",
    "link-to-own-file": "echo mine > own; ln -s own trap",
    "dangling-link": "ln -s /nowhere trap",
    "link-loop": "ln -s trap trap",
    "fifo": "mkfifo trap",
    "socket": "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('trap')\"",
    "folder": "mkdir trap",
    "link-to-device": "ln -s /dev/zero trap",
    "link-to-proc": "ln -s /proc/self/environ trap",
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000))
def test_any_bytes_make_the_round_trip(box: Sandbox, data: bytes) -> None:
    box.write("file.bin", data)
    assert box.read("file.bin") == data


def test_a_written_file_belongs_to_the_agent_and_replaces_the_old_one(box: Sandbox) -> None:
    box.write("a/b/script.sh", b"#!/bin/sh\necho one\n")
    assert box.exec("chmod +x a/b/script.sh && a/b/script.sh && echo more >> a/b/script.sh && touch a/b/c").ok
    box.write("a/b/script.sh", b"#!/bin/sh\necho two\n")
    assert box.exec("a/b/script.sh").stdout == b"two\n"
    assert box.exec("ls -A a/b").stdout == b"c\nscript.sh\n"


def test_paths_are_absolute_or_relative_to_the_working_directory(box: Sandbox) -> None:
    box.write(f"{box.workdir}/one", b"1")
    box.write("/tmp/two", b"2")
    assert (box.read("one"), box.read(f"{box.workdir}//./one"), box.read("/tmp/two")) == (b"1", b"1", b"2")
    assert box.exec("cat one /tmp/two").stdout == b"12"


def test_names_of_every_kind_work(box: Sandbox) -> None:
    names = ["-rf", "a b", "näme", "$HOME", "'quote\"", "new\nline", "*", "...", "\\"]
    files = {f"dir/{name}": name.encode() for name in names}
    box.upload(files)
    assert box.download("dir") == {name: name.encode() for name in names}
    assert [box.read(f"dir/{name}") for name in names] == [name.encode() for name in names]


@pytest.mark.parametrize("path", ["../escape", "a/../../escape", "/tmp/../etc/passwd", "nul\0byte", "", "."])
def test_paths_that_lead_out_or_nowhere_are_refused(box: Sandbox, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        box.write(path, b"x")
    with pytest.raises(ValueError, match="path"):
        box.read(path)


def test_paths_may_be_as_long_as_a_system_takes_and_longer_ones_are_refused(box: Sandbox) -> None:
    depth = (4095 - len(box.workdir) - 1) // 51
    longest = "/".join(["d" * 50] * depth)
    longest += "f" * (4095 - len(box.workdir) - 1 - len(longest))
    box.write(longest, b"far down")
    assert box.read(longest) == b"far down"
    for call in (lambda: box.write(longest + "f", b"x"), lambda: box.read(longest + "f")):
        with pytest.raises(ValueError, match="4096 bytes; wanted at most 4095"):
            call()
    assert box.exec("true").ok


def test_a_missing_file_is_file_not_found(box: Sandbox) -> None:
    for path in ("nowhere", "no/where", "/tmp/nowhere"):
        with pytest.raises(FileNotFoundError, match="where"):
            box.read(path)
        with pytest.raises(FileNotFoundError, match="where"):
            box.download(path)


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS.keys())
def test_reading_refuses_whatever_is_not_a_plain_file(box: Sandbox, trap: str) -> None:
    assert box.exec(trap).ok
    with pytest.raises(ValueError, match="trap"):
        box.read("trap")


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS.keys())
def test_a_download_leaves_out_whatever_is_not_a_plain_file(box: Sandbox, trap: str) -> None:
    box.exec(f"mkdir out && cd out && echo good > good && {trap}")
    assert {"good", "own"} >= box.download("out").keys() >= {"good"}


@pytest.mark.parametrize("trap", [trap for name, trap in TRAPS.items() if name != "folder"])
def test_writing_replaces_a_trap_and_never_writes_through_it(box: Sandbox, trap: str) -> None:
    box.exec(f"echo mine > own; {trap}")
    box.write("trap", b"new")
    assert box.read("trap") == b"new"
    assert box.read("own") == b"mine\n"


def test_links_in_the_middle_of_a_path_are_not_followed(box: Sandbox) -> None:
    box.exec("mkdir real && echo x > real/file && ln -s real link && ln -s /etc etc && ln -s / root")
    for path in ("link/file", "etc/passwd", "root/etc/passwd"):
        with pytest.raises(ValueError, match="plain"):
            box.read(path)
        with pytest.raises(ValueError, match="plain"):
            box.write(path, b"x")
    with pytest.raises(ValueError, match="plain"):
        box.download("etc")


def test_a_link_to_the_outside_planted_by_the_agent_shows_nothing_of_the_host(box: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host secret")
    secret.chmod(0o644)
    box.exec(f"mkdir out && ln -s {secret} out/a && ln {secret} out/b; ln -s {tmp_path} out/c")
    assert box.download("out") == {}


def test_a_file_beyond_the_limit_is_refused_even_if_it_is_mostly_holes(box: Sandbox) -> None:
    box.exec("head -c 1000 /dev/zero > small; truncate -s 900M huge")
    assert len(box.read("small", limit=1000)) == 1000
    for name, limit in (("small", 999), ("huge", 1 << 20)):
        with pytest.raises(ValueError, match="more than"):
            box.read(name, limit=limit)


def test_a_download_is_capped_in_files_and_in_bytes(box: Sandbox) -> None:
    box.exec("mkdir many big && for i in $(seq 30); do echo x > many/$i; done; head -c 5000 /dev/zero > big/one")
    assert len(box.download("many", max_files=30)) == 30
    with pytest.raises(ValueError, match="more than 29"):
        box.download("many", max_files=29)
    with pytest.raises(ValueError, match="more than"):
        box.download("big", max_bytes=4999)
    box.exec("truncate -s 900M big/holes")
    with pytest.raises(ValueError, match="more than"):
        box.download("big")


def test_a_download_of_endless_depth_is_refused_and_can_still_be_removed(box: Sandbox) -> None:
    script = "import os\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')\nopen('file', 'w').close()"
    assert box.exec(["python3", "-c", script], cwd="/tmp").ok
    with pytest.raises(ValueError, match="deep"):
        box.download("/tmp")


def test_what_the_agent_locked_is_read_or_refused(box: Sandbox) -> None:
    box.exec("mkdir -p locked/in && echo x > locked/in/file && chmod 000 locked/in/file locked/in")
    try:
        assert box.read("locked/in/file") == b"x\n"
    except (ValueError, FileNotFoundError) as error:
        assert "locked/in/file" in str(error)  # noqa: PT017


def test_a_thousand_files_go_in_and_out_in_one_call(box: Sandbox) -> None:
    files = {f"d{i % 10}/f{i}": os.urandom(i) for i in range(1000)}
    box.upload({f"tree/{name}": data for name, data in files.items()})
    assert box.download("tree") == files
