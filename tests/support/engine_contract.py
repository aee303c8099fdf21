"""What engines must keep, whatever they run on: one suite for all that speak tokens, and one for those that train."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling, TrainableEngine
from agentgym_trainers.lora import add_lora
from agentgym_trainers.settings import LoraSettings

Result = TypeVar("Result")
PROMPTS = [[3, 50, 60, 1, 4], [3, 70, 1, 4], [3, 50, 60, 70, 80, 90, 100, 110, 1, 4], [3, 50, 60, 1, 4]]
CONTEXT = 8192
VOCABULARY = 320
TOLERANCE = 1e-4
_TRIES = 5
"""What is to happen in the middle of a request may find it over, where other processes take the time."""
_BEGUN_S = 60.0
_IDLE_S = 1.0
"""An engine must stop within this; what it is to stop takes several times as long."""


def contract_model(*, tied: bool) -> Any:
    """A small Qwen2 of random weights, strong enough that its distributions are far from uniform."""
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=CONTEXT, tie_word_embeddings=tied, initializer_range=0.15,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


def hybrid_model() -> Any:
    """A small Qwen3.5 of random weights, whose first layer hands on a state instead of keys and values."""
    config = Qwen3_5TextConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        initializer_range=0.15, layer_types=["linear_attention", "full_attention"], linear_num_value_heads=2,
        linear_num_key_heads=1, linear_key_head_dim=16, linear_value_head_dim=16,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3_5ForCausalLM(config).eval()


def adapt(model: Any) -> Any:
    """Give a model low-rank adapters that change what it says, and return it."""
    add_lora(model, LoraSettings(rank=2), seed=0)
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    return model


def forward_logprobs(model: Any, prompt: Sequence[int], ids: Sequence[int], sampling: Sampling) -> list[float]:
    """The logprobs of tokens by one forward pass of transformers, under the distribution that sampling asks for."""
    whole = torch.tensor([[*prompt, *ids]])
    with torch.no_grad():
        logp = torch.log_softmax(model(whole).logits.float()[0, len(prompt) - 1 : -1] / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered, order = logp.sort(dim=-1, descending=True)
        dropped = (ordered.exp().cumsum(-1) - ordered.exp()) >= sampling.top_p
        logp = torch.log_softmax(logp.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf), -1)
    found: list[float] = logp.gather(-1, whole[0, len(prompt) :, None])[:, 0].tolist()
    return found


def stir(model: Any, seed: int) -> None:
    """Change every weight in place, by about a tenth: what an optimizer step does, only more."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=noise))


@dataclass
class Subject:
    """An engine under test, the model whose weights it has, and a loop that outlives single tests."""

    engine: TrainableEngine
    model: Any
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    updates_midway: bool = True
    """Whether weights may change between two tokens of a request."""
    running: Callable[[], int] | None = None
    """How many requests are being computed, by what computes them: `pending` counts callers."""

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)

    async def ask(
        self, prompt: Sequence[int], session: str = "s", stop_ids: Sequence[int] = (), **sampling: Any
    ) -> Generation:
        """Generate one turn of a session of its own."""
        self.engine.open(session)
        try:
            return await self.engine.generate(prompt, Sampling(**{"max_tokens": 12} | sampling), session, stop_ids)
        finally:
            self.engine.release(session)

    async def ask_all(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Generation]:
        """Generate for all prompts at once, each with its own seed."""
        names = [f"s{index}" for index in range(len(prompts))]
        for name in names:
            self.engine.open(name)
        asked = (
            self.ask(prompt, name, **{"seed": index} | sampling)
            for index, (name, prompt) in enumerate(zip(names, prompts, strict=True))
        )
        return await asyncio.gather(*asked)

    async def ask_much(self) -> asyncio.Task[Generation]:
        """Begin a request of thousands of tokens; return once the engine is computing it."""
        assert self.running
        await self.ask(PROMPTS[1])  # what an engine computes to start is not the request
        asked = asyncio.create_task(self.ask(PROMPTS[0], max_tokens=CONTEXT - 10))
        async with asyncio.timeout(_BEGUN_S):
            while not self.running():  # noqa: ASYNC110 -- it computes on threads and in processes of its own
                await asyncio.sleep(0.005)
        return asked

    async def idle(self) -> bool:
        """Whether the engine computes nothing any more, now or very soon."""
        assert self.running
        deadline = time.monotonic() + _IDLE_S
        while (left := self.running()) and time.monotonic() < deadline:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)
        return not left

    def exact(self, prompt: Sequence[int], made: Generation, model: Any = None, **sampling: Any) -> None:
        """Every token's logprob is the model's own."""
        assert made.ids
        wanted = forward_logprobs(model or self.model, prompt, made.ids, Sampling(**sampling))
        assert made.logprobs == pytest.approx(wanted, abs=TOLERANCE)


class TokenContract:
    """Of every engine that gives tokens. A class of tests per engine inherits this and gives the fixture `subject`."""

    def test_tokens_come_back_with_their_logprobs(self, subject: Subject) -> None:
        made = subject.run(subject.ask(PROMPTS[0]))
        assert (len(made.ids), len(made.logprobs), made.stop_reason) == (12, 12, "length")
        assert all(isinstance(one, int) and 0 <= one < VOCABULARY for one in made.ids)
        assert (made.weight_version, made.spans) == (subject.engine.weight_version, ())
        subject.exact(PROMPTS[0], made)

    def test_a_lower_limit_cuts_the_same_tokens(self, subject: Subject) -> None:
        whole, cut = (subject.run(subject.ask(PROMPTS[0], max_tokens=tokens)) for tokens in (12, 3))
        assert (cut.ids, cut.stop_reason) == (whole.ids[:3], "length")

    def test_a_stop_token_ends_the_turn_and_is_part_of_it_even_as_its_first(self, subject: Subject) -> None:
        free = subject.run(subject.ask(PROMPTS[0]))
        for token in (free.ids[5], free.ids[0]):
            made = subject.run(subject.ask(PROMPTS[0], stop_ids=(token, VOCABULARY - 1)))
            assert (made.ids, made.stop_reason) == (free.ids[: free.ids.index(token) + 1], "stop")
            subject.exact(PROMPTS[0], made)

    def test_a_released_session_begins_anew_and_releasing_an_unknown_one_does_no_harm(self, subject: Subject) -> None:
        subject.engine.release("nobody")
        first, again = (subject.run(subject.ask(PROMPTS[0])) for _ in range(2))
        assert first.ids == again.ids

    def test_closing_ends_what_is_pending_and_may_be_repeated(self, subject: Subject) -> None:
        """The last test of the class: the engine is closed after it."""
        subject.run(subject.engine.close())
        subject.run(subject.engine.close())


class EngineContract(TokenContract):
    """Of every engine that trains."""

    @pytest.mark.parametrize(
        "sampling", [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 1.3, "top_p": 0.5}], ids=str
    )
    def test_logprobs_are_those_of_the_sampled_distribution(self, subject: Subject, sampling: dict[str, Any]) -> None:
        for prompt, made in zip(PROMPTS, subject.run(subject.ask_all(PROMPTS, **sampling)), strict=True):
            subject.exact(prompt, made, **sampling)

    def test_every_turn_is_exact_from_its_first_token_on(self, subject: Subject) -> None:
        async def play(name: str, context: list[int]) -> None:
            subject.engine.open(name)
            for turn in range(4):
                made = await subject.engine.generate(context, Sampling(max_tokens=40, seed=turn), name, (7, 8))
                subject.exact(context, made)
                context = [*context, *made.ids, 5, 100 + turn, 6]
            subject.engine.release(name)

        async def all_at_once() -> None:
            for name in "abc":
                subject.engine.open(name)
            await asyncio.gather(*(play(name, prompt) for name, prompt in zip("abc", PROMPTS, strict=False)))

        subject.run(all_at_once())

    def test_more_prompt_tokens_than_are_computed_at_once(self, subject: Subject) -> None:
        prompts = [[10 + index, *PROMPTS[2] * 40] for index in range(24)]
        for prompt, made in zip(prompts, subject.run(subject.ask_all(prompts, max_tokens=3)), strict=True):
            subject.exact(prompt, made)

    def test_seeds_repeat_and_differ(self, subject: Subject) -> None:
        together = subject.run(subject.ask_all(PROMPTS))
        for index, prompt in enumerate(PROMPTS):
            assert subject.run(subject.ask(prompt, seed=index)).ids == together[index].ids
        assert together[0].ids != together[3].ids  # one prompt, two seeds

    def test_temperature_zero_takes_the_most_likely_token(self, subject: Subject) -> None:
        made = subject.run(subject.ask(PROMPTS[0], temperature=0.0))
        with torch.no_grad():
            best = subject.model(torch.tensor([[*PROMPTS[0], *made.ids]])).logits[0].argmax(-1).tolist()
        assert made.ids == best[len(PROMPTS[0]) - 1 : -1]
        assert set(made.logprobs) == {0.0}

    def test_an_aborted_request_keeps_what_was_sampled(self, subject: Subject) -> None:
        async def play() -> tuple[Generation, int, bool, Generation]:
            asked = await subject.ask_much()
            await asyncio.sleep(0.1)
            await subject.engine.abort("s")
            made, left, idle = await asked, subject.engine.pending, await subject.idle()
            await subject.engine.abort("s")  # nothing to abort any more
            return made, left, idle, await subject.ask(PROMPTS[1])

        for _ in range(_TRIES):
            made, left, idle, after = subject.run(play())
            if made.stop_reason == "abort" and len(made.ids) > 1:
                break
        assert (made.stop_reason, left, idle) == ("abort", 0, True)
        assert 1 < len(made.ids) < CONTEXT - 10
        subject.exact(PROMPTS[0], made)
        subject.exact(PROMPTS[1], after)

    def test_a_cancelled_request_leaves_nothing_behind(self, subject: Subject) -> None:
        async def play() -> tuple[int, bool, Generation]:
            asked = await subject.ask_much()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            return subject.engine.pending, await subject.idle(), await subject.ask(PROMPTS[0])

        left, idle, after = subject.run(play())
        assert (left, idle) == (0, True)
        subject.exact(PROMPTS[0], after)

    def test_one_request_at_a_time_per_session(self, subject: Subject) -> None:
        async def play() -> None:
            first = asyncio.create_task(subject.ask(PROMPTS[0], max_tokens=40))
            await asyncio.sleep(0)
            with pytest.raises(ValueError, match="already has a request"):
                await subject.engine.generate(PROMPTS[0], Sampling(max_tokens=1), "s", ())
            await first

        subject.run(play())

    @pytest.mark.parametrize(
        ("prompt", "reason"), [([], "at least one prompt token"), ([3, 10_000], "the tokenizer is not this model's")]
    )
    def test_a_prompt_that_cannot_be_read_is_refused(self, subject: Subject, prompt: list[int], reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            subject.run(subject.ask(prompt))
        assert subject.engine.pending == 0

    def test_new_weights_are_what_is_sampled_from(self, subject: Subject) -> None:
        async def play(turn: int) -> tuple[list[int], Generation]:
            prompt = PROMPTS[2] * 30  # longer than the blocks in which servers cache
            return prompt, await subject.engine.generate(prompt, Sampling(max_tokens=30, seed=turn), "s", ())

        subject.engine.open("s")  # one session over all updates: stale keys and values would show
        versions = []
        for turn in range(3):
            prompt, made = subject.run(play(turn))
            subject.exact(prompt, made)
            versions.append(made.weight_version)
            old = copy.deepcopy(subject.model)
            stir(subject.model, turn)
            subject.run(subject.engine.update_weights())
            drift = torch.tensor(forward_logprobs(old, prompt, made.ids, Sampling()))
            drift -= torch.tensor(forward_logprobs(subject.model, prompt, made.ids, Sampling()))
            assert drift.abs().max() > 0.05  # else nothing was tested
        assert versions == [versions[0], versions[0] + 1, versions[0] + 2]
        subject.run(subject.engine.update_weights(version=70))
        assert subject.run(play(9))[1].weight_version == subject.engine.weight_version == 70
        subject.engine.release("s")

    def test_weights_can_be_given_by_name(self, subject: Subject) -> None:
        other = copy.deepcopy(subject.model)
        stir(other, 11)
        subject.run(subject.engine.update_weights(other.state_dict().items()))
        subject.exact(PROMPTS[0], subject.run(subject.ask(PROMPTS[0])), other)
        with torch.no_grad():
            for mine, its in zip(subject.model.parameters(), other.parameters(), strict=True):
                mine.copy_(its)
        with pytest.raises(ValueError, match="nobodys_weight is unknown"):
            subject.run(subject.engine.update_weights([*other.state_dict().items(), ("nobodys_weight", torch.ones(1))]))
        subject.exact(PROMPTS[0], subject.run(subject.ask(PROMPTS[0])))

    def test_weights_that_change_under_way_are_told_token_by_token(self, subject: Subject) -> None:
        if not subject.updates_midway:
            pytest.skip("this engine takes no weights between two tokens: its own tests see when it does")

        async def play() -> tuple[int, Any, Generation]:
            before, old = subject.engine.weight_version, copy.deepcopy(subject.model)
            asked = asyncio.create_task(subject.ask(PROMPTS[0], max_tokens=1900))
            await asyncio.sleep(0.15)
            stir(subject.model, 5)
            await subject.engine.update_weights()
            return before, old, await asked

        subject.run(subject.ask(PROMPTS[0]))
        for _ in range(_TRIES):
            before, old, made = subject.run(play())
            if made.spans:
                break
        assert (made.weight_version, made.stop_reason, len(made.ids)) == (before, "length", 1900)
        (first, count), (second, rest) = made.spans
        assert (first, second, count + rest) == (before, before + 1, 1900)
        by_old = forward_logprobs(old, PROMPTS[0], made.ids, Sampling())
        by_new = forward_logprobs(subject.model, PROMPTS[0], made.ids, Sampling())
        assert made.logprobs == pytest.approx(by_old[:count] + by_new[count:], abs=TOLERANCE)

    def test_closing_ends_what_is_pending_and_may_be_repeated(self, subject: Subject) -> None:
        """The last test of the class: the engine is closed after it."""

        async def play() -> Generation:
            asked = await subject.ask_much()
            await asyncio.sleep(0.1)
            await asyncio.wait_for(subject.engine.close(), 30)
            await subject.engine.close()
            assert await subject.idle()
            with pytest.raises(InfrastructureError, match="the engine is closed"):
                await subject.ask(PROMPTS[0], "late")
            return await asked

        made = subject.run(play())
        assert made.stop_reason == "abort"
        subject.exact(PROMPTS[0], made)
