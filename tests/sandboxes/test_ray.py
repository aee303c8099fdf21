"""Sandboxes on the nodes of a real Ray cluster, beyond the contract that they share: where they go, what nodes do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_nodes import PLACES, Connect, Nodes, eventually, used

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import CapabilityError, SandboxError
from agentgym.guidance import RolloutRequest
from agentgym.policy import ScriptedPolicy
from agentgym.rollout import Limits, Rollouts
from agentgym.sandbox import SandboxSpec
from agentgym.task import Task
from agentgym.testing import ToyEnv, toy_task
from agentgym.types import Submission

pytest.importorskip("ray", reason="the ray extra is not installed")

from agentgym_sandboxes.ray_fleet import View, choose, states
from agentgym_sandboxes.ray_node import Report

SPEC = SandboxSpec()
Survivors = Callable[[str], list[str]]


REPORTS = st.builds(
    Report,
    capacity=st.integers(1, 4),
    used=st.integers(0, 4),
    is_draining=st.booleans(),
    has_image=st.booleans(),
    failure=st.sampled_from(["", "", "", "no daemon"]),
)


@given(reports=st.lists(REPORTS, max_size=6), pending=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_a_node_is_chosen_by_room_then_by_image_then_by_load(reports: list[Report], pending: list[int]) -> None:
    views = [View(str(i), str(i), report) for i, report in enumerate(reports)]
    sent = {str(i): count for i, count in enumerate(pending)}
    load = {one.id: (one.report.used + sent[one.id]) / one.report.capacity for one in views}
    able = [one for one in views if not (one.report.is_draining or one.report.failure) and load[one.id] < 1]
    chosen = choose(views, sent)
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert chosen in able
        alike = [one for one in able if one.report.has_image == chosen.report.has_image]
        assert load[chosen.id] == min(load[one.id] for one in alike)
        assert chosen.report.has_image or not any(one.report.has_image for one in able)


def test_sandboxes_spread_over_the_nodes(connect: Connect) -> None:
    backend = connect()
    with ExitStack() as boxes:
        for _ in range(10):
            boxes.enter_context(backend.start(SPEC))
        assert used() == {"one": 5, "two": 5}
    assert used() == {"one": 0, "two": 0}


def test_a_sandbox_goes_where_its_image_is_even_to_a_fuller_node(connect: Connect, ray_nodes: Nodes) -> None:
    backend = connect("shelf")
    (ray_nodes.shelf("two") / "rare-1").touch()
    spec = SandboxSpec(image="rare-1")
    with ExitStack() as boxes:
        opened = [boxes.enter_context(backend.start(spec)) for _ in range(4)]
        assert {box.read("shelf").decode() for box in opened} == {str(ray_nodes.shelf("two"))}
        with pytest.raises(SandboxError, match="'rare-2' is not on this machine"):
            backend.start(SandboxSpec(image="rare-2"))


def test_a_node_that_knows_no_such_backend_is_left_out_where_another_does(connect: Connect, ray_nodes: Nodes) -> None:
    other = ray_nodes.add("bare", PYTHONPATH="")
    assert eventually(lambda: "bare" in used())
    try:
        backend = connect("shelf")
        assert [view.name for view in backend.nodes() if "'shelf'" in view.trouble] == ["bare"]
        with ExitStack() as boxes:
            for _ in range(4):
                boxes.enter_context(backend.start(SPEC))
            assert used() == {"one": 2, "two": 2, "bare": 0}
    finally:
        ray_nodes.kill(other)
        assert eventually(lambda: "bare" not in used())


def test_an_image_that_is_nowhere_is_made_on_one_node_and_used_there(connect: Connect, ray_nodes: Nodes) -> None:
    backend = connect("shelf")
    with ExitStack() as boxes:
        opened = [boxes.enter_context(backend.start(SandboxSpec(image="made"))) for _ in range(4)]
        places = {box.read("shelf").decode() for box in opened}
    assert len(places) == 1
    assert sum((ray_nodes.shelf(name) / "made").exists() for name in ("one", "two")) == 1


def test_sixty_starts_at_once_never_exceed_the_capacity_and_all_succeed(connect: Connect) -> None:
    backend = connect()
    most = 2 * PLACES
    full, lock, now, peak = threading.Event(), threading.Lock(), 0, 0

    def work(_: int) -> bytes:
        nonlocal now, peak
        with backend.start(SPEC) as box:
            with lock:
                now, peak = now + 1, max(peak, now + 1)
            if peak == most:
                full.set()
            full.wait(60)
            time.sleep(0.5)  # while the others knock
            with lock:
                now -= 1
            return box.exec("echo done").stdout

    with ThreadPoolExecutor(60) as pool:
        assert list(pool.map(work, range(60))) == [b"done\n"] * 60
    assert peak == most
    assert used() == {"one": 0, "two": 0}


def test_a_node_whose_backend_fails_is_left_out_until_it_is_well(connect: Connect, ray_nodes: Nodes) -> None:
    sick = ray_nodes.shelf("one") / "sick"
    sick.touch()
    backend = connect("shelf")
    with ExitStack() as boxes:
        opened = [boxes.enter_context(backend.start(SPEC)) for _ in range(3)]
        assert {box.read("shelf").decode() for box in opened} == {str(ray_nodes.shelf("two"))}
        (ray_nodes.shelf("two") / "sick").touch()
        with pytest.raises(SandboxError, match=r"no Ray node can start 'shelf' sandboxes now: .*the shelf fell down"):
            backend.check()
        (ray_nodes.shelf("two") / "sick").unlink()
        sick.unlink()
        backend.check()
        well = boxes.enter_context(backend.start(SPEC))
        assert well.read("shelf").decode() == str(ray_nodes.shelf("one"))


OWNER = """
import sys
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.ray import RayBackend
box = RayBackend("process", lease_s=2).start(SandboxSpec())
print(box.id, flush=True)
box.exec("sleep " + sys.argv[1], timeout=600)
"""


def test_a_driver_that_is_killed_loses_its_sandboxes_with_its_lease_and_nobody_else_does(
    connect: Connect, marker: str, survivors: Survivors
) -> None:
    with connect(lease_s=2.0).start(SPEC) as mine:
        owner = subprocess.Popen([sys.executable, "-c", OWNER, marker], stdout=subprocess.PIPE)
        assert owner.stdout is not None
        with owner.stdout:
            assert owner.stdout.readline()
            assert sum(used().values()) == 2
            owner.kill()
            owner.wait()
        assert eventually(lambda: sum(used().values()) == 1)
        assert survivors(marker) == []
        assert mine.exec("echo alive").stdout == b"alive\n"


class Slow(AgentEnv):
    """Reverse a word in a sandbox, slowly, and be judged in a fresh one."""

    tasks = ToyEnv.tasks
    sandboxed = True
    levels = ("no_submission", "failed", "passed")

    @tool
    def reverse(self, text: str) -> str:
        """Reverse a text, after a while."""
        return self.sandbox.exec(["sh", "-c", 'sleep 0.2; echo "$1" | rev', "sh", text]).output

    @tool
    def answer(self, text: str) -> Submit:
        """Hand in the reversed word."""
        return Submit(text)

    def grade(self, task: Task, submission: Submission) -> bool:
        """Reverse again where the agent never was."""
        with self.sandboxes.start(task.sandbox) as box:
            given = str(submission.answer).strip().encode()
            return box.exec(["sh", "-c", "sleep 0.2; rev"], stdin=given).stdout.strip().decode() in task.public.prompt


def test_a_node_killed_in_mid_rollout_costs_nothing_but_time(
    connect: Connect, ray_nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    third = ray_nodes.add("three")
    assert eventually(lambda: "three" in used())
    backend = connect()
    starts: list[str] = []

    class Watched(Slow):
        def reset(self, **options: Any) -> Any:
            found = super().reset(**options)
            starts.append(found[0][-1].content)
            return found

    def script(episode: Any) -> list[str]:
        word = toy_task(int(episode.task_id.removeprefix("toy-"))).public.prompt.split("'")[1]
        return [f"```reverse\n{word}\n```"] * 4 + [f"```answer\n{word[::-1]}\n```"]

    requests = [RolloutRequest(toy_task(seed), 4, seed=seed) for seed in range(6)]
    limits = Limits(concurrency=24, retry_wait_s=0.1)

    def kill() -> None:
        assert eventually(lambda: used()["three"] >= 6)
        ray_nodes.kill(third)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        groups = asyncio.run(Rollouts(lambda: Watched(sandbox=backend), ScriptedPolicy(script), limits).run(requests))
        killed.result()
    ended = [one for group in groups for one in group.trajectories]
    assert [one.verdict.value for one in ended if one.verdict] == [1.0] * 24
    assert {one.end for one in ended} == {"submitted"}
    assert len(starts) > 24, "some episodes began anew"
    assert eventually(lambda: used() == {"one": 0, "two": 0})


def test_an_actor_that_is_killed_in_mid_command_is_told_and_replaced(
    connect: Connect, marker: str, survivors: Survivors
) -> None:
    import ray

    from agentgym_sandboxes.ray_cluster import NAMESPACE

    backend = connect()
    with backend.start(SPEC) as box, ThreadPoolExecutor(1) as pool:
        running = pool.submit(box.exec, f"touch began; sleep {marker}", timeout=600)
        assert eventually(lambda: box.exec("test -e began").ok)
        home = next(view for view in states() if view.report.used)
        ray.kill(ray.get_actor(f"sandboxes-1-{home.id}", namespace=NAMESPACE))
        with pytest.raises(SandboxError, match=rf"sandbox {box.id} is gone: the Ray node {home.name} is lost"):
            running.result(60)
    assert survivors(marker) == []
    with backend.start(SPEC) as other:
        assert other.exec("echo again").stdout == b"again\n"
    assert eventually(lambda: len([view for view in backend.nodes() if not view.report.failure]) == 2)


def test_an_actor_of_the_cluster_uses_it_from_its_threads(connect: Connect) -> None:
    import ray

    connect()

    class Actor:
        """As a rollout actor of a trainer is: asynchronous, with blocking work in threads."""

        async def work(self, count: int) -> list[str]:
            backend = registry.create("sandboxes", "ray", backend="process")

            def one(index: int) -> str:
                with backend.start(SandboxSpec()) as box:
                    return str(box.exec(f"echo {index}").output)

            try:
                return list(await asyncio.gather(*(asyncio.to_thread(one, index) for index in range(count))))
            finally:
                await asyncio.to_thread(backend.close)

    actor = ray.remote(Actor).options(num_cpus=0).remote()
    assert ray.get(actor.work.remote(8), timeout=120) == [f"{index}\n" for index in range(8)]
    ray.kill(actor)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "remote"}, "backend=remote cannot run on Ray's nodes: name what they have, such as docker"),
        ({"capacity": 4}, "say both address=local and capacity=N"),
        ({"address": "local"}, "say both address=local and capacity=N"),
        ({"lease_s": 0.1}, "lease_s must be 1 or more, not 0.1"),
        ({"wait_s": "long"}, "wait_s must be 0 or more, not 'long'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_impossible_option_is_one_sentence_before_any_cluster_is_joined(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        registry.create("sandboxes", "ray", **options)


def test_what_the_nodes_cannot_do_is_refused_by_name(connect: Connect) -> None:
    with pytest.raises(CapabilityError, match=r"refuses the backend 'dokcer': no sandbox backend .* mean 'docker'"):
        connect("dokcer")
    with pytest.raises(CapabilityError, match=r"the sandbox backend 'process' .*'warm'; it takes: trusted"):
        connect(warm=8)
    backend = connect()
    before = used()
    with pytest.raises(CapabilityError, match="the 'ray process' sandbox has no 'disk_limit'"):
        backend.start(SandboxSpec(disk_mb=64))
    with pytest.raises(CapabilityError, match="no 'snapshot'"):
        backend.fork("snapshot-1")
    assert used() == before
    with pytest.raises(SandboxError, match=r"is in the Ray cluster at .* and cannot join 192\.0\.2\.1:6379 too"):
        connect(address="192.0.2.1:6379")


ALONE = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/tmp/ray", "--unshare-pid", "--proc", "/proc"]
"""Where no cluster of this machine can be seen."""


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (
            "import sys; sys.modules['ray'] = None",
            'ray is not installed; add it with: pip install "agentgym-rlvr[ray]"',
        ),
        ("", "there is no Ray cluster at address 'auto'"),
        ("import os; os.environ['RAY_ADDRESS'] = '127.0.0.1:1'", "Connection refused"),
    ],
    ids=["no-ray", "no-cluster", "no-answer"],
)
def test_without_ray_or_a_cluster_one_sentence_says_what_to_do(
    connect: Connect, before: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    script = f"{before}\nfrom agentgym import registry\nregistry.create('sandboxes', 'ray').check()"
    done = subprocess.run([*ALONE, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert sentence in done.stderr.strip().splitlines()[-1]


@pytest.mark.docker
def test_docker_sandboxes_of_a_node_have_sessions_snapshots_and_built_images(connect: Connect) -> None:
    from agentgym.image import ImageSpec

    try:
        backend = connect("docker")
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    image = ImageSpec(files={"/made/by": "a build on the node"}).name
    backend.accept(SandboxSpec(image=image))
    with backend.start(SandboxSpec(image=image)) as box:
        assert box.exec("cat /made/by").stdout == b"a build on the node"
        box.write("notes/one", b"1")
        with box.shell() as remembers, box.terminal() as terminal:
            remembers.run("cd notes; export A=7")
            assert remembers.run("echo $A; cat one").stdout == b"7\n1"
            terminal.send("echo end-$((6 * 7))\r")
            assert b"end-42" in terminal.read(until=b"end-42").data
        name = box.snapshot()
        with backend.fork(name) as branch:
            assert branch.read("notes/one") == b"1"
        backend.drop(name)
        with pytest.raises(KeyError, match="was dropped"):
            backend.fork(name)
