"""Results are split by difficulty, or by bands of difficulties where there are many."""

from __future__ import annotations

from collections import Counter

from agentgym.difficulty import difficulties_of
from agentgym.task import Public, Task


def tasks(*difficulties: float | None) -> list[Task]:
    return [
        Task(id=str(place), split="train", public=Public(prompt="?"), difficulty=one)
        for place, one in enumerate(difficulties)
    ]


def test_a_few_difficulties_are_told_apart_as_they_are() -> None:
    found = difficulties_of(tasks(3.0, 0.5, None, 3.0, *range(4, 14)))
    assert found == {"0": "3", "1": "0.5", "3": "3", **{str(place): str(place) for place in range(4, 14)}}


def test_many_difficulties_are_told_apart_in_twelve_bands_of_as_many_tasks() -> None:
    found = difficulties_of(tasks(*[one / 10 for one in range(48, 0, -1)], None))
    assert found["0"] == found["3"] == "4.5_to_4.8"
    assert found["47"] == "0.1_to_0.4"
    assert "48" not in found
    assert Counter(Counter(found.values()).values()) == {4: 12}


def test_a_difficulty_is_in_one_band_however_many_tasks_have_it() -> None:
    found = difficulties_of(tasks(*[1.0] * 90, *range(2, 32)))
    names = Counter(found.values())
    assert names["1"] == 90
    assert len(names) <= 12
    assert {found[str(place)] for place in range(90)} == {"1"}
    assert all("_to_" in name for name in names if name != "1")


def test_the_easiest_come_first() -> None:
    found = difficulties_of(tasks(10.0, 9.0, 2.0))
    assert list(found.values()) == ["2", "9", "10"]
