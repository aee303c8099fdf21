"""Nodes of a real Ray cluster are drained, crash, forget their clients, end, and are tidied up."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from ray_nodes import PLACES, Connect, Nodes, eventually, kill_actor, names_of_actors, used, well

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec

pytest.importorskip("ray", reason="the ray extra is not installed")

from agentgym_sandboxes._owner import Owner
from agentgym_sandboxes.ray import RayBackend
from agentgym_sandboxes.ray_fleet import states
from agentgym_sandboxes.ray_node import Kind, Node
from agentgym_sandboxes.serving.leases import GoneError

SPEC = SandboxSpec()


def test_a_draining_node_takes_nothing_new_and_what_it_has_goes_on(
    connect: Connect, shell: Callable[..., CompletedProcess[str]]
) -> None:
    backend = connect(wait_s=0.5)
    with backend.start(SPEC) as first, backend.start(SPEC) as second:
        told = shell("ray", "drain", "one")
        assert (told.returncode, "1 of 24 sandboxes, drains" in told.stdout) == (0, True), told
        try:
            with backend.start(SPEC), backend.start(SPEC):
                assert used() == {"one": 1, "two": 3}
            assert first.exec("echo 1").ok
            assert second.exec("echo 2").ok
            backend.drain("two")
            assert shell("ray", "nodes").stdout.count("drains") == 2
            with pytest.raises(SandboxError, match=r"could start within wait_s=0.5 s: .*one .*drains.*run fewer"):
                backend.start(SPEC)
            backend.accept(SPEC)
        finally:
            backend.drain("two", is_draining=False)
            told = shell("ray", "drain", "one", "--back")
        assert "1 of 24 sandboxes, open" in told.stdout
    with backend.start(SPEC), backend.start(SPEC):
        assert used() == {"one": 1, "two": 1}
        assert "1 of 24 sandboxes, drains" in shell("ray", "drain", "one", "--wait", "0.5").stdout
    try:
        assert "0 of 24 sandboxes, drains" in shell("ray", "drain", "one", "--wait", "60").stdout
    finally:
        backend.drain("one", is_draining=False)
    with pytest.raises(SandboxError, match=r"wanted the name of one Ray node .* found 'three'; known: .*two"):
        backend.drain("three")


def test_a_node_goes_on_draining_after_its_actor_crashed_and_being_taken_back_outlives_one_too(
    connect: Connect,
) -> None:
    backend = connect()
    one = backend.drain("one")
    try:
        kill_actor(one)
        assert [view.told.partition(": ")[2] for view in states() if view.id == one.id] == ["0 of 24 sandboxes, drains"]
        assert eventually(lambda: [view.report.is_draining for view in well(backend)] == [True, False])
        with backend.start(SPEC), backend.start(SPEC):
            assert used() == {"one": 0, "two": 2}
    finally:
        backend.drain("one", is_draining=False)
    kill_actor(one)
    assert eventually(lambda: [view.report.is_draining for view in well(backend)] == [False, False])
    with backend.start(SPEC), backend.start(SPEC):
        assert used() == {"one": 1, "two": 1}


class Key(str):
    """One that can be seen to be forgotten."""

    __slots__ = ("__weakref__",)


def test_a_node_forgets_the_keys_of_leases_that_expired(ray_nodes: Nodes) -> None:
    async def kept() -> int:
        node, kind = Node(4, idle_s=600.0), Kind.of("process", {"trusted": True}, 1.0)
        keys = [Key(f"client-{number}") for number in range(20)]
        known = [weakref.ref(key) for key in keys]
        for key in keys:
            await node.begin(kind, key)
        with pytest.raises(GoneError, match=r"does not know this client any more: .* heard nothing of it for too long"):
            await node.call("nobody", 7, None, 0.0, (), ())
        del key, keys
        deadline = time.monotonic() + 20.0
        while (left := sum(one() is not None for one in known)) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            gc.collect()
        return left

    before = {*threading.enumerate()}
    assert asyncio.run(kept()) == 0
    assert eventually(lambda: not any(isinstance(one, threading.Timer) for one in {*threading.enumerate()} - before))


def test_an_actor_that_nobody_uses_ends(connect: Connect, ray_nodes: Nodes) -> None:
    import ray

    from agentgym_sandboxes.ray_cluster import NAMESPACE

    node = ray_nodes.add("four", 2)
    assert eventually(lambda: "four" in used())
    try:
        backend = connect(idle_s=1.0)
        home = next(view for view in states() if view.name == "four")
        assert ray.get_actor(f"sandboxes-1-{home.id}", namespace=NAMESPACE)
        backend.close()

        def is_gone() -> bool:
            try:
                ray.get_actor(f"sandboxes-1-{home.id}", namespace=NAMESPACE)
            except ValueError:
                return True
            return False

        assert eventually(is_gone)
        with ExitStack() as boxes:
            for _ in range(6):
                boxes.enter_context(backend.start(SPEC))
            assert sum(used().values()) == 6
    finally:
        ray_nodes.kill(node)
        assert eventually(lambda: "four" not in used())


def test_an_actor_ends_that_was_only_drained_and_let_go_or_whose_driver_died_before_it_asked(
    ray_nodes: Nodes,
) -> None:
    import ray

    from agentgym_sandboxes.ray_cluster import NAMESPACE

    node = ray_nodes.add("five", 2)
    assert eventually(lambda: "five" in used())
    try:
        home = next(view for view in states() if view.name == "five")
        begun = [f"sandboxes-1-{home.id}", "never-asked"]
        assert not RayBackend("process", idle_s=1.0).drain("five", is_draining=False).report.is_draining
        ray.remote(Node).options(
            name="never-asked", namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_concurrency=1000
        ).remote(1, 1.0)
        assert set(begun) <= names_of_actors()
        assert eventually(lambda: not set(begun) & names_of_actors(), 60.0)
    finally:
        ray_nodes.kill(node)
        assert eventually(lambda: "five" not in used())


def test_a_node_that_is_not_there_is_one_sentence_on_the_command_line(connect: Connect, shell: Any) -> None:
    connect()
    told = shell("ray", "drain", "nowhere")
    assert told.returncode == 2
    assert "found 'nowhere'; known: " in told.stderr
    with pytest.raises(SandboxError, match="found ''; known: "):
        RayBackend().drain("")


@pytest.fixture
def own_machine() -> Iterator[Path]:
    """A folder for the temporary files of one node alone, into which its agents' users may look."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def test_what_a_crashed_actor_left_on_its_node_is_listed_and_removed_from_anywhere_and_nothing_else(
    connect: Connect, ray_nodes: Nodes, shell: Callable[..., CompletedProcess[str]], own_machine: Path
) -> None:
    node = ray_nodes.add("six", PLACES, TMPDIR=str(own_machine))
    assert eventually(lambda: "six" in used())
    try:
        backend = connect()
        assert eventually(lambda: len(well(backend)) == 3)
        with ExitStack() as boxes:
            held = [boxes.enter_context(backend.start(SPEC)) for _ in range(3)]
            [folder] = own_machine.glob("agentgym-*/*~*")
            left, _, tag = folder.name.partition("~")
            owner = Owner.from_tag(tag)
            assert owner is not None
            process = ("--backend", "process")
            listed = shell("ray", "ps", *process).stdout
            assert [line.split()[:4] for line in listed.splitlines() if left in line] == [
                [left, "process", "on", "six"]
            ]
            assert shell("ray", "gc", *process).stdout.count(f"six: kept sandbox {left}: its owner") == 1
            os.kill(owner.pid, signal.SIGKILL)
            assert eventually(owner.is_dead)
            assert f"six: would remove sandbox {left}: " in shell("ray", "gc", *process, "--dry-run").stdout
            assert folder.exists()
            assert f"six: removed sandbox {left}: " in shell("ray", "gc", *process).stdout
            assert not folder.exists()
            assert sum(box.exec("echo alive").stdout == b"alive\n" for box in held if box.id != left) == 2
    finally:
        ray_nodes.kill(node)
        assert eventually(lambda: "six" not in used())


def test_a_node_that_cannot_be_looked_after_is_said_and_the_exit_code_tells(
    connect: Connect, shell: Callable[..., CompletedProcess[str]]
) -> None:
    connect()
    told = shell("ray", "ps", "--backend", "dokcer")
    assert told.returncode == 1
    assert told.stderr.count("no sandbox backend is registered as 'dokcer'; did you mean 'docker'?") == 2
