"""What the trainer computes with on a GPU lies on the GPU: shown on a device that refuses to meet the CPU's tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from elsewhere import AWAY, Away, elsewhere, send
from token_rows import ADVANTAGE, BATCH, BUFFERS, ON_POLICY
from transformers import GPT2Config, GPT2LMHeadModel

from agentgym.policy import Generation, Sampling
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.continuous import ContinuousBatch
from agentgym_trainers.engines.decode import FixedBatch
from agentgym_trainers.engines.prefixes import PrefixStore
from agentgym_trainers.engines.sampler import Request
from agentgym_trainers.engines.weights import frozen_copy
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.learner import Learner
from agentgym_trainers.settings import ComputeSettings, CriticSettings, LoraSettings, OptimSettings, PolicySettings

Tiny = tuple[Any, ChatFormat]
TARGET = torch.rand(BATCH.ids_BL.shape, generator=torch.Generator().manual_seed(1)) * BATCH.sampled_BL


@pytest.mark.parametrize(
    "careless",
    [
        pytest.param(lambda: torch.ones(3, device=AWAY) + torch.ones(3), id="sum"),
        pytest.param(lambda: torch.ones(3, device=AWAY)[torch.tensor([1, 2], device=AWAY)] * torch.ones(2), id="index"),
        pytest.param(lambda: torch.ones(3)[torch.tensor([1, 2], device=AWAY)], id="index-from-elsewhere"),
        pytest.param(lambda: torch.ones(3, device=AWAY).numpy(), id="numpy"),
        pytest.param(
            lambda: torch.zeros(3).masked_scatter(torch.ones(3).bool(), torch.ones(3, device=AWAY)), id="mask"
        ),
    ],
)
def test_what_lies_elsewhere_does_not_meet_what_lies_here(careless: Callable[[], Any]) -> None:
    with elsewhere():
        assert (torch.ones(3, device=AWAY) + torch.tensor([1, 2, 3], device=AWAY)).cpu().tolist() == [2, 3, 4]
        with pytest.raises((RuntimeError, TypeError), match=r"two devices|numpy|Away"):
            careless()


@pytest.fixture
def _views_may_be_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # of which tensors that wrap others know nothing


def learn(model: Any, compute: ComputeSettings, critic: CriticSettings | None) -> tuple[list[Any], dict[str, Any]]:
    """Take steps of every kind, save, and go on from what was saved."""
    one = Learner(model, compute)
    optim = OptimSettings(lr=1e-3)
    one.begin(optim, 10)
    told: list[Any] = [one.sft_step(BUFFERS)]
    one.begin(optim, 10, keep_reference=True, critic=critic, critic_steps=10)
    policy = PolicySettings(minibatches=2, loss_options={"kl_weight": 0.1})
    for step in range(2):
        values = ValueTargets(one.values(BATCH), TARGET, BATCH.sampled_BL) if critic else None
        order = torch.Generator().manual_seed(step)
        told.append(one.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy, values=values, generator=order))
        one.load_state(copy.deepcopy(one.state()))
    return told, one.state()["model"]


@pytest.mark.parametrize(
    ("packing", "critic", "recompute", "lora"),
    [
        pytest.param("prefixes", None, False, False, id="grpo"),
        pytest.param("none", CriticSettings(), True, False, id="ppo-recomputed"),
        pytest.param("rows", CriticSettings(trunk="policy", trunk_weight=0.5), True, False, id="value-head"),
        pytest.param("prefixes", None, True, True, id="lora"),
    ],
)
def test_a_learner_elsewhere_learns_as_one_here(
    tiny: Tiny, packing: Any, critic: Any, recompute: bool, lora: bool
) -> None:
    compute = ComputeSettings(token_budget=90, logit_budget=4000, packing=packing, recompute=recompute)
    here, away = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])
    if lora:
        pytest.importorskip("peft", reason="peft is not installed")
        from agentgym_trainers.lora import add_lora

        for model in (here, away):
            add_lora(model, LoraSettings(rank=2), seed=0)
    expected, weights = learn(here, compute, critic)
    with elsewhere():
        found, moved = learn(send(away), compute, critic)
        assert all(isinstance(one, Away) for one in away.parameters())
        moved = {name: one.cpu() for name, one in moved.items()}
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert all((moved[name] - one).abs().max() < 1e-4 for name, one in weights.items())


@pytest.mark.usefixtures("_views_may_be_made_elsewhere")
@pytest.mark.parametrize("copied", [False, True])
def test_an_engine_elsewhere_samples_as_one_here(tiny: Tiny, copied: bool) -> None:
    def requests() -> list[Request]:
        sampling = Sampling(max_tokens=9, seed=3)
        return [
            Request(
                str(place), [5, 6, 7 + place % 2], sampling.model_copy(update={"top_p": 1 - place / 10}), frozenset()
            )
            for place in range(4)
        ]

    def sample(model: Any) -> list[Any]:
        model = frozen_copy(model) if copied else model
        prefixes = PrefixStore(1 << 20)
        prefixes.open("0")
        batch = ContinuousBatch(model, prefixes)
        asked = requests()
        done = dict(batch.tick(asked, 0))
        batch.restart(1)
        while batch.rows:
            done |= dict(batch.tick([], 1))
        first = done[asked[0]]
        assert isinstance(first, Generation)
        later = Request("0", [5, 6, 7, *first.ids, 9], Sampling(max_tokens=1), frozenset())
        assert prefixes.find("0", tuple(later.prompt_ids))  # what the session has computed is gone on from
        return [*(done[one] for one in asked), *dict(batch.tick([later], 1)).values()]

    expected = sample(tiny[0])
    with elsewhere():
        found = sample(send(copy.deepcopy(tiny[0])))
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert len({tuple(one.ids) for one in found}) > 1


@pytest.mark.usefixtures("_views_may_be_made_elsewhere")
def test_a_fixed_batch_elsewhere_samples_as_one_here() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    lengths = (4, 9)

    def sample(one: Any) -> list[list[int]]:
        asked = [
            Request(str(length), [3] * length, Sampling(max_tokens=length, seed=length), frozenset())
            for length in lengths
        ]
        return [made.ids for made in FixedBatch(one, asked).run(0, lambda: False)]

    expected = sample(model)
    with elsewhere():
        found = sample(send(copy.deepcopy(model)))
    assert found == expected
    assert [len(ids) for ids in found] == list(lengths)
