"""Requests that have said the same are computed once, and say what they would have said alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from engine_contract import contract_model
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling
from agentgym_trainers.engines.branches import Branch
from agentgym_trainers.engines.continuous import ContinuousBatch
from agentgym_trainers.engines.direct import is_plain
from agentgym_trainers.engines.drafts import Drafter
from agentgym_trainers.engines.prefixes import PrefixStore
from agentgym_trainers.engines.sampler import Request, Row
from agentgym_trainers.engines.slots import SlotCache, SlotLayer, SlotPlan

MODEL = contract_model(tied=True)
PROMPTS = ([5, 6, 7, 8, 5, 6], [9, 3], [9, 3, 4])


def _run(joining: list[list[Request]], draft_tokens: int, restart: int | None = None) -> dict[Request, Generation]:
    """Let requests join at their ticks."""
    prefixes = PrefixStore(1 << 20)
    batch = ContinuousBatch(MODEL, prefixes, draft_tokens=draft_tokens)
    done: dict[Request, Generation | Exception] = {}
    for tick in itertools.count():
        if tick == restart:
            done |= dict(batch.restart(0))
        new = joining[tick] if tick < len(joining) else []
        for one in new:
            prefixes.open(one.session)
        done |= dict(batch.tick(new, 0))
        if not batch.rows and tick >= len(joining):
            return {one: made for one, made in done.items() if isinstance(made, Generation)}
    raise AssertionError


@st.composite
def _asked(draw: Any) -> list[list[dict[str, Any]]]:
    """Requests, by the tick at which they join, that stay together for a while: what they say is likely."""
    one = st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(PROMPTS),
            "temperature": st.sampled_from([0.0, 0.02, 0.1, 1.0]),
            "top_p": st.sampled_from([1.0, 0.7]),
            "max_tokens": st.integers(1, 14),
            "seed": st.integers(0, 3),
            "stops": st.frozensets(st.integers(0, 63), max_size=8),
        }
    )
    found: list[list[dict[str, Any]]] = draw(st.lists(st.lists(one, max_size=7), min_size=1, max_size=3))
    return found


def _requests(asked: list[list[dict[str, Any]]]) -> list[list[Request]]:
    names = itertools.count()
    return [
        [
            Request(
                f"s{next(names)}",
                list(one["prompt"]),
                Sampling(**{key: one[key] for key in ("temperature", "top_p", "max_tokens", "seed")}),
                one["stops"],
            )
            for one in tick
        ]
        for tick in asked
    ]


@settings(max_examples=40, deadline=None)
@given(_asked(), st.sampled_from([0, 5]), st.sampled_from([None, 2]))
def test_together_they_say_what_each_says_alone(
    asked: list[list[dict[str, Any]]], drafts: int, restart: int | None
) -> None:
    requests = _requests(asked)
    together = _run(requests, drafts, restart)
    assert len(together) == sum(map(len, requests))
    for one in itertools.chain.from_iterable(requests):
        alone = _run([[one]], 0)[one]
        found = together[one]
        assert (found.ids, found.stop_reason) == (alone.ids, alone.stop_reason)
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def _computed(requests: list[Request]) -> int:
    """Return how many tokens the model is given for these requests, which join at once."""
    tokens: list[int] = []
    hook = MODEL.model.register_forward_pre_hook(
        lambda _, __, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        _run([requests], 0)
    finally:
        hook.remove()
    return sum(tokens)


def _alike(count: int, **sampling: Any) -> list[Request]:
    return [
        Request(f"s{seed}", list(PROMPTS[0]), Sampling(max_tokens=10, seed=seed, **sampling), frozenset())
        for seed in range(count)
    ]


def test_what_all_say_is_computed_once() -> None:
    assert _computed(_alike(8, temperature=0)) == _computed(_alike(1, temperature=0)) == len(PROMPTS[0]) + 9


def test_from_where_they_part_each_is_computed_for_itself() -> None:
    requests = _alike(8, temperature=1)
    said = [tuple(made.ids) for made in _run([requests], 0).values()]
    beginnings = {ids[:end] for ids in said for end in range(1, 10)}
    assert 9 < len(beginnings) <= 72, "some say the same for a while"
    assert _computed(requests) == len(PROMPTS[0]) + len(beginnings)


def test_a_guess_that_is_right_takes_no_row_beyond_its_limit() -> None:
    limits = (40, 33, 17, 16)
    requests = [
        Request(f"s{limit}", [9] * 7, Sampling(max_tokens=limit, temperature=0), frozenset()) for limit in limits
    ]
    found = _run([requests], 8)
    longest = found[requests[0]].ids
    assert len(set(longest[-12:])) < 6, "it repeats itself, so that guesses are right"
    for one, limit in zip(requests, limits, strict=True):
        assert (found[one].ids, found[one].stop_reason) == (longest[:limit], "length")
        assert len(found[one].logprobs) == limit


def test_those_who_part_guess_from_what_they_said_themselves() -> None:
    first, *others = rows = [Row.of(one) for one in _alike(3)]
    branch = Branch(rows, Drafter(PROMPTS[0], 8), guess=[7, 8])
    for row, tokens in zip(rows, ([7, 9], [7, 8, 5], [7, 9]), strict=True):
        row.take(tokens, [0.0] * len(tokens), 0)
    (parted,) = branch.part()
    assert (branch.rows, parted.rows) == ([first, others[1]], [others[0]])
    assert branch.drafter is not None
    assert parted.drafter is not None
    assert parted.drafter.guess(9) == [6, 7, 8, 5], "two were right of two: four ahead"
    branch.drafter.learn([5, 6], 0)
    assert branch.drafter.guess(9) == [7, 9], "one was right of two: two ahead"
    assert not branch.part()


def test_rows_that_draw_otherwise_are_kept_apart() -> None:
    rows = [Row.of(one) for one in (*_alike(2, temperature=0), *_alike(2, temperature=1), *_alike(1, top_p=0.5))]
    assert [len(one.rows) for one in Branch.all_of(rows)] == [2, 2, 1]


def test_sessions_that_said_the_same_go_on_from_one_copy() -> None:
    prefixes = PrefixStore(1 << 20)
    batch, requests = ContinuousBatch(MODEL, prefixes), _alike(3, temperature=0)
    for one in requests:
        prefixes.open(one.session)
    done = dict(batch.tick(requests, 0))
    while batch.rows:
        done |= dict(batch.tick([], 0))
    said = [*PROMPTS[0], *next(one.ids for one in done.values() if isinstance(one, Generation))]
    found = [prefixes.find(one.session, said) for one in requests]
    assert [one[1] for one in found if one] == [len(said) - 1] * 3
    assert len({id(one[0]) for one in found if one}) == 1
    later = Request("s1", [*said, 11, 12], Sampling(max_tokens=3, seed=1), frozenset())
    (answer,) = _run([[later]], 0).values()
    made = dict(batch.tick([later], 0))
    while batch.rows:
        made |= dict(batch.tick([], 0))
    (again,) = made.values()
    assert isinstance(again, Generation)
    assert again.ids == answer.ids
    assert torch.allclose(torch.tensor(again.logprobs), torch.tensor(answer.logprobs), atol=1e-4)


def test_what_lies_in_the_batch_is_remembered_nowhere_else_and_others_begin_with_it() -> None:
    prefixes = PrefixStore(1 << 20)
    batch = ContinuousBatch(MODEL, prefixes)
    prompt = [*PROMPTS[0], *range(20, 40)]
    for name in "ab":
        prefixes.open(name)
    first = Request("a", prompt, Sampling(max_tokens=2, seed=1), frozenset())
    done: dict[Request, Any] = {}
    while first not in done:
        done |= dict(batch.tick([] if batch.rows else [first], 0))
    assert prefixes.bytes > 0
    later = Request("a", [*prompt, *done[first].ids, 9], Sampling(max_tokens=6, seed=2), frozenset())
    done |= dict(batch.tick([later], 0))
    assert (prefixes.bytes, prefixes.hits) == (0, len(prompt) + 1)
    other = Request("b", [*prompt, 5, 4], Sampling(max_tokens=4, seed=3), frozenset())
    done |= dict(batch.tick([other], 0))
    assert prefixes.hits == len(prompt) + 1 + len(prompt)
    while batch.rows:
        done |= dict(batch.tick([], 0))
    for one in (later, other):
        again = Request("c", one.prompt_ids, one.sampling, frozenset())
        (alone,) = _run([[again]], 0).values()
        assert done[one].ids == alone.ids
        assert torch.allclose(torch.tensor(done[one].logprobs), torch.tensor(alone.logprobs), atol=1e-4)


def test_the_cache_has_rows_for_branches_and_not_for_all_who_share_them() -> None:
    batch, requests = ContinuousBatch(MODEL, PrefixStore(0)), _alike(12, temperature=1)
    done: dict[Request, Any] = dict(batch.tick([*_alike(12, temperature=0), *requests], 0))
    assert batch._cache._layers[0].keys.shape[0] < 20
    while batch.rows:
        done |= dict(batch.tick([], 0))
    alone = [next(iter(_run([[one]], 0).values())).ids for one in _alike(12, temperature=1)]
    assert [done[one].ids for one in requests] == alone


def test_rows_that_part_without_room_fail_and_the_batch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = SlotLayer._resize

    def limited(layer: SlotLayer, rows: int, columns: int) -> None:
        if rows > 4:
            raise MemoryError("not that much")
        resize(layer, rows, columns)

    monkeypatch.setattr(SlotLayer, "_resize", limited)
    batch = ContinuousBatch(MODEL, PrefixStore(0))
    ended = Request("ended", list(PROMPTS[0]), Sampling(max_tokens=1, temperature=0, seed=1), frozenset())
    together = _alike(12, temperature=1)
    done = dict(batch.tick([*together, ended], 0))
    assert isinstance(done[ended], Generation)
    assert [str(done[one]) for one in together] == ["the model failed on a batch of 12: not that much"] * 12
    assert not batch.rows
    (later,) = _alike(1, temperature=0)
    made: dict[Request, Any] = dict(batch.tick([later], 0))
    while batch.rows:
        made |= dict(batch.tick([], 0))
    (alone,) = _run([_alike(1, temperature=0)], 0).values()
    assert made[later].ids == alone.ids


def test_nobody_begins_with_what_other_weights_computed_for_a_request_just_dropped() -> None:
    torch.manual_seed(1)
    model, prefixes = contract_model(tied=True), PrefixStore(1 << 20)
    batch = ContinuousBatch(model, prefixes)
    prompt = [*PROMPTS[0], *range(20, 40)]
    for name in "ab":
        prefixes.open(name)
    dropped = Request("a", prompt, Sampling(max_tokens=9, seed=1), frozenset())
    batch.tick([dropped], 0)
    dropped.aborted = dropped.forgotten = True  # and nobody waits any more: the engine takes new weights
    with torch.no_grad():
        for one in model.parameters():
            one += 0.3 * torch.randn_like(one)
    later = Request("b", prompt, Sampling(max_tokens=3, seed=1), frozenset())
    made: dict[Request, Any] = dict(batch.tick([later], 1))
    while batch.rows:
        made |= dict(batch.tick([], 1))
    fresh = ContinuousBatch(model, PrefixStore(0))
    again = Request("c", prompt, later.sampling, frozenset())
    expected: dict[Request, Any] = dict(fresh.tick([again], 1))
    while fresh.rows:
        expected |= dict(fresh.tick([], 1))
    assert made[later].ids == expected[again].ids
    assert made[later].logprobs == pytest.approx(expected[again].logprobs, abs=1e-4)


def test_a_context_without_numbers_spreads_to_nobody_who_joins_later_and_costs_no_memory_of_its_session() -> None:
    model, prefixes = contract_model(tied=False), PrefixStore(1 << 20)
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = torch.nan
    batch = ContinuousBatch(model, prefixes)
    prefixes.open("broken")
    long = Request("long", list(range(20, 45)), Sampling(max_tokens=20, seed=1), frozenset({50}))
    said = Request("broken", [1, 2, 3], Sampling(max_tokens=2, seed=1), frozenset())
    done: dict[Request, Any] = dict(batch.tick([long, said], 0))
    while said not in done:
        done |= dict(batch.tick([], 0))
    broken = Request("broken", [1, 2, 3, *done[said].ids, *range(5, 20), 50], said.sampling, frozenset())
    short = Request("short", [9, 3], Sampling(max_tokens=2, seed=1), frozenset({50}))
    done |= dict(batch.tick([broken], 0))
    assert isinstance(done[broken], InfrastructureError)
    assert prefixes.has("broken")
    done |= dict(batch.tick([short], 0))
    while batch.rows:
        done |= dict(batch.tick([], 0))
    assert all(isinstance(done[one], Generation) for one in (long, short))


def test_whether_a_model_is_plain_is_asked_when_somebody_joins_and_not_for_every_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def noted(model: Any) -> bool:
        asked.append(model)
        return is_plain(model)

    monkeypatch.setattr("agentgym_trainers.engines.continuous.is_plain", noted)
    batch, (first, second) = ContinuousBatch(MODEL, PrefixStore(0)), _alike(2)
    for joining, times in (([first], 1), ([], 1), ([], 1), ([second], 2), ([], 2)):
        batch.tick(joining, 0)
        assert len(asked) == times
    assert batch.rows


def test_under_autocast_the_buffer_holds_keys_in_the_type_of_values() -> None:
    batch = ContinuousBatch(contract_model(tied=True), PrefixStore(0), autocast=True)
    with torch.autocast("cpu", torch.bfloat16):
        batch.tick(_alike(1), 0)
    layers = batch._cache._layers
    assert {one.dtype for layer in layers for one in (layer.keys, layer.values)} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("key_type", "value_type"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_keys_are_rounded_only_where_values_are(key_type: torch.dtype, value_type: torch.dtype) -> None:
    layer = SlotLayer()
    layer.plan = SlotPlan(0, torch.arange(3)[None])
    keys, values = torch.randn(1, 2, 3, 4, dtype=key_type), torch.randn(1, 2, 3, 4, dtype=value_type)
    kept_keys, kept_values = layer.update(keys, values)
    assert kept_keys.dtype == kept_values.dtype == value_type
    assert torch.equal(kept_keys, keys.to(value_type))
    assert torch.equal(kept_values, values)


def test_a_forward_pass_is_planned_without_reading_from_the_device() -> None:
    cache, position_BQ = SlotCache(MODEL), torch.tensor([[-1, 4], [0, 1]])
    nowhere = torch.device("meta")  # whose numbers nobody can read
    planned = cache.plan(3, position_BQ, torch.float32, nowhere)
    plan: Any = cache._layers[0].plan
    assert (plan.start, plan.stop, plan.width) == (3, 5, 5)
    assert planned["attention_mask"].shape == (2, 1, 2, 5)
    moved = (planned["attention_mask"], planned["position_ids"], plan.row, plan.column)
    assert {one.device for one in moved} == {nowhere}
