"""Held-out tasks that duplicate training tasks are refused; tasks that only look alike are not."""

from __future__ import annotations

import random
import time

import pytest

from agentgym.contamination import find_twins, normalised, refuse_twins
from agentgym.errors import ContaminationError
from agentgym.task import Public, Task
from agentgym.types import Split

LONG = (
    "Write a function that takes a list of integers and returns the sum of every even number in the list, "
    "ignoring any value that appears more than once, and returning zero when the list holds no such number at all."
)


def task(name: str, prompt: str, split: Split = "train", **data: str) -> Task:
    return Task(id=name, split=split, public=Public(prompt=prompt, data=dict(data)))


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(LONG, id="equal"),
        pytest.param(LONG.upper(), id="case"),
        pytest.param(LONG.replace(" ", "\n  "), id="blanks"),
        pytest.param(LONG.replace("fi", "\ufb01").replace(",", " ,"), id="compatibility-forms"),
        pytest.param(LONG + " Good luck!", id="one-sentence-more"),
    ],
)
def test_a_held_out_task_with_a_twin_in_training_is_refused(copy: str) -> None:
    with pytest.raises(ContaminationError, match="held-out task 'h' duplicates training task 't'"):
        refuse_twins([task("t", LONG), task("u", "Sort.")], [task("h", copy, "test")])


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        pytest.param("Return x + 1.", "Return x - 1.", id="another-operator"),
        pytest.param("Compute 38+47.", "Compute 38+48.", id="another-number"),
        pytest.param("What is a<b?", "What is a>b?", id="another-comparison"),
        pytest.param(
            LONG.replace("even", "odd").replace("sum", "product"), LONG.replace("zero", "None"), id="other-words"
        ),
    ],
)
def test_tasks_that_only_look_alike_are_accepted(train: str, held_out: str) -> None:
    refuse_twins([task("t", train)], [task("h", held_out, "test")])


def test_equal_prompts_with_different_data_are_different_tasks() -> None:
    refuse_twins([task("t", "Fix the bug.", code="a = 1")], [task("h", "Fix the bug.", "test", code="b = 2")])
    with pytest.raises(ContaminationError):
        refuse_twins([task("t", "Fix the bug.", code="a = 1")], [task("h", "Fix the bug.", "test", code="a = 1")])


def test_a_twin_is_reported_with_the_nearest_training_task() -> None:
    near, nearer = LONG.replace("at all.", "at."), LONG.replace("at all.", "at all!")
    twin = find_twins([task("near", near), task("nearer", nearer)], [task("h", LONG, "validation")], threshold=0.8)[0]
    assert (twin.held_out, twin.train) == ("h", "nearer")
    assert 0.9 < twin.similarity < 1.0


def test_an_emptied_prompt_is_still_compared() -> None:
    assert normalised("") == ""
    with pytest.raises(ContaminationError):
        refuse_twins([task("t", " ")], [task("h", "", "test")])


def test_the_fast_search_finds_what_comparing_all_pairs_finds() -> None:
    draw = random.Random(0)
    words = [f"w{index}" for index in range(30)]
    texts = [[draw.choice(words) for _ in range(draw.randint(3, 40))] for _ in range(60)]
    train = [task(f"t{index}", " ".join(text)) for index, text in enumerate(texts)]
    held_out = []
    for index, text in enumerate(texts):
        changed = list(text)
        for _ in range(draw.randint(0, 3)):
            changed[draw.randrange(len(changed))] = draw.choice(words)
        held_out.append(task(f"h{index}", " ".join(changed), "test"))
    for threshold in (0.5, 0.8, 0.9, 1.0):
        fast = {twin.held_out for twin in find_twins(train, held_out, threshold=threshold)}
        slow = {one.id for one in held_out if any(find_twins([other], [one], threshold=threshold) for other in train)}
        assert fast == slow


def test_ten_thousand_training_tasks_are_compared_with_five_hundred_in_seconds() -> None:
    draw = random.Random(1)
    words = [f"word{index}" for index in range(2000)]

    def text() -> str:
        # A long shared preamble is what makes naive inverted indexes quadratic.
        return LONG + " " + " ".join(draw.choice(words) for _ in range(80))

    train = [task(f"t{index}", text()) for index in range(10_000)]
    held_out = [task(f"h{index}", text(), "test") for index in range(499)]
    held_out.append(task("copy", train[77].public.prompt + " x", "test"))
    began = time.perf_counter()
    twins = find_twins(train, held_out)
    assert [(twin.held_out, twin.train) for twin in twins] == [("copy", "t77")]
    assert time.perf_counter() - began < 15
