"""Engines sample from what they report: seeds, logprobs, stops, batching, aborts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.decode import draw
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.engines.scripted import ScriptedEngine

Tiny = tuple[Any, ChatFormat]
PROMPTS = [[3, 50, 60, 1, 4], [3, 70, 1, 4], [3, 50, 60, 70, 80, 90, 100, 110, 1, 4], [3, 51, 1, 4]]


async def sample(
    model: Any, prompts: Sequence[list[int]], batching: Any = "lockstep", max_batch: int = 8, **sampling: Any
) -> list[Generation]:
    """Ask for all prompts at once, each with its own seed."""
    engine = HFEngine(model, batching=batching, max_batch=max_batch)
    names = [f"s{index}" for index in range(len(prompts))]
    for name in names:
        engine.open(name)
    try:
        return await asyncio.gather(
            *(
                engine.generate(prompt, Sampling(max_tokens=12, **{"seed": index} | sampling), name, (1,))
                for index, (name, prompt) in enumerate(zip(names, prompts, strict=True))
            )
        )
    finally:
        await engine.close()


def forward_logprobs(model: Any, prompt: list[int], made: Generation, temperature: float = 1.0) -> list[float]:
    """The model's own logprobs of the sampled tokens, by one forward pass without a cache."""
    ids = torch.tensor([[*prompt, *made.ids]])
    with torch.no_grad():
        logp = torch.log_softmax(model(ids).logits.float() / temperature, -1)[0]
    found: list[float] = logp[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
    return found


async def _parity(model: Any, temperature: float) -> None:
    for prompt, made in zip(PROMPTS, await sample(model, PROMPTS, temperature=temperature), strict=True):
        assert made.logprobs == pytest.approx(forward_logprobs(model, prompt, made, temperature), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_sampled_distribution(tiny: Tiny, temperature: float) -> None:
    asyncio.run(_parity(tiny[0], temperature))


def test_a_model_with_sliding_windows_samples_alike() -> None:
    config = MistralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    torch.manual_seed(0)
    asyncio.run(_parity(MistralForCausalLM(config).eval(), 1.0))


@pytest.mark.parametrize("batching", ["lockstep", "eager"])
def test_a_result_depends_on_prompt_and_seed_and_not_on_its_neighbours(tiny: Tiny, batching: str) -> None:
    together = asyncio.run(sample(tiny[0], PROMPTS, batching))
    for index, prompt in enumerate(PROMPTS):
        alone = asyncio.run(sample(tiny[0], [prompt], batching, seed=index))[0]
        assert alone.ids == together[index].ids
        assert alone.logprobs == pytest.approx(together[index].logprobs, abs=1e-5)


def test_lockstep_repeats_bit_for_bit(tiny: Tiny) -> None:
    assert asyncio.run(sample(tiny[0], PROMPTS)) == asyncio.run(sample(tiny[0], PROMPTS))


def test_another_seed_gives_another_answer(tiny: Tiny) -> None:
    first, second = (asyncio.run(sample(tiny[0], PROMPTS[:1], seed=seed))[0] for seed in (1, 2))
    assert first.ids != second.ids


def test_small_batches_give_the_same_tokens(tiny: Tiny) -> None:
    whole, parts = asyncio.run(sample(tiny[0], PROMPTS)), asyncio.run(sample(tiny[0], PROMPTS, max_batch=2))
    assert [one.ids for one in whole] == [one.ids for one in parts]


def test_greedy_takes_the_most_likely_token(tiny: Tiny) -> None:
    made = asyncio.run(sample(tiny[0], PROMPTS[:1], temperature=0.0))[0]
    with torch.no_grad():
        assert made.ids[0] == int(tiny[0](torch.tensor(PROMPTS[:1])).logits[0, -1].argmax())
    assert set(made.logprobs) == {0.0}


def test_a_turn_ends_with_its_stop_token_or_at_its_limit(tiny: Tiny) -> None:
    model = tiny[0]
    free = asyncio.run(sample(model, PROMPTS[:1]))[0]
    assert (free.stop_reason, len(free.ids)) == ("length", 12)

    async def stopped() -> Generation:
        engine = HFEngine(model)
        made = await engine.generate(PROMPTS[0], Sampling(max_tokens=12, seed=0), "s", (free.ids[3],))
        await engine.close()
        return made

    made = asyncio.run(stopped())
    assert made.stop_reason == "stop"
    assert made.ids == free.ids[: free.ids.index(free.ids[3]) + 1]


def test_lockstep_waits_for_every_open_session(tiny: Tiny) -> None:
    async def play() -> list[bool]:
        engine = HFEngine(tiny[0], batching="lockstep")
        engine.open("a")
        engine.open("b")
        first = asyncio.create_task(engine.generate(PROMPTS[0], Sampling(max_tokens=2), "a", ()))
        done, _ = await asyncio.wait({first}, timeout=0.2)
        engine.release("b")
        await first
        await engine.close()
        return [bool(done), first.done()]

    assert asyncio.run(play()) == [False, True]


def test_lockstep_loses_patience_with_a_silent_session(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> Generation:
        engine = HFEngine(tiny[0], batching="lockstep", patience_s=0.1)
        engine.open("a")
        engine.open("silent")
        made = await engine.generate(PROMPTS[0], Sampling(max_tokens=2), "a", ())
        await engine.close()
        return made

    assert len(asyncio.run(play()).ids) == 2
    assert "lockstep broken" in caplog.text


def test_cancelling_takes_a_request_out_and_closing_aborts_the_rest(tiny: Tiny) -> None:
    async def play() -> Generation:
        engine = HFEngine(tiny[0])
        asks = [engine.generate(PROMPTS[0], Sampling(max_tokens=100_000), name, ()) for name in "ab"]
        cancelled, kept = (asyncio.create_task(ask) for ask in asks)
        await asyncio.sleep(0.2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await asyncio.wait_for(engine.close(), 5)
        with pytest.raises(InfrastructureError, match="the engine is closed"):
            await engine.generate(PROMPTS[0], Sampling(), "c", ())
        return await kept

    made = asyncio.run(play())
    assert made.stop_reason == "abort"
    assert len(made.ids) == len(made.logprobs)


def test_a_failing_model_is_an_infrastructure_error(tiny: Tiny) -> None:
    with pytest.raises(InfrastructureError, match="the model failed on a batch of 1"):
        asyncio.run(sample(tiny[0], [[10_000]]))


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9), st.floats(0, 1, exclude_max=True), st.floats(0.1, 1)
)
def test_drawing_inverts_the_cumulative_distribution(logits: list[float], uniform: float, top_p: float) -> None:
    one = torch.tensor([logits])
    token, logp = draw(one, torch.ones(1), torch.tensor([top_p]), torch.tensor([uniform], dtype=torch.float64))
    probabilities = torch.softmax(one[0], -1)
    order = probabilities.argsort(descending=True, stable=True)
    kept = [
        index for rank, index in enumerate(order.tolist()) if float(probabilities[order[:rank]].sum()) < top_p - 1e-6
    ]
    mass = float(probabilities[kept].sum())
    if int(token) in kept:
        assert float(logp) == pytest.approx(float((probabilities[token] / mass).log()), abs=1e-3)
    else:  # the nucleus ends on a tie or at a rounding error
        assert float(probabilities[order[: len(kept)]].sum()) == pytest.approx(top_p, abs=1e-4)


def test_a_weight_update_is_counted(tiny: Tiny) -> None:
    async def play() -> tuple[int, int]:
        engine = HFEngine(tiny[0])
        await engine.update_weights()
        first = engine.weight_version
        await engine.update_weights(version=7)
        await engine.close()
        return first, engine.weight_version

    assert asyncio.run(play()) == (1, 7)


def test_an_aborted_request_returns_what_was_sampled(tiny: Tiny) -> None:
    async def play() -> tuple[Generation, int]:
        engine = HFEngine(tiny[0])
        asked = asyncio.create_task(engine.generate(PROMPTS[0], Sampling(max_tokens=100_000), "a", ()))
        await asyncio.sleep(0.2)
        await engine.abort("a")
        made, left = await asked, engine.pending
        await engine.close()
        return made, left

    made, left = asyncio.run(play())
    assert (made.stop_reason, left) == ("abort", 0)
    assert len(made.ids) == len(made.logprobs) > 1


def test_a_script_is_spoken_as_tokens(tiny: Tiny) -> None:
    chat = tiny[1]

    async def play() -> list[Generation]:
        engine = ScriptedEngine(chat)
        engine.assign("s", ["first", "second"])
        made = [await engine.generate([3], Sampling(max_tokens=20), "s", chat.stop_ids) for _ in range(3)]
        engine.assign("s", ["far too long an answer"])
        made.append(await engine.generate([3], Sampling(max_tokens=2), "s", chat.stop_ids))
        engine.release("s")
        return made

    made = asyncio.run(play())
    assert [chat.parse(one.ids).content for one in made[:3]] == ["first", "second", ""]
    assert [one.stop_reason for one in made] == ["stop", "stop", "stop", "length"]
    assert made[0].ids == chat.answer("first")
