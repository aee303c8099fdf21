"""Packed rows are read as if each were alone, and however rows are portioned, the step is that of the whole batch."""

from __future__ import annotations

import asyncio
import copy
from itertools import combinations_with_replacement, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import ADVANTAGE, BATCH, ON_POLICY, conversation
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from agentgym.errors import AgentgymError
from agentgym.policy import Sampling
from agentgym.tokens import TokenBuffer
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.learner import Learner
from agentgym_trainers.logprobs import score, token_logprobs
from agentgym_trainers.network import Network, deal
from agentgym_trainers.packing import Layout, allow_packing, micro_batches, pack, packed_states, runs
from agentgym_trainers.settings import ComputeSettings, CriticSettings, OptimSettings, PolicySettings

Tiny = tuple[Any, ChatFormat]


def siblings(prompts: int = 3, attempts: int = 3) -> list[TokenBuffer]:
    """Attempts of two turns that begin with the same prompt, like those of a group."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for prompt in range(prompts):
        shared = torch.randint(6, 260, (5 + 7 * prompt,), generator=draw).tolist()
        for attempt in range(attempts):
            buffer = TokenBuffer()
            buffer.append_text(shared, 0)
            for turn in range(2):
                own = torch.randint(6, 260, (2 + attempt + turn,), generator=draw).tolist()
                buffer.append_sampled(own, [-5.5] * len(own), turn)
                buffer.append_text([9, 10, 11][: 1 + turn], turn)
            made.append(buffer)
    return made


def tree() -> list[TokenBuffer]:
    """Attempts that part in a prompt, in what was sampled, in what was told, at the very end, or not at all."""
    rows = [
        [(20, 21, 22), (30, 31, 32), (9, 10), (40, 41)],
        [(20, 21, 22), (30, 31, 33), (9, 10), (40,)],
        [(20, 21, 22), (30, 31, 32), (9, 11), (40, 41)],
        [(20, 21, 22), (30, 31, 32), (9, 10), (40, 41, 42)],
        [(20, 21, 22), (30, 31, 32), (9, 10), (40, 41)],
        [(20, 25, 22), (30, 31, 32), (9, 10), (40, 41)],
        [(50, 51), (30,)],
        [(20, 21, 22), (30,)],
    ]
    made = []
    for row in rows:
        buffer = TokenBuffer()
        for turn, ids in enumerate(row):
            if turn % 2:
                buffer.append_sampled(list(ids), [-5.5] * len(ids), turn // 2)
            else:
                buffer.append_text(list(ids), turn // 2)
        made.append(buffer)
    return made


GROUPS = TokenBatch.of(siblings())
TREE = TokenBatch.of(tree())
packings = pytest.mark.parametrize("packing", ["rows", "prefixes"])


def scores(model: Any, batch: TokenBatch, packing: Any) -> tuple[torch.Tensor, torch.Tensor]:
    logp_BL, entropy_BL, *_ = Network(copy.deepcopy(model), ComputeSettings(packing=packing))(batch, temperature=0.9)
    return logp_BL, entropy_BL


@packings
@pytest.mark.parametrize("batch", [BATCH, GROUPS, TREE], ids=["strangers", "siblings", "tree"])
def test_packed_logprobs_are_those_of_rows_alone(tiny: Tiny, packing: str, batch: TokenBatch) -> None:
    logp_BL, entropy_BL = scores(tiny[0], batch, packing)
    for row in range(len(batch.length_B)):
        alone = batch.rows(torch.tensor([row]))
        width = alone.ids_BL.shape[1]
        expected = token_logprobs(tiny[0], alone.ids_BL, alone.sampled_BL, temperature=0.9, logit_budget=1 << 24)
        assert torch.allclose(logp_BL[row, :width], expected[0][0], atol=1e-5)
        assert torch.allclose(entropy_BL[row, :width], expected[1][0], atol=1e-5)


@packings
def test_other_families_pack_too(packing: str) -> None:
    config = LlamaConfig(
        vocab_size=272, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    assert torch.allclose(scores(model, GROUPS, packing)[0], scores(model, GROUPS, "none")[0], atol=1e-5)


@packings
@pytest.mark.parametrize("batch", [GROUPS, TREE], ids=["siblings", "tree"])
def test_gradients_of_packed_rows_are_those_of_padded_ones(tiny: Tiny, packing: Any, batch: TokenBatch) -> None:
    found = []
    for one in ("none", packing):
        model = copy.deepcopy(tiny[0])
        logp_BL = Network(model, ComputeSettings(packing=one))(batch, temperature=1.0)[0]
        (logp_BL * torch.arange(logp_BL.numel()).reshape(logp_BL.shape).sin()).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(one, other, atol=1e-5, rtol=1e-4) for one, other in zip(*found, strict=True))


def test_many_threads_add_gradients_up_in_one_order() -> None:
    """Rows that part at one token meet in it again; three and more sums depend on their order."""
    torch.manual_seed(0)
    states_1PD, source_N = torch.randn(1, 64, 512, requires_grad=True), torch.arange(4096) % 3
    layout = Layout(torch.zeros(1, 64), torch.zeros(1, 64), (), source_N)
    weight_ND = torch.randn(4096, 512)
    before, found = torch.get_num_threads(), []
    try:
        torch.set_num_threads(4)
        for _ in range(12):
            states_ND = packed_states(lambda **_: SimpleNamespace(last_hidden_state=states_1PD), layout)
            found.append(torch.autograd.grad((states_ND * weight_ND).sum(), states_1PD)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


def test_rows_that_share_next_to_nothing_lay_all_of_it() -> None:
    def rows(common: int) -> TokenBatch:
        made = []
        for row in range(2):
            buffer = TokenBuffer()
            buffer.append_text([3] * common, 0)
            buffer.append_sampled([100 + row] * (320 - common), [-1.0] * (320 - common), 0)
            made.append(buffer)
        return TokenBatch.of(made)

    assert pack(rows(19), share=True).ids_1P.numel() == 640
    assert pack(rows(20), share=True).ids_1P.numel() == 620


def test_rows_that_share_all_but_little_still_fill_a_portion() -> None:
    buffer = TokenBuffer()
    buffer.append_text([3] * 90, 0)
    buffer.append_sampled([7] * 10, [-1.0] * 10, 0)
    parts = list(micro_batches(TokenBatch.of([buffer] * 20), torch.arange(20), 200, share=True))
    assert [len(part) for part in parts] == [8, 8, 4]


def test_no_token_is_laid_out_twice_or_for_nothing() -> None:
    assert pack(BATCH, share=False).ids_1P.numel() == int(BATCH.length_B.sum())
    shared = pack(GROUPS, share=True)
    prompts = [5, 12, 19]
    assert shared.ids_1P.numel() == int(GROUPS.length_B.sum()) - 2 * sum(prompts)
    assert len(shared.source_N) == int(GROUPS.sampled_BL.sum())
    rows = [tuple(ids[:length]) for ids, length in zip(TREE.ids_BL.tolist(), TREE.length_B.tolist(), strict=True)]
    beginnings = {ids[:stop] for ids in rows for stop in range(1, len(ids) + 1)}
    shared = pack(TREE, share=True)
    assert shared.ids_1P.numel() == len(beginnings) < sum(map(len, rows)) / 2
    assert len(shared.pieces) == len(set(rows))


@packings
def test_packing_leaves_generation_alone(tiny: Tiny, packing: Any) -> None:
    model = copy.deepcopy(tiny[0])
    mask_BL = (BATCH.ids_BL != 0).long().flip(1)
    with torch.no_grad():
        before = model(input_ids=BATCH.ids_BL.flip(1), attention_mask=mask_BL).logits
        allow_packing(model)
        after = model(input_ids=BATCH.ids_BL.flip(1), attention_mask=mask_BL).logits
    assert torch.equal(before, after)


def test_an_engine_over_a_packed_model_batches_continuously_and_samples_the_same(tiny: Tiny) -> None:
    async def sampled(model: Any) -> tuple[list[int], list[float]]:
        engine = HFEngine(model)
        assert engine._batch is not None
        try:
            found = await engine.generate([3, 4, 5], Sampling(max_tokens=12, seed=7), "s", [])
        finally:
            await engine.close()
        return found.ids, found.logprobs

    plain, packed = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])
    allow_packing(packed)
    assert asyncio.run(sampled(plain)) == asyncio.run(sampled(packed))


def test_a_model_with_a_window_is_refused() -> None:
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, use_sliding_window=True, sliding_window=4, max_window_layers=1, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(AgentgymError, match=r"packing knows no sliding windows .* set trainer.compute.packing to none"):
        allow_packing(Qwen2ForCausalLM(config).eval())


def weights(one: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()])


@pytest.fixture(scope="module")
def whole_step(tiny: Tiny) -> tuple[dict[str, float], torch.Tensor]:
    return _step(tiny, token_budget=100_000, logit_budget=1 << 24, packing="none")


def _step(tiny: Tiny, **compute: Any) -> tuple[dict[str, float], torch.Tensor]:
    one = Learner(copy.deepcopy(tiny[0]), ComputeSettings(**compute))
    one.begin(OptimSettings(lr=1e-3), 10, keep_reference=True)
    options = {"kl_weight": 0.1}
    metrics = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings(loss_options=options))
    return metrics, weights(one)


@settings(max_examples=12, deadline=None)
@given(
    token_budget=st.integers(1, 400), logit_budget=st.integers(272, 40_000),
    packing=st.sampled_from(["none", "rows", "prefixes"]),
)  # fmt: skip
def test_the_layout_of_micro_batches_changes_no_step(
    tiny: Tiny, whole_step: Any, token_budget: int, logit_budget: int, packing: str
) -> None:
    metrics, found = _step(tiny, token_budget=token_budget, logit_budget=logit_budget, packing=packing)
    assert metrics == pytest.approx(whole_step[0], rel=1e-4, abs=1e-6)
    assert (found - whole_step[1]).abs().max() < 5e-5  # the step itself is 1e-3


@given(budget=st.integers(1, 200), share=st.booleans(), batch=st.sampled_from([GROUPS, TREE]), draws=st.data())
def test_packed_portions_hold_every_row_once_within_the_budget(
    budget: int, share: bool, batch: TokenBatch, draws: st.DataObject
) -> None:
    order = draws.draw(st.permutations(range(len(batch.length_B))))
    parts = list(micro_batches(batch, torch.tensor(order), budget, share=share))
    assert sorted(torch.cat(parts).tolist()) == sorted(order)
    for part in parts:
        size = pack(batch.rows(part), share=share).ids_1P.numel()
        assert size <= budget or len(part) == 1


def laid(batch: TokenBatch, index_R: torch.Tensor) -> int:
    return pack(batch.rows(index_R), share=True).ids_1P.numel() if len(index_R) else 0


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_begins_alike_is_dealt_to_one_process_and_all_get_about_as_much(ranks: int) -> None:
    batch = TokenBatch.of(siblings(prompts=8, attempts=8))
    index_R = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    dealt = [
        [laid(batch, part_R) for part_R in deal(batch, index_R, ComputeSettings(packing=packing), ranks)]
        for packing in ("prefixes", "rows")
    ]
    together, apart = (sum(one) for one in dealt)
    longest_prompt = 5 + 7 * 7
    assert together - laid(batch, index_R) <= (ranks - 1) * longest_prompt
    assert apart - laid(batch, index_R) > 2 * (together - laid(batch, index_R))
    assert max(dealt[0]) < min(dealt[0]) + longest_prompt


def test_rows_that_say_the_same_are_dealt_out_all_the_same() -> None:
    dealt = runs(TokenBatch.of([conversation(0)] * 20), torch.arange(20), 2)
    assert [len(one) for one in dealt] == [10, 10]


@given(count=st.integers(1, 6), batch=st.sampled_from([GROUPS, TREE]), draws=st.data())
def test_runs_hold_every_row_once_and_no_others_have_a_smaller_largest(
    count: int, batch: TokenBatch, draws: st.DataObject
) -> None:
    def filled(index_R: torch.Tensor) -> int:
        return max(4 * laid(batch, index_R), int(batch.length_B[index_R].sum()))

    chosen = draws.draw(st.lists(st.integers(0, len(batch.length_B) - 1), unique=True, max_size=6))
    dealt = runs(batch, torch.tensor(chosen, dtype=torch.long), count)
    order_R = torch.cat(dealt)
    assert len(dealt) == count
    assert sorted(order_R.tolist()) == sorted(chosen)
    largest = max(filled(one) for one in dealt)
    for cuts in combinations_with_replacement(range(len(chosen) + 1), count - 1):
        spans = pairwise([0, *cuts, len(chosen)])
        assert largest <= max(filled(order_R[start:stop]) for start, stop in spans)


@packings
def test_a_packed_critic_says_the_same(tiny: Tiny, packing: Any) -> None:
    found = []
    for one in ("none", packing):
        made = Learner(copy.deepcopy(tiny[0]), ComputeSettings(packing=one))
        made.begin(OptimSettings(), 1, critic=CriticSettings(), critic_steps=1)
        critic = made.critic
        assert critic is not None
        torch.nn.init.ones_(critic.head.weight)
        found.append(made.values(GROUPS))
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert found[0].any()


def test_chunked_logprobs_and_entropies_are_the_naive_ones_and_so_are_their_gradients(tiny: Tiny) -> None:
    states = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50)
    share = target.float().sin()
    found = []
    for budget in (272 * 7, None):
        head, states_ND = copy.deepcopy(tiny[0].get_output_embeddings()), states.clone().requires_grad_()
        if budget is None:
            logp_NV = torch.log_softmax(head(states_ND) / 0.7, -1)
            logp, entropy = logp_NV[target, target], -(logp_NV.exp() * logp_NV).sum(-1)
        else:
            logp, entropy = score(head, states_ND, target, temperature=0.7, logit_budget=budget)
        (logp * share).sum().backward()  # type: ignore[no-untyped-call]
        found.append((logp, entropy, states_ND.grad, head.weight.grad))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))
