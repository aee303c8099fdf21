"""What a recipe refuses before its first episode."""

from __future__ import annotations

from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import CapabilityError, SandboxError
from agentgym.recipe import Recipe
from agentgym.sandbox import SandboxSpec
from agentgym.task import TaskSet
from agentgym.testing import CountingBackend, ToyEnv

ENV, BACKEND = "tests/Bounded-v0", "tests-watched"
MADE: list[CountingBackend] = []


class BoundedEnv(ToyEnv):
    """Asks for a sandbox, as its option says."""

    sandboxed = True

    def __init__(self, disk_mb: int | None = None, split: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        sandbox = SandboxSpec(disk_mb=disk_mb)
        tasks = [
            task.model_copy(update={"sandbox": sandbox}) if split in (None, task.split) else task
            for task in ToyEnv.tasks
        ]
        self.tasks = TaskSet("bounded", lambda: tasks)


def watched() -> CountingBackend:
    MADE.append(CountingBackend(registry.create("sandboxes", "process")))
    return MADE[-1]


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    if ENV not in registry.names("envs"):
        registry.register(ENV, BoundedEnv)
        registry.add("sandboxes", BACKEND, watched)
    try:
        watched().check()
    except SandboxError as missing:
        pytest.skip(str(missing))


def _recipe(disk_mb: int | None, split: str | None = None) -> Recipe:
    environment = {"id": ENV, "options": {"disk_mb": disk_mb, "split": split}}
    return Recipe.parse({"name": "bounded", "environment": environment, "sandbox": {"name": BACKEND}})


@pytest.mark.parametrize("split", ["train", "test", None])
def test_what_the_backend_lacks_is_refused_before_any_sandbox_starts(split: str | None) -> None:
    with pytest.raises(CapabilityError, match="disk_mb=64"):
        _recipe(64, split).prepare()
    assert MADE[-1].started == 0
    prepared = _recipe(None).prepare()
    assert prepared.train
    prepared.backend.close()


def test_training_environments_know_how_far_training_has_come_and_others_do_not() -> None:
    prepared = _recipe(None).prepare()
    prepared.clock.progress = 0.5
    assert (prepared.make_training_env().progress, prepared.make_env().progress) == (0.5, None)
