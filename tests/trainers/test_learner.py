"""The learner: exact accumulation, masks, logprobs, schedules, state."""

from __future__ import annotations

import asyncio
import copy
import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from token_rows import ADVANTAGE, BATCH, BUFFERS, ON_POLICY
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from agentgym.errors import AgentgymError
from agentgym.policy import Sampling
from agentgym.rewards import Rewards
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Group
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.learner import Learner
from agentgym_trainers.logprobs import check_head, token_logprobs
from agentgym_trainers.optimizer import CollapseError
from agentgym_trainers.settings import ComputeSettings, OptimSettings, PolicySettings
from agentgym_trainers.update import Update

Tiny = tuple[Any, ChatFormat]


def learner(tiny: Tiny, *, token_budget: int = 100_000, logit_budget: int = 1 << 24, lr: float = 1e-3) -> Learner:
    made = Learner(copy.deepcopy(tiny[0]), ComputeSettings(token_budget=token_budget, logit_budget=logit_budget))
    made.begin(OptimSettings(lr=lr), steps=10)
    return made


def weights(one: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()])


def test_logprobs_are_the_models_own_and_chunks_change_nothing(tiny: Tiny) -> None:
    with torch.no_grad():
        expected = torch.log_softmax(tiny[0](BATCH.ids_BL).logits.float() / 0.8, -1)
    expected = expected[:, :-1].gather(-1, BATCH.ids_BL[:, 1:, None])[:, :, 0] * BATCH.sampled_BL[:, 1:]
    found = [
        token_logprobs(tiny[0], BATCH.ids_BL, BATCH.sampled_BL, temperature=0.8, logit_budget=budget)[0].detach()
        for budget in (1 << 24, 1000)
    ]
    assert torch.allclose(found[0][:, 1:], expected, atol=1e-5)
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_the_trainers_logprobs_are_the_samplers(tiny: Tiny) -> None:
    async def sample() -> TokenBuffer:
        engine = HFEngine(tiny[0])
        buffer = TokenBuffer()
        for turn in range(3):
            buffer.append_text([3, 50 + turn, 1, 4], turn)
            made = await engine.generate(buffer.ids, Sampling(max_tokens=9, seed=turn), "s", (1,))
            buffer.append_sampled(made.ids, made.logprobs, turn)
        await engine.close()
        return buffer

    batch = TokenBatch.of([asyncio.run(sample())])
    logp = token_logprobs(tiny[0], batch.ids_BL, batch.sampled_BL, temperature=1.0, logit_budget=1 << 24)[0]
    assert torch.allclose(logp, batch.logp_old_BL, atol=1e-5)


class Logits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers of tensors as wide as the vocabulary that exist at once, but for the output layer's own."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary, self._hidden = vocabulary, hidden
        self._alive: dict[int, weakref.ref[torch.Tensor]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        shape = made.shape if isinstance(made, torch.Tensor) else ()
        if len(shape) == 2 and shape[1] == self._vocabulary and shape[0] != self._hidden:
            self._alive[id(made)] = weakref.ref(made)
            storages = {one.data_ptr(): one.numel() for ref in self._alive.values() if (one := ref()) is not None}
            self.most = max(self.most, sum(storages.values()))
        return made


def test_a_whole_batch_of_logits_never_exists(tiny: Tiny) -> None:
    vocabulary, sampled = tiny[0].config.vocab_size, int(BATCH.sampled_BL.sum())
    found = {}
    for budget in (2000, 1 << 24):
        one = learner(tiny, logit_budget=budget)
        with Logits(vocabulary, tiny[0].config.hidden_size) as logits:
            one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
        found[budget] = logits.most
    assert found[1 << 24] >= sampled * vocabulary
    assert 0 < found[2000] <= 4 * 2000 < sampled * vocabulary / 2  # logits, their softmax, and the gradients of both


@pytest.mark.parametrize("budget", [1, 40, 100])
def test_micro_batches_make_the_step_of_the_whole_batch(tiny: Tiny, budget: int) -> None:
    whole, parts = learner(tiny), learner(tiny, token_budget=budget, logit_budget=2000)
    policy = PolicySettings()
    first = whole.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy)
    second = parts.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy)
    assert second == pytest.approx(first, rel=1e-4)
    assert second["grad_norm"] > 0
    assert (weights(whole) - weights(parts)).abs().max() < 2e-5  # the step itself is 1e-3
    assert (weights(whole) - weights(learner(tiny))).abs().max() > 5e-4


def test_micro_batches_stay_within_the_budget_and_hold_every_row_once() -> None:
    parts = list(BATCH.micro_batches(torch.arange(12), 60))
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    assert all(len(part) == 1 or BATCH.rows(part).ids_BL.numel() <= 60 for part in parts)


def test_supervised_steps_imitate_sampled_tokens_only(tiny: Tiny) -> None:
    one = learner(tiny)
    before = one.sft_step(BUFFERS)["loss"]
    for _ in range(8):
        after = one.sft_step(BUFFERS)["loss"]
    assert after < before - 0.2
    parroted = [copy.deepcopy(buffer) for buffer in BUFFERS]
    for buffer in parroted:  # other observations after the last sampled token change nothing
        buffer.ids[-3:] = [10, 11, 12]
    first, second = learner(tiny), learner(tiny)
    assert first.sft_step(BUFFERS) == second.sft_step(parroted)


def test_a_batch_without_advantage_changes_nothing(tiny: Tiny) -> None:
    one = learner(tiny)
    before = weights(one)
    assert one.policy_step(BATCH, ADVANTAGE * 0, ON_POLICY, PolicySettings()) == {"tokens": 0.0}
    assert torch.equal(weights(one), before)


def test_a_row_without_advantage_is_counted_only_where_something_is_learned_from_it(tiny: Tiny) -> None:
    first, rest = torch.tensor([0]), ADVANTAGE.clone()
    rest[0] = 0
    together, apart, referred = learner(tiny), learner(tiny), Learner(copy.deepcopy(tiny[0]), ComputeSettings())
    referred.begin(OptimSettings(), steps=5, keep_reference=True)
    metrics = together.policy_step(BATCH, rest, ON_POLICY, PolicySettings())
    others = torch.arange(1, len(BATCH.ids_BL))
    assert metrics == apart.policy_step(BATCH.rows(others), rest[1:], ON_POLICY[1:], PolicySettings())
    counted = referred.policy_step(BATCH, rest, ON_POLICY, PolicySettings(loss_options={"kl_weight": 0.1}))
    assert counted["tokens"] == metrics["tokens"] + int(BATCH.sampled_BL[first].sum())
    assert counted["loss"] == pytest.approx(metrics["loss"] * metrics["tokens"] / counted["tokens"])


def test_drift_and_kl_are_means_over_the_rows_that_were_sampled_in_the_context_that_is_trained(tiny: Tiny) -> None:
    codes = ON_POLICY.clone()
    codes[::2] = 1
    own = torch.arange(1, len(codes), 2)
    mixed = learner(tiny).policy_step(BATCH, ADVANTAGE, codes, PolicySettings())
    alone = learner(tiny).policy_step(BATCH.rows(own), ADVANTAGE[own], ON_POLICY[own], PolicySettings())
    assert alone["drift"] > 0
    assert {name: mixed[name] for name in ("drift", "kl")} == pytest.approx(
        {name: alone[name] for name in ("drift", "kl")}, rel=1e-5
    )
    hinted = learner(tiny).policy_step(BATCH, ADVANTAGE, torch.ones_like(codes), PolicySettings())
    assert hinted.keys() == mixed.keys() - {"drift", "kl"}


def test_drift_is_that_of_the_first_optimizer_step_only(tiny: Tiny) -> None:
    once = learner(tiny, lr=0.1).policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    often = learner(tiny, lr=0.1).policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings(epochs=3))
    assert often["drift"] == once["drift"] > 0
    assert often["kl"] != pytest.approx(once["kl"])  # the policy moved, and the KL of its steps says so
    order_R = torch.randperm(len(BATCH.ids_BL), generator=torch.Generator().manual_seed(5))
    first_R = order_R.tensor_split(3)[0]
    alone = learner(tiny).policy_step(BATCH.rows(first_R), ADVANTAGE[first_R], ON_POLICY[first_R], PolicySettings())
    stirred = torch.Generator().manual_seed(5)
    parts = learner(tiny, lr=0.1).policy_step(
        BATCH, ADVANTAGE, ON_POLICY, PolicySettings(minibatches=3), generator=stirred
    )
    assert parts["drift"] == pytest.approx(alone["drift"], rel=1e-5)


def test_a_positive_advantage_makes_its_tokens_likelier(tiny: Tiny) -> None:
    one = learner(tiny)

    def likelihood() -> float:
        found = token_logprobs(one.model, BATCH.ids_BL, BATCH.sampled_BL, temperature=1.0, logit_budget=1 << 24)[0]
        return float(found.detach().sum())

    before = likelihood()
    one.policy_step(BATCH, BATCH.sampled_BL.float(), ON_POLICY, PolicySettings())
    assert likelihood() > before


def test_minibatches_and_epochs_take_their_steps(tiny: Tiny) -> None:
    one = learner(tiny)
    policy = PolicySettings(minibatches=3, epochs=2)
    metrics = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy, generator=torch.Generator().manual_seed(0))
    assert one.updates == 6
    assert metrics["tokens"] == 2 * int(BATCH.sampled_BL.sum())


def test_a_kl_term_is_measured_against_the_phases_beginning(tiny: Tiny) -> None:
    one = Learner(copy.deepcopy(tiny[0]), ComputeSettings())
    one.begin(OptimSettings(lr=1e-2), steps=5, keep_reference=True)
    policy = PolicySettings(loss_options={"kl_weight": 0.5})
    first = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy)
    second = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy)
    assert first["kl_ref"] == pytest.approx(0, abs=1e-6)
    assert second["kl_ref"] > 1e-4


def test_without_a_kl_term_nothing_is_told_of_a_reference(tiny: Tiny) -> None:
    one = learner(tiny)
    policy = PolicySettings(minibatches=3)
    found = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy, generator=torch.Generator().manual_seed(0))
    assert "ratio" in found
    assert "kl_ref" not in found


def test_an_unscored_attempt_is_outside_every_term(lab: Any, tiny: Tiny) -> None:
    policy = {"steps": 1, "tasks_per_step": 1, "attempts": 4, "advantage": "rloo", "loss_options": {"kl_weight": 0.5}}
    model = {"vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
    trainer = {"model": {**model, "context_length": 128}, "policy": {**policy, "optim": {"lr": 1e-2}}}
    run = lab.train(trainer=trainer, tasks={"train": 4, "test": 2})
    attempts = run.read_trajectories(1)
    lost = replace(attempts[1], end="infrastructure", verdict=None)
    found = []
    for group in ([attempts[0], lost, *attempts[2:]], [attempts[0], *attempts[2:]]):
        settings = lab.recipe(trainer=trainer).trainer_settings()
        update, one = Update(settings, None), Learner(copy.deepcopy(tiny[0]), settings.compute)
        update.begin(one)
        stir = torch.Generator().manual_seed(0)
        with torch.no_grad():  # away from the reference, so that the KL term has a gradient
            for parameter in one.model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=stir))
        priced = Rewards(
            outcome=[1.0, 0.0, 0.0, 0.5] if lost in group else [1.0, 0.0, 0.5],
            step=[[0.0] * len(attempt.turns) for attempt in group],
            keep=[attempt.scored for attempt in group],
        )
        found.append((update(one, [Group(attempts[0].task_id, group)], [priced], seed=0, done=0), weights(one)))
    assert found[0][0] == pytest.approx(found[1][0])
    assert found[0][0]["train/kl_ref"] > 1e-4
    assert torch.equal(found[0][1], found[1][1])


def test_a_saved_learner_goes_on_bit_for_bit(tiny: Tiny) -> None:
    one = learner(tiny)
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    state = copy.deepcopy(one.state())
    one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    other = learner(tiny)
    other.model.load_state_dict({name: value + 1 for name, value in other.model.state_dict().items()})
    other.load_state(state)
    other.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    assert torch.equal(weights(one), weights(other))


def test_a_loss_that_is_no_number_stops_the_run(tiny: Tiny) -> None:
    one = learner(tiny)
    before = weights(one)
    with pytest.raises(
        CollapseError, match=r"from the last good checkpoint \(trainer.model.path=CHECKPOINT .* a lower learning rate"
    ):
        one.policy_step(BATCH, ADVANTAGE * math.nan, ON_POLICY, PolicySettings())
    assert torch.equal(weights(one), before)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(AgentgymError, match="transforms its logits after the output layer"):
        check_head(Gemma2ForCausalLM(config).eval())


def test_the_first_token_is_never_a_target() -> None:
    buffer = TokenBuffer()
    buffer.append_sampled([5, 6], [-1.0, -1.0], turn=0)
    assert TokenBatch.of([buffer]).sampled_BL.tolist() == [[False, True]]
    assert buffer.mask(TokenKind.SAMPLED) == [True, True]
