"""What only the process backend promises: no daemon, and a word before running without isolation."""

import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.process import ProcessBackend

TOOLS = ("sh", "rm", "chmod", "prlimit", "setpriv", "python3", "sleep", "setsid", "env", "cat", "mkdir")


@pytest.fixture
def no_bwrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A PATH with the usual programs and no bubblewrap."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for tool in TOOLS:
            (folder / tool).symlink_to(Path("/usr/bin") / tool)
        monkeypatch.setenv("PATH", str(folder))
        yield folder


def test_without_bubblewrap_untrusted_code_is_refused_in_one_sentence(no_bwrap: Path) -> None:
    for use in (ProcessBackend().check, lambda: ProcessBackend().start(SandboxSpec())):
        with pytest.raises(SandboxError, match=r"bwrap.*apt-get install bubblewrap.*trusted: true"):
            use()


def test_a_bubblewrap_that_cannot_make_namespaces_is_refused_with_its_reason(no_bwrap: Path) -> None:
    fake = no_bwrap / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    fake.chmod(0o755)
    with pytest.raises(SandboxError, match=r"No permissions to create new namespace.*user namespaces.*trusted: true"):
        ProcessBackend().check()


def test_trusted_code_still_gets_bubblewrap_where_it_works() -> None:
    backend = ProcessBackend(trusted=True)
    if "isolation" not in backend.capabilities:
        pytest.skip("bubblewrap does not work here")
    with backend.start(SandboxSpec()) as box:
        assert box.workdir == "/workspace"


def test_trusted_code_without_bubblewrap_loses_isolation_and_the_backend_says_so(
    no_bwrap: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        backend = ProcessBackend(trusted=True)
        for _ in range(2):
            with backend.start(SandboxSpec()) as box:
                assert box.exec("pwd").stdout.decode().strip() == box.workdir
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no isolation, network or process limit" in caplog.text
    assert backend.capabilities == {"network_full", "process_memory_limit"}


def test_trusted_commands_are_bounded_and_die_with_their_escapees(
    no_bwrap: Path, marker: str, survivors: Callable[[str], list[str]]
) -> None:
    with ProcessBackend(trusted=True).start(SandboxSpec(memory_mb=128, env={"FROM": "spec"})) as box:
        box.write("in/file", b"data\n")
        result = box.exec("cat; cat in/file; echo $FROM $SECRET; exit 3", stdin=b"fed\n")
        assert (result.exit_code, result.stdout) == (3, b"fed\ndata\nspec\n")
        assert b"MemoryError" in box.exec(["python3", "-c", "bytearray(1 << 30)"]).stderr
        assert box.exec("kill -9 $$").exit_code == 137
        script = f"echo before; setsid sleep {marker} & (env -i sleep {marker} &) ; sleep {marker}"
        result = box.exec(script, timeout=0.5)
        assert (result.timed_out, result.stdout) == (True, b"before\n")
        assert survivors(marker) == []
        assert box.exec(f"setsid sleep {marker} & echo done").stdout == b"done\n"
        assert survivors(marker) == []
    assert not Path(box.workdir).exists()


def test_a_scratch_folder_that_somebody_else_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"agentgym-{os.geteuid()}").mkdir()
    (tmp_path / f"agentgym-{os.geteuid()}").chmod(0o777)
    with pytest.raises(SandboxError, match=r"TMPDIR"):
        ProcessBackend().check()


def test_every_sandbox_has_a_user_of_its_own_and_a_folder_that_goes_with_it() -> None:
    base = Path(tempfile.gettempdir()) / f"agentgym-{os.geteuid()}"
    backend = ProcessBackend()
    with backend.start(SandboxSpec()) as one, backend.start(SandboxSpec()) as two:
        folders = [next(base.glob(f"{box.id}~*")) for box in (one, two)]
        owners = {(folder / "work").stat().st_uid for folder in folders}
        if os.geteuid() == 0:
            assert len(owners) == 2
            assert 0 not in owners
        one.exec("mkdir -p x/y && chmod 000 x/y x; ln -s / z")
    assert not any(folder.exists() for folder in folders)


def test_a_command_costs_little_more_than_the_process_it_starts() -> None:
    with ProcessBackend().start(SandboxSpec()) as box:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            box.exec(["true"])
            times.append(time.perf_counter() - began)
    assert min(times) < 0.05  # about 6 ms on a quiet machine


def test_network_full_is_given_only_when_asked_for() -> None:
    script = ["python3", "-c", "import socket; print(*(name for _, name in socket.if_nameindex()))"]
    before = {name.encode() for _, name in socket.if_nameindex()}
    with ProcessBackend().start(SandboxSpec(network="full")) as open_box, ProcessBackend().start(SandboxSpec()) as box:
        assert box.exec(script).stdout.split() == [b"lo"]
        seen = set(open_box.exec(script).stdout.split())
        after = {name.encode() for _, name in socket.if_nameindex()}  # those of containers come and go
        assert before & after <= seen <= before | after
        assert open_box.exec("cat /etc/resolv.conf").ok == Path("/etc/resolv.conf").exists()
        assert not box.exec("cat /etc/resolv.conf").ok
