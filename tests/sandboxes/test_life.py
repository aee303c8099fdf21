"""How sandboxes start, end, and leave nothing behind."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentgym.errors import CapabilityError, SandboxError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec

Survivors = Callable[[str], list[str]]
FIELDS = {"image": "no/such", "cpus": 0.5, "disk_mb": 64}
CAPABILITY = {"image": "image", "cpus": "cpu_limit", "disk_mb": "disk_limit"}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_the_backend_cannot_honour_is_refused_before_anything_starts(
    backend: SandboxBackend, field: str
) -> None:
    if CAPABILITY[field] in backend.capabilities:
        pytest.skip(f"the {backend.name} sandbox honours {field}")
    for refuse in (backend.accept, backend.start):
        with pytest.raises(CapabilityError, match=field):
            refuse(SandboxSpec.model_validate({field: FIELDS[field]}))


def test_snapshots_are_refused_by_a_backend_that_declares_none(backend: SandboxBackend, box: Sandbox) -> None:
    if "snapshot" in backend.capabilities:
        pytest.skip(f"the {backend.name} sandbox has snapshots")
    with pytest.raises(CapabilityError, match="snapshot"):
        box.snapshot()


def test_a_closed_sandbox_says_so_and_may_be_closed_again(backend: SandboxBackend) -> None:
    box = backend.start(SandboxSpec())
    box.close()
    box.close()
    for use in (lambda: box.exec("true"), lambda: box.read("x"), lambda: box.write("x", b""), lambda: box.download("")):
        with pytest.raises(SandboxError, match=f"{box.id} is closed"):
            use()


def test_closing_ends_a_running_command_of_another_thread(
    backend: SandboxBackend, marker: str, survivors: Survivors
) -> None:
    box = backend.start(SandboxSpec())
    failures: list[BaseException] = []

    def work() -> None:
        try:
            box.exec(f"sleep {marker}", timeout=60)
        except SandboxError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    box.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(failures) == 1
    assert "closed" in str(failures[0])
    assert survivors(marker) == []


def test_a_sandbox_ends_by_itself_when_its_time_is_over(backend: SandboxBackend) -> None:
    with backend.start(SandboxSpec(ttl_s=1.5)) as box:
        assert box.exec("echo in time").ok
        result = box.exec("sleep 60", timeout=30)
        assert result.timed_out
        assert result.duration_s < 5
        with pytest.raises(SandboxError, match="ttl_s"):
            box.exec("true")


def test_closing_the_backend_ends_every_sandbox(backend: SandboxBackend) -> None:
    other = type(backend)()
    boxes = [other.start(SandboxSpec()) for _ in range(3)]
    other.close()
    for box in boxes:
        with pytest.raises(SandboxError, match="closed"):
            box.exec("true")


def test_many_threads_share_a_backend_and_nothing_is_lost_or_crossed(backend: SandboxBackend) -> None:
    boxes = [backend.start(SandboxSpec()) for _ in range(8)]

    def work(i: int) -> bool:
        box = boxes[i % 8]
        box.write(f"in-{i}", str(i).encode())
        result = box.exec(f"cat; cat in-{i}; echo err-{i} >&2", stdin=f"stdin-{i} ".encode())
        return (result.stdout, result.stderr) == (f"stdin-{i} {i}".encode(), f"err-{i}\n".encode())

    try:
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(work, range(160)))
    finally:
        for box in boxes:
            box.close()


OWNER = """
import sys
from agentgym.sandbox import SandboxSpec
from {module} import {name}
box = {name}().start(SandboxSpec())
box.write("file", b"x")
print(box.id, flush=True)
box.exec("setsid sh -c 'trap : TERM; sleep {marker}' & sleep {marker}", timeout=600)
"""


def test_a_killed_owner_leaves_nothing_after_the_next_start_and_the_living_are_not_touched(
    backend: SandboxBackend, box: Sandbox, marker: str, survivors: Survivors
) -> None:
    kind = type(backend)
    script = OWNER.format(module=kind.__module__, name=kind.__name__, marker=marker)
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    orphan = owner.stdout.readline().strip()
    time.sleep(0.5)
    with kind().start(SandboxSpec()):
        assert owner.poll() is None
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with kind().start(SandboxSpec()) as later:
        assert orphan not in (later.id, box.id)
        assert survivors(marker) == []
        assert survivors(orphan) == []
    assert box.exec("echo alive").stdout == b"alive\n"
