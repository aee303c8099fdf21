"""The transformers engine keeps the contract in every mode; batches, prefixes and scripts do what they say."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from engine_contract import (
    CONTEXT,
    PROMPTS,
    EngineContract,
    Subject,
    TokenContract,
    contract_model,
    forward_logprobs,
    hybrid_model,
    stir,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling
from agentgym_trainers.build import build
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.decode import FixedBatches, ignores_padding, lets_rows_go
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.engines.sampler import Request, draw
from agentgym_trainers.engines.scripted import ScriptedEngine
from agentgym_trainers.engines.slots import SlotLayer

Tiny = tuple[Any, ChatFormat]
SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "sliding_window": 4, "initializer_range": 0.2,
}  # fmt: skip
TIED, UNTIED = partial(contract_model, tied=True), partial(contract_model, tied=False)
MODES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "eager": (TIED, {"batching": "eager"}),
    "untied": (UNTIED, {"batching": "eager"}),
    "copied": (TIED, {"batching": "eager", "weights": "copied"}),
    "lockstep": (UNTIED, {"batching": "lockstep", "patience_s": 1}),
    "no-prefixes": (UNTIED, {"batching": "eager", "prefix_cache_mb": 0, "max_batch": 2}),
    "no-drafts": (UNTIED, {"batching": "eager", "draft_tokens": 0}),
    "fixed": (hybrid_model, {"batching": "eager", "weights": "copied"}),
    "fixed-lockstep": (hybrid_model, {"batching": "lockstep", "patience_s": 1}),
}


@pytest.fixture(params=list(MODES))
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    model, options = MODES[request.param]
    yield from hf(model(), **options)


def hf(model: Any, **options: Any) -> Iterator[Subject]:
    """An engine over a model, closed in the end."""
    engine = HFEngine(model, **options)

    def running() -> int:
        return len(engine._batch.rows) if engine._batch is not None else int(engine._busy)

    made = Subject(engine, model, updates_midway=engine.owns_weights and engine._batch is not None, running=running)
    with made.runner:
        yield made
        made.run(engine.close())


class TestHFEngine(EngineContract):
    pass


class Spoken(Subject):
    """A scripted engine, each of whose sessions has one and the same script; its logprobs are none."""

    async def ask(
        self, prompt: Sequence[int], session: str = "s", stop_ids: Sequence[int] = (), **sampling: Any
    ) -> Generation:
        engine: Any = self.engine
        engine.assign(session, ["a message of more than twelve tokens"])
        return await super().ask(prompt, session, stop_ids, **sampling)

    def exact(self, prompt: Sequence[int], made: Generation, model: Any = None, **sampling: Any) -> None:
        assert made.logprobs == [0.0] * len(made.ids)


class TestScriptedEngine(TokenContract):
    @pytest.fixture
    def subject(self, tiny: Tiny) -> Iterator[Subject]:
        engine: Any = ScriptedEngine(tiny[1])
        made = Spoken(engine, tiny[0])
        with made.runner:
            yield made


@pytest.mark.parametrize(
    ("turn_s", "given", "patience_s"),
    [
        (300, {}, 330.0),
        (5, {}, 120.0),
        (300, {"patience_s": 5.0}, 5.0),
        (5, {"patience_s": "3e2"}, 300.0),  # as YAML reads 3e2
    ],
)
def test_lockstep_has_the_patience_for_a_step_that_takes_all_its_time(
    lab: Any, turn_s: float, given: dict[str, Any], patience_s: float
) -> None:
    chosen = lab.recipe(limits={"turn_timeout_s": turn_s}, trainer={"engine": {"name": "hf", "options": given}})
    parts = asyncio.run(build(chosen.prepare(), chosen.trainer_settings(), None, None, lambda *_: None))
    engine: Any = parts.engine
    assert engine._patience_s == patience_s
    asyncio.run(engine.close())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("family", "config"),
    [
        (MistralForCausalLM, MistralConfig(**SHAPE)),
        (MistralForCausalLM, MistralConfig(**SHAPE, layer_types=["full_attention"] * 2)),
        (LlamaForCausalLM, LlamaConfig(**SHAPE)),
        (
            Gemma3ForCausalLM,
            Gemma3TextConfig(**SHAPE, head_dim=16, layer_types=["sliding_attention", "full_attention"]),
        ),
    ],
    ids=["all-windows", "windows-that-the-config-denies", "windows-of-the-config-alone", "some-windows"],
)
def test_models_with_sliding_windows_are_exact(family: Any, config: Any, attention: str) -> None:
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    torch.manual_seed(0)
    for subject in hf(family(config).eval()):
        EngineContract().test_every_turn_is_exact_from_its_first_token_on(subject)
        EngineContract().test_logprobs_are_those_of_the_sampled_distribution(subject, {})


def mamba(**changes: Any) -> Any:
    """A small Mamba of random weights, which reads padding at every token."""
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**SHAPE | changes, state_size=8)).eval()


def recurrent_gemma() -> Any:
    """A small RecurrentGemma of random weights: it reads padding in its convolution, and keeps states on modules."""
    config = RecurrentGemmaConfig(
        **SHAPE, pad_token_id=None, block_types=["recurrent", "attention"], attention_window_size=16
    )
    torch.manual_seed(0)
    return RecurrentGemmaForCausalLM(config).eval()


@pytest.mark.parametrize(("make", "shrinks"), [(mamba, True), (recurrent_gemma, False)])
def test_models_are_given_no_padding_that_they_read_and_keep_the_rows_that_they_cannot_let_go(
    make: Callable[[], Any], shrinks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(subject: Subject, limits: Sequence[int]) -> list[Generation]:
        for seed in range(len(limits)):
            subject.engine.open(f"s{seed}")
        asked = enumerate(zip(PROMPTS, limits, strict=True))
        return await asyncio.gather(
            *(subject.ask(prompt, f"s{seed}", max_tokens=most, seed=seed) for seed, (prompt, most) in asked)
        )

    model = make()
    assert (ignores_padding(model), lets_rows_go(model)) == (False, shrinks)
    for subject in hf(model, batching="lockstep"):
        for limits in ([3, 12, 5, 12], [12, 4, 12, 3]):  # the first and the last prompt share a batch
            made = subject.run(play(subject, limits))
            assert [len(one.ids) for one in made] == limits
            for prompt, one in zip(PROMPTS, made, strict=True):
                subject.exact(prompt, one)
    family = type(model).__name__
    assert f"{family} reads padding: only prompts of one length are batched" in caplog.text
    assert (f"{family} lets no row go: a batch is computed whole until its end" in caplog.text) is not shrinks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_is_told_from_rounding_in_every_type(dtype: torch.dtype) -> None:
    assert not ignores_padding(mamba(initializer_range=0.02).to(dtype))
    for model in (hybrid_model(), contract_model(tied=True)):
        assert ignores_padding(model.to(dtype))
        assert lets_rows_go(model.to(dtype))


def test_batches_that_have_not_begun_compute_nothing_for_who_is_gone() -> None:
    model = mamba()
    calls: list[tuple[int, ...]] = []
    prompts = [[3] * length for length in (2, 3, 3, 4)]
    fixed = FixedBatches(model)

    def play(aborted: Sequence[int], closing: Callable[[], bool]) -> tuple[list[int], list[tuple[int, ...]]]:
        requests = [
            Request(f"s{index}", prompt, Sampling(max_tokens=2), frozenset(), aborted=index in aborted)
            for index, prompt in enumerate(prompts)
        ]
        calls.clear()
        made = fixed.run(requests, 7, closing)
        assert {one.weight_version for one in made} == {7}
        assert all(one.stop_reason == ("length" if len(one.ids) == 2 else "abort") for one in made)
        return [len(one.ids) for one in made], list(calls)

    play([], lambda: False)  # what is tried out once
    model.register_forward_pre_hook(
        lambda _model, _args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert play([0, 2], lambda: False) == ([0, 2, 0, 2], [(1, 3), (1, 1), (1, 4), (1, 1)])
    assert play([], lambda: True) == ([0, 0, 0, 0], [])
    assert play([], lambda: bool(calls)) == ([1, 0, 0, 0], [(1, 2)])


def test_requests_join_and_leave_the_running_batch_at_any_token() -> None:
    async def play(subject: Subject) -> list[str]:
        order: list[str] = []

        async def one(name: str) -> None:
            await subject.ask(PROMPTS[0], name, max_tokens=3)
            order.append(name)

        long = await subject.ask_much()
        for index in range(5):
            await one(f"short-{index}")  # each begins and ends while the long one runs
        assert not long.done()
        await subject.engine.abort("s")
        assert len((await long).ids) >= 5  # one at least with each of them
        return order

    for subject in hf(contract_model(tied=True)):
        assert subject.run(play(subject)) == [f"short-{index}" for index in range(5)]


def test_a_session_computes_only_what_is_new_and_its_keys_go_with_it() -> None:
    async def play(engine: HFEngine) -> list[int]:
        engine.open("a")
        context, hits = PROMPTS[2] * 4, []
        for turn in range(3):
            made = await engine.generate(context, Sampling(max_tokens=10, seed=turn), "a", ())
            context = [*context, *made.ids, 5, 6, 7]
            hits.append(engine.prefixes.hits)
        engine.open("b")  # another session begins as the first did
        await engine.generate([*PROMPTS[2] * 4, 9], Sampling(max_tokens=2), "b", ())
        hits.append(engine.prefixes.hits)
        await engine.update_weights()
        assert len(engine.prefixes) == engine.prefixes.bytes == 0
        await engine.generate(context, Sampling(max_tokens=2), "a", ())
        assert len(engine.prefixes) == 1
        for name in "ab":
            engine.release(name)
        assert len(engine.prefixes) == engine.prefixes.bytes == 0
        return [*hits, engine.prefixes.hits]

    for subject in hf(contract_model(tied=True)):
        assert isinstance(subject.engine, HFEngine)
        # The last sampled token of a turn was never computed: 40 + 9, then 53 + 9, then the 40 shared ones.
        assert subject.run(play(subject.engine)) == [0, 49, 49 + 62, 49 + 62 + 40, 49 + 62 + 40]


def test_prefixes_stay_within_their_memory() -> None:
    per_token = 2 * 2 * 32 * 4  # two layers of keys and values, one head of 32 numbers of 4 bytes
    room_mb = 60 * per_token / 2**20

    async def play(engine: HFEngine) -> None:
        for name in "abcde":
            engine.open(name)
            await engine.generate([ord(name), *PROMPTS[0] * 4], Sampling(max_tokens=5), name, ())
            assert engine.prefixes.bytes <= 60 * per_token
        assert len(engine.prefixes) == 2  # 25 tokens each
        await engine.generate(PROMPTS[0] * 20, Sampling(max_tokens=5), "e", ())  # larger than all the memory there is
        assert len(engine.prefixes) == 1

    for subject in hf(contract_model(tied=True), prefix_cache_mb=room_mb):
        assert isinstance(subject.engine, HFEngine)
        subject.run(play(subject.engine))


def test_a_shared_prompt_is_computed_once() -> None:
    model, widths = contract_model(tied=True), []
    model.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    for subject in hf(model, batching="lockstep"):
        made = subject.run(subject.ask_all([PROMPTS[2]] * 6))
        for one in made:
            subject.exact(PROMPTS[2], one)
    assert widths[:2] == [(1, len(PROMPTS[2])), (6, 1)]
    assert len({tuple(one.ids) for one in made}) == 6


def test_a_long_prompt_does_not_pad_the_short_ones() -> None:
    model, widths = contract_model(tied=True), []
    model.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [[number, *PROMPTS[0]] for number in range(3, 13)] + [PROMPTS[0] * 14]
    for subject in hf(model, batching="lockstep"):
        answers = subject.run(subject.ask_all(prompts))
        computed = sum(rows * width for rows, width in widths if width > 1)
        assert computed == sum(map(len, prompts))
        for prompt, made in zip(prompts, answers, strict=True):
            subject.exact(prompt, made)


def test_the_buffer_of_keys_grows_with_its_rows_and_keeps_what_it_has() -> None:
    layer = SlotLayer()
    layer.lazy_initialization(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    for size in range(1, 200):
        layer.reserve(size, size)
        layer.keys[:size, :, size - 1] = size
        rows, _, columns, _ = layer.keys.shape
        assert size <= rows <= 1.25 * size
        assert size <= columns <= 1.125 * size + 16
    assert torch.equal(layer.keys[0, 0, :199, 0], torch.arange(1.0, 200.0))


def test_one_long_row_is_not_given_the_room_of_all_that_were_before() -> None:
    layer = SlotLayer()
    layer.lazy_initialization(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    layer.fit(256, 500)
    layer.keys[:2, :, :500] = 1
    layer.fit(2, 8192)
    assert layer.keys.shape == layer.values.shape == (2, 1, 8192 + 1024, 1)
    assert layer.keys[:, :, :500].min() == 1
    layer.fit(300, 20)
    assert layer.keys.shape == (375, 1, 20, 1)


def test_a_prompt_without_room_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = SlotLayer._resize

    def limited(layer: SlotLayer, rows: int, columns: int) -> None:
        if rows * columns > 5000:
            raise MemoryError("not that much")
        resize(layer, rows, columns)

    monkeypatch.setattr(SlotLayer, "_resize", limited)
    prompts = [*PROMPTS, PROMPTS[0] * 300]

    async def play(subject: Subject) -> list[Generation | BaseException]:
        asked = [subject.ask(one, f"s{index}", max_tokens=6) for index, one in enumerate(prompts)]
        return await asyncio.gather(*asked, return_exceptions=True)

    for subject in hf(contract_model(tied=True), batching="lockstep", patience_s=0.5):
        subject.run(subject.ask(PROMPTS[2]))  # room is made once there is some
        for index in range(len(prompts)):
            subject.engine.open(f"s{index}")
        *made, failed = subject.run(play(subject))
        assert isinstance(failed, InfrastructureError)
        for prompt, one in zip(PROMPTS, made, strict=True):
            assert isinstance(one, Generation)
            subject.exact(prompt, one)


async def sample(
    model: Any, prompts: Sequence[list[int]], batching: Any = "lockstep", max_batch: int = 8, **sampling: Any
) -> list[Generation]:
    """Two turns of every prompt at once; the last ones."""
    engine = HFEngine(model, batching=batching, max_batch=max_batch)
    names = [f"s{index}" for index in range(len(prompts))]

    async def play(index: int, name: str, prompt: list[int]) -> Generation:
        made = await engine.generate(prompt, Sampling(max_tokens=6 + index, seed=index), name, (1,))
        made = await engine.generate(
            [*prompt, *made.ids, 5], Sampling(max_tokens=12, **{"seed": index} | sampling), name, (1,)
        )
        engine.release(name)
        return made

    for name in names:
        engine.open(name)
    try:
        return await asyncio.gather(
            *(play(index, name, prompt) for index, (name, prompt) in enumerate(zip(names, prompts, strict=True)))
        )
    finally:
        await engine.close()


def test_lockstep_repeats_bit_for_bit(tiny: Tiny) -> None:
    assert asyncio.run(sample(tiny[0], PROMPTS)) == asyncio.run(sample(tiny[0], PROMPTS))


def test_small_batches_give_the_same_tokens(tiny: Tiny) -> None:
    whole, parts = asyncio.run(sample(tiny[0], PROMPTS)), asyncio.run(sample(tiny[0], PROMPTS, max_batch=2))
    assert [one.ids for one in whole] == [one.ids for one in parts]


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


def test_a_failing_model_is_an_infrastructure_error_and_the_engine_goes_on(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny[0])
    good, model.lm_head = model.lm_head, torch.nn.Linear(1, 1)

    async def play() -> Generation:
        engine = HFEngine(model)
        with pytest.raises(InfrastructureError, match="the model failed on a batch of 1: mat1 and mat2"):
            await engine.generate(PROMPTS[0], Sampling(max_tokens=2), "a", ())
        model.lm_head = good
        made = await engine.generate(PROMPTS[0], Sampling(max_tokens=2), "a", ())
        await engine.close()
        return made

    assert len(asyncio.run(play()).ids) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_distribution_are_an_infrastructure_error_and_no_token(bad: float) -> None:
    model = contract_model(tied=False)
    good = model.lm_head.weight.detach().clone()

    async def play() -> Generation:
        engine = HFEngine(model)
        with torch.no_grad():
            model.lm_head.weight[5] = bad
        with pytest.raises(InfrastructureError, match="wanted finite scores, found NaN or infinity"):
            await engine.generate(PROMPTS[0], Sampling(max_tokens=2), "a", ())
        with torch.no_grad():
            model.lm_head.weight.copy_(good)
        made = await engine.generate(PROMPTS[0], Sampling(max_tokens=2), "a", ())
        await engine.close()
        return made

    assert len(asyncio.run(play()).ids) == 2


def test_shared_weights_do_not_change_under_a_request() -> None:
    async def play(subject: Subject) -> None:
        asked = await subject.ask_much()
        with pytest.raises(ValueError, match="weights='copied'"):
            await subject.engine.update_weights()
        await subject.engine.abort("s")
        await asked

    for subject in hf(contract_model(tied=True)):
        subject.run(play(subject))


def test_copied_weights_stay_until_they_are_updated() -> None:
    for subject in hf(contract_model(tied=True), weights="copied"):
        old = copy.deepcopy(subject.model)
        stir(subject.model, 3)
        subject.exact(PROMPTS[0], subject.run(subject.ask(PROMPTS[0])), old)


@pytest.mark.parametrize(
    ("make", "batching"),
    [
        pytest.param(hybrid_model, "eager", id="fixed"),
        pytest.param(hybrid_model, "lockstep", id="fixed-lockstep"),
        pytest.param(TIED, "lockstep", id="lockstep"),
    ],
)
def test_weights_that_come_during_a_batch_that_nobody_joins_are_taken_after_it(
    make: Callable[[], Any], batching: str
) -> None:
    async def play(subject: Subject) -> tuple[Generation, Generation]:
        engine: Any = subject.engine
        stir(subject.model, 5)  # of which the engine has a copy
        begun = asyncio.create_task(subject.ask(PROMPTS[0], "begun", max_tokens=200))
        while not engine._busy or engine._waiting:  # noqa: ASYNC110 -- it computes on a thread of its own
            await asyncio.sleep(0.001)
        update = asyncio.create_task(engine.update_weights())
        late = asyncio.create_task(subject.ask(PROMPTS[1], "late"))
        await asyncio.sleep(0)
        assert (engine._busy, len(engine._updates), list(engine._waiting)) == (True, 1, ["late"])
        await update
        return await begun, await late

    for subject in hf(make(), batching=batching, weights="copied", patience_s=1):
        before, old = subject.engine.weight_version, copy.deepcopy(subject.model)
        begun, late = subject.run(play(subject))
        assert (begun.weight_version, begun.spans, len(begun.ids)) == (before, (), 200)
        subject.exact(PROMPTS[0], begun, old)
        drift = torch.tensor(begun.logprobs) - torch.tensor(
            forward_logprobs(subject.model, PROMPTS[0], begun.ids, Sampling())
        )
        assert drift.abs().max() > 0.05  # else nothing was tested
        assert late.weight_version == subject.engine.weight_version == before + 1
        subject.exact(PROMPTS[1], late)


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay() -> None:
    for subject in hf(contract_model(tied=False), weights="copied"):
        old, head = copy.deepcopy(subject.model), torch.nn.Linear(64, 7, bias=False)
        stir(subject.model, 3)
        subject.model.lm_head = head
        with pytest.raises(ValueError, match=r"do not fit Qwen2ForCausalLM: lm_head\.weight is of another shape"):
            subject.run(subject.engine.update_weights())
        subject.exact(PROMPTS[0], subject.run(subject.ask(PROMPTS[0])), old)


MANY = Sampling(max_tokens=CONTEXT - 10)


async def under_way(engine: Any) -> None:
    """Return once the engine computes rows that are not done for long."""
    async with asyncio.timeout(60):
        while not engine._batch.rows:  # noqa: ASYNC110 -- it computes on a thread of its own
            await asyncio.sleep(0.001)


def test_a_broken_worker_tells_everybody() -> None:
    async def play(engine: Any) -> None:
        asked = asyncio.create_task(engine.generate(PROMPTS[0], MANY, "a", ()))
        await under_way(engine)
        engine._batch.tick = None
        with pytest.raises(InfrastructureError, match="the engine failed: TypeError"):
            await asked
        with pytest.raises(InfrastructureError, match="the engine is closed"):
            await engine.generate(PROMPTS[0], Sampling(max_tokens=1), "b", ())

    for subject in hf(contract_model(tied=False)):
        subject.run(play(subject.engine))


def _without_restart(subject: Subject) -> None:
    vars(subject.engine)["_batch"].restart = None


def _without_numbers(subject: Subject) -> None:
    subject.model.lm_head.to("meta")  # of the right shape all the same


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(_without_restart, "TypeError", id="batch-breaks"),
        pytest.param(_without_numbers, "NotImplementedError", id="copy-fails"),
    ],
)
def test_new_weights_that_break_the_worker_end_the_engine_and_tell_who_brought_them(
    spoil: Callable[[Subject], None], error: str
) -> None:
    async def play(subject: Subject) -> None:
        engine = subject.engine
        asked = asyncio.create_task(engine.generate(PROMPTS[0], MANY, "a", ()))
        await under_way(engine)
        spoil(subject)
        with pytest.raises(InfrastructureError, match=f"the engine failed: {error}"):
            await asyncio.wait_for(engine.update_weights(), 20)
        with pytest.raises(InfrastructureError, match=f"the engine failed: {error}"):
            await asked
        with pytest.raises(InfrastructureError, match="the engine is closed and takes no weights"):
            await asyncio.wait_for(engine.update_weights(), 20)

    for subject in hf(contract_model(tied=False), weights="copied"):
        subject.run(play(subject))


def test_nothing_is_remembered_of_a_request_that_nobody_waits_for() -> None:
    async def play(engine: Any) -> None:
        engine.open("a")
        asked = asyncio.create_task(engine.generate(PROMPTS[0], MANY, "a", ()))
        await under_way(engine)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.to_thread(engine._worker.submit(bool).result)
        assert len(engine.prefixes) == 0, "shared weights may have changed while it ended"
        kept = asyncio.create_task(engine.generate(PROMPTS[0], MANY, "a", ()))
        await under_way(engine)
        await engine.abort("a")
        assert (await kept).stop_reason == "abort"
        assert len(engine.prefixes) == 1

    for subject in hf(contract_model(tied=True)):
        subject.run(play(subject.engine))


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9), st.floats(0, 1, exclude_max=True), st.floats(0.1, 1)
)
def test_drawing_inverts_the_cumulative_distribution(logits: list[float], uniform: float, top_p: float) -> None:
    one = torch.tensor([logits])
    token, logp = draw(one, torch.ones(1), torch.tensor([top_p]), torch.tensor([uniform], dtype=torch.float64))
    probabilities = torch.softmax(one[0], -1)
    order = probabilities.argsort(descending=True, stable=True)
    before = [float(probabilities[order[:rank]].sum()) for rank in range(len(logits))]
    assume(all(abs(mass - top_p) > 1e-5 for mass in before))  # rounding may end the nucleus on either side
    kept = [index for index, mass in zip(order.tolist(), before, strict=True) if mass < top_p]
    ties = [index for index in range(len(logits)) if float(probabilities[index]) == float(probabilities[kept[-1]])]
    assert int(token) in {*kept, *ties}
    assert float(logp) == pytest.approx(float((probabilities[token] / probabilities[kept].sum()).log()), abs=1e-3)
    below = sum(float(probabilities[index]) for index in kept if index < int(token)) / float(probabilities[kept].sum())
    assert below - 1e-6 <= uniform <= below + float(logp.exp()) + 1e-6


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
