"""A hint is shown only when a whole group failed, and nothing is hidden about who saw it."""

from __future__ import annotations

import pytest

from agentgym.guidance import Guide, NoGuidance
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym.task import Public, Task
from agentgym.types import Group, Trajectory, Trust, Verdict

TASK = Task(id="t", split="train", public=Public(prompt="p"), hints=("weak", "strong"))


def group(*values: float | None) -> Group:
    return Group(
        "t",
        [
            Trajectory("t", "train", (), [], Verdict(value=one, level="any", trust=Trust.RPC), attempt=index)
            for index, one in enumerate(values)
        ],
    )


def test_without_guidance_there_is_one_round() -> None:
    first = NoGuidance().plan(TASK, [], size=4, seed=1)
    assert [(one.n, one.hint) for one in first] == [(4, None)]
    assert NoGuidance().plan(TASK, [group(0, 0)], size=4, seed=1) == []


@pytest.mark.parametrize(
    ("values", "hinted"),
    [
        pytest.param((0.0, 0.0), True, id="all-failed"),
        pytest.param((0.0, 1.0), False, id="one-passed"),
        pytest.param((0.0, None), True, id="the-scored-failed"),
        pytest.param((None, None), False, id="nothing-scored"),
        pytest.param((0.5, 0.0), True, id="partly-right-is-not-passed"),
    ],
)
def test_a_second_round_is_hinted_only_when_every_scored_attempt_failed(
    values: tuple[float | None, ...], hinted: bool
) -> None:
    plan = Guide().plan(TASK, [group(*values)], size=2, seed=1)
    assert [one.hint for one in plan] == (["strong"] if hinted else [])


def test_there_is_no_third_round_and_none_for_a_task_without_hints() -> None:
    assert Guide().plan(TASK, [group(0), group(0)], size=1, seed=1) == []
    assert Guide().plan(TASK.model_copy(update={"hints": ()}), [group(0)], size=1, seed=1) == []


@pytest.mark.parametrize(("index", "hint"), [(0, "weak"), (-1, "strong"), (-5, "weak"), (9, "strong")])
def test_the_hint_is_the_one_asked_for_or_the_nearest(index: int, hint: str) -> None:
    assert Guide(hint=index).plan(TASK, [group(0)], size=1, seed=1)[0].hint == hint


def test_rounds_draw_from_different_seeds_that_repeat() -> None:
    bare = Guide().plan(TASK, [], size=1, seed=1)[0]
    hinted = Guide().plan(TASK, [group(0)], size=1, seed=1)[0]
    assert bare.seed != hinted.seed
    assert bare.seed == NoGuidance().plan(TASK, [], size=1, seed=1)[0].seed


def test_hinted_attempts_replace_the_last_failures_and_the_group_keeps_its_size() -> None:
    bare, hinted = group(0, 0, 0, 0), group(1, 1)
    merged = Guide(attempts=2).merge([bare, hinted])
    assert merged.trajectories == [*bare.trajectories[:2], *hinted.trajectories]
    assert merged.guided
    assert Guide().merge([bare]) is bare


def test_unscored_attempts_are_replaced_before_scored_failures() -> None:
    bare, hinted = group(None, 0, 0), group(1)
    values = [one.verdict.value for one in Guide(attempts=1).merge([bare, hinted]).trajectories if one.verdict]
    assert values.count(None) == 0


def test_seeds_depend_on_every_part_and_their_types() -> None:
    parts: list[tuple[int | str, ...]] = [(0, "1"), (0, 1), ("01",), (0, "1", ""), ("0", 1), (1, 0)]
    assert len({derive_seed(*one) for one in parts}) == len(parts)
    assert all(0 <= derive_seed(*one) < 2**63 for one in parts)


def test_every_task_is_sampled_once_per_epoch_and_sampling_goes_on_from_a_saved_state() -> None:
    names = [str(index) for index in range(7)]
    whole = ShuffledSampler(names, seed=3)
    drawn = [whole.next(3) for _ in range(14)]
    flat = [name for part in drawn for name in part]
    assert all(sorted(flat[start : start + 7]) == names for start in range(0, 42, 7))
    first = ShuffledSampler(names, seed=3)
    begun = [first.next(3) for _ in range(5)]
    again = ShuffledSampler(names, seed=3)
    again.load_state_dict(first.state_dict())
    assert begun + [again.next(3) for _ in range(9)] == drawn
