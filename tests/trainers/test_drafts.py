"""Guesses come from what was read before, look further the better they are, and change no token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_contract import contract_model
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentgym.policy import Generation, Sampling
from agentgym_trainers.engines import continuous
from agentgym_trainers.engines.continuous import ContinuousBatch
from agentgym_trainers.engines.drafts import Drafter
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.engines.prefixes import PrefixStore
from agentgym_trainers.engines.sampler import Request
from agentgym_trainers.settings import EngineSettings


@pytest.mark.parametrize(
    ("context", "guess"),
    [
        pytest.param([1, 2, 3, 4, 5, 9, 1, 2, 3], [4, 5, 9, 1], id="what-followed"),
        pytest.param([1, 2, 7, 8, 1, 2, 5, 6, 1, 2], [5, 6, 1, 2], id="the-last-time-counts"),
        pytest.param([3, 1, 2, 7, 9, 1, 2, 5, 3, 1, 2], [7, 9, 1, 2], id="more-alike-counts-more"),
        pytest.param([4, 4, 4, 4], [4, 4, 4, 4], id="a-run"),
        pytest.param([9, 1, 2, 3, 1, 2, 3], [1, 2, 3, 1], id="a-round"),
        pytest.param([1, 2, 3, 4], [], id="nothing-alike"),
        pytest.param([2], [], id="too-short"),
        pytest.param([256, 0, 1, 256 * 256, 5, 256, 0], [1, 256 * 256, 5, 256], id="whole-tokens"),
        pytest.param([1, 2, 7, *range(10, 4101), 1, 2], [7, 10, 11, 12], id="so-far-back"),
        pytest.param([1, 2, 7, *range(10, 4102), 1, 2], [], id="too-far-back"),
        pytest.param([1 << 16, 3 << 8, 7, 256, 3], [], id="not-their-bytes"),
    ],
)
def test_a_guess_is_what_followed_the_same_tokens(context: list[int], guess: list[int]) -> None:
    assert Drafter(context, 8).guess(100) == guess


@given(st.lists(st.sampled_from([0, 1, 255, 256, 65536, 1 << 24]), min_size=1, max_size=40))
def test_it_is_what_a_plain_search_finds(context: list[int]) -> None:
    def plainly() -> list[int]:
        for alike in (4, 3, 2):
            for end in range(len(context) - 1, alike - 1, -1):
                if alike < len(context) and context[end - alike : end] == context[-alike:]:
                    return [context[end + place % (len(context) - end)] for place in range(4)]
        return []

    drafter = Drafter(context[:-1], 8)
    drafter.learn(context[-1:], 0)
    assert drafter.guess(100) == plainly()


def test_it_looks_further_after_right_guesses_and_less_far_after_wrong_ones() -> None:
    drafter, said = Drafter([*range(50), 0, 1], 12), 2
    lengths = []
    for right in (4, 8, 12, 3, 0, 1):
        guess = drafter.guess(100)
        assert guess == list(range(said, said + len(guess)))
        lengths.append(len(guess))
        drafter.learn(range(said, said + right + 1), len(guess))
        said += right + 1
    assert lengths == [4, 8, 12, 12, 4, 1]
    assert len(drafter.guess(100)) == 2
    assert drafter.guess(1) == [said]
    drafter.learn([said, said + 1], 1)
    assert len(drafter.guess(100)) == 2, "a short guess that was right is no reason to look less far"
    assert drafter.guess(0) == Drafter([1, 2, 1, 2], 0).guess(100) == []


def test_a_copy_goes_on_by_itself() -> None:
    drafter = Drafter([7, 8, 9, 1, 7, 8], 4)
    other = drafter.copy()
    drafter.learn([9], 4)
    assert other.guess(4) == [9, 1, 7, 8]
    assert drafter.guess(4) == [1]
    other.learn([5, 7], 0)
    assert other.guess(4) == []


def _counted(model: Any, calls: list[int]) -> Any:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    return model


def _sample(model: Any, draft_tokens: int, stop_ids: Sequence[int] = ()) -> tuple[list[Generation], int]:
    """Four rows, three of which soon repeat themselves, for they are greedy; and how often the model was called."""
    batch, calls = ContinuousBatch(model, PrefixStore(0), draft_tokens=draft_tokens), 0
    prompts = [[5, 6, 7, 8] * 3, [9] * 7, [1, 2, 3], [4, 5] * 9]
    asked = [
        Request(str(place), prompt, Sampling(max_tokens=tokens, temperature=heat, seed=place), frozenset(stop_ids))
        for place, (prompt, tokens, heat) in enumerate(zip(prompts, (61, 62, 14, 63), (0, 0, 1, 0), strict=True))
    ]
    done = dict(batch.tick(asked, 0))
    while batch.rows:
        calls += 1
        if calls == 4:
            done |= dict(batch.restart(1))
        done |= dict(batch.tick([], 1 if calls >= 4 else 0))
    return [result for one in asked if isinstance(result := done[one], Generation)], calls


@pytest.mark.parametrize("plain", [True, False], ids=["weights", "modules"])
def test_guesses_save_calls_and_change_nothing(plain: bool) -> None:
    model = contract_model(tied=True)
    if not plain:
        _counted(model, [])
    alone, calls = _sample(model, draft_tokens=0)
    stop = alone[2].ids[11]
    for ids in ((), (stop,)):
        expected, _ = _sample(model, 0, ids)
        found, _ = _sample(model, 8, ids)
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert [one.stop_reason for one in found] == [one.stop_reason for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4)
            assert sum(count for _, count in one.spans or ((0, len(one.ids)),)) == len(one.ids)
    assert calls == 60
    assert _sample(model, 8)[1] < 50


@pytest.mark.parametrize("bound", ["_LOGITS", "_SCORES"])
def test_guesses_whose_scores_would_take_too_much_memory_are_not_made(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    model = contract_model(tied=True)
    monkeypatch.setattr(continuous, bound, model.config.vocab_size if bound == "_LOGITS" else 100)
    assert _sample(model, 8)[1] == 60


def test_fewer_guesses_than_none_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted 0 draft_tokens or more, found -1"):
        HFEngine(contract_model(tied=True), draft_tokens=-1)
    with pytest.raises(ValidationError, match=r"options\.draft_tokens: Input should be greater than or equal to 0"):
        EngineSettings(name="hf", options={"draft_tokens": -1})
