"""The parts that other people's tests rely on keep their word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import pytest

from agentgym import registry
from agentgym.contamination import refuse_twins
from agentgym.env import AgentEnv
from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym.task import TaskSet
from agentgym.testing import CountingBackend, ToyEnv, check_environment, toy_task
from agentgym.types import Message, Verdict


def test_the_toys_tasks_repeat_and_its_splits_share_nothing() -> None:
    assert [toy_task(seed) for seed in range(8)] == [toy_task(seed) for seed in range(8)]
    assert Counter(task.split for task in ToyEnv.tasks) == {"train": 10, "validation": 5, "test": 5}
    held_out = [*ToyEnv.tasks.split("validation"), *ToyEnv.tasks.split("test")]
    refuse_twins(ToyEnv.tasks.split("train"), held_out)


@pytest.fixture
def counted() -> Iterator[CountingBackend]:
    backend = registry.create("sandboxes", "process")
    try:
        backend.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield CountingBackend(backend)
    backend.close()


def test_a_counting_backend_counts_and_otherwise_is_the_real_one(counted: CountingBackend) -> None:
    with counted.start(SandboxSpec()) as first, counted.start(SandboxSpec()) as second:
        assert (counted.started, counted.open_count) == (2, 2)
        first.upload({"a.txt": b"x"})
        first.write("b.txt", b"y")
        assert first.exec("cat a.txt b.txt").stdout == b"xy"
        assert first.read("a.txt") == b"x"
        assert set(first.download(first.workdir)) == {"a.txt", "b.txt"}
        assert second.download(second.workdir) == {}
        second.close()
        assert counted.open_count == 1
    assert counted.open_count == 0


def test_closing_a_counting_backend_closes_everything(counted: CountingBackend) -> None:
    box = counted.start(SandboxSpec())
    counted.close()
    assert counted.open_count == 0
    with pytest.raises(SandboxError):
        box.exec("true")


class PaysMore(ToyEnv):
    """Pays what its scheme does not say."""

    def settle(self, verdict: Verdict) -> float:
        return super().settle(verdict) + (0.5 if not self._running else 0.0)

    def step(self, action: Message | str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 1.0, terminated, truncated, info


class EndsTwice(ToyEnv):
    """Is terminated and truncated at once."""

    def step(self, action: Message | str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, info


class SpeaksForTheAssistant(ToyEnv):
    """Returns observations that no environment may make."""

    def step(self, action: Message | str) -> Any:
        _, *rest = super().step(action)
        return (Message(role="assistant", content="as you said"),), *rest


class Empty(ToyEnv):
    """Has no tasks."""

    tasks = TaskSet("empty", list)


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        pytest.param(PaysMore, "step paid", id="pays-more"),
        pytest.param(EndsTwice, "never both", id="ends-twice"),
        pytest.param(SpeaksForTheAssistant, "observation", id="wrong-observation"),
        pytest.param(Empty, "has no task", id="empty"),
    ],
)
def test_the_conformance_check_names_the_broken_promise(env: Callable[[], AgentEnv], problem: str) -> None:
    with pytest.raises((AssertionError, ValueError, gymnasium.error.Error), match=problem):
        check_environment(env)
