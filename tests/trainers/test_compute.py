"""Adapters, recomputed activations, bfloat16 and the memory check: each changes what it costs, not what is learned."""

from __future__ import annotations

import asyncio
import copy
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from token_rows import ADVANTAGE, BATCH, ON_POLICY
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, OPTConfig, OPTForCausalLM, T5Config

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.policy import Sampling
from agentgym.tokens import TokenBuffer
from agentgym_trainers.advantages import Credit
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.build import build
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.devices import available_memory, check_device
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.engines.weights import frozen_copy
from agentgym_trainers.learner import Learner
from agentgym_trainers.logprobs import token_logprobs
from agentgym_trainers.lora import add_lora
from agentgym_trainers.memory import least_memory, refuse_too_large
from agentgym_trainers.models import export, load_config
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.network import Network, Scores
from agentgym_trainers.recompute import lean
from agentgym_trainers.settings import (
    ComputeSettings,
    CriticSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    PolicySettings,
    ScheduleSettings,
    TrainerSettings,
)

Tiny = tuple[Any, ChatFormat]
TINY = ModelSettings(vocab_size=300, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, context_length=256)


def trained(tiny: Tiny, **compute: Any) -> tuple[Learner, dict[str, float]]:
    one = Learner(copy.deepcopy(tiny[0]), ComputeSettings(**compute))
    one.begin(OptimSettings(lr=1e-3), 10)
    return one, one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())


def weights(one: Learner) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()])


@pytest.mark.parametrize("packing", ["none", "prefixes"])
def test_recomputed_activations_make_the_same_step_without_dropout(tiny: Tiny, packing: Any) -> None:
    careless = copy.deepcopy(tiny[0])
    for layer in careless.model.layers:
        layer.self_attn.attention_dropout = 0.5
    plain, expected = trained(tiny, packing=packing)
    calls = []
    careless.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    one = Learner(careless, ComputeSettings(packing=packing, recompute=True))
    calls.clear()
    one.begin(OptimSettings(lr=1e-3), 10)
    calls.clear()
    found = one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings())
    assert len(calls) == 2  # once forward, once more for the gradient
    assert found == pytest.approx(expected, rel=1e-5)
    assert (weights(one) - weights(plain)).abs().max() < 1e-6
    assert not careless.model.layers[0].training


class Kept:
    """The storages that forward passes keep for gradients, those of weights apart."""

    def __init__(self, model: Any) -> None:
        self._own = {one.untyped_storage().data_ptr() for one in model.parameters()}
        self._seen: dict[int, torch.Tensor] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in self._own:
            self._seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    @property
    def size(self) -> int:
        return sum(one.untyped_storage().nbytes() for one in self._seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "share"), [("qwen", 0.7), ("opt", 1.0)])
def test_what_elementwise_arithmetic_makes_is_not_kept_and_gradients_are_the_same_bits(
    tiny: Tiny, family: str, share: float, dtype: torch.dtype
) -> None:
    found = []
    for saving in (nullcontext, lean):
        model = copy.deepcopy(tiny[0]) if family == "qwen" else opt(dropout=0.0)
        kept = Kept(model)
        with saving(model), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            with torch.autograd.graph.saved_tensors_hooks(kept, lambda one: one):
                states = model.base_model(input_ids=torch.arange(64).view(2, 32), use_cache=False).last_hidden_state
            states.float().square().mean().backward()
        found.append((kept.size, [one.grad for one in model.parameters() if one.grad is not None]))
        assert all("forward" not in vars(module) for module in model.modules())
    (plain, expected), (spared, same) = found
    assert spared <= share * plain
    assert len(expected) > 10
    assert all(torch.equal(one, other) for one, other in zip(expected, same, strict=True))


def opt(dropout: float) -> Any:
    """A model whose layers drop out by themselves."""
    config = OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, dropout=dropout,
        word_embed_proj_dim=32, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    return OPTForCausalLM(config).eval()


@pytest.mark.parametrize("packing", ["none", "rows"])
def test_recomputing_turns_no_dropout_on_in_layers_that_have_their_own(packing: Any) -> None:
    model = opt(dropout=0.5)
    found = []
    for recompute in (False, True):
        one = Learner(copy.deepcopy(model), ComputeSettings(recompute=recompute, packing=packing))
        one.begin(OptimSettings(lr=1e-3), 10)
        found.append((one.policy_step(BATCH, ADVANTAGE, ON_POLICY, PolicySettings()), weights(one)))
        assert not any(module.training for module in one.model.modules())
        assert all(not vars(layer).get("forward") for layer in one.model.modules())
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert (found[0][1] - found[1][1]).abs().max() < 1e-6


def test_bfloat16_is_arithmetic_only_and_warned_of_on_a_cpu(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one, found = trained(tiny, dtype="bfloat16")
    assert "bfloat16 on a CPU is slow" in caplog.text
    _, expected = trained(tiny)
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    assert found["entropy"] == pytest.approx(expected["entropy"], rel=1e-2)
    assert found["entropy"] != expected["entropy"]


def sampled(engine: HFEngine, seed: int = 1) -> tuple[list[int], torch.Tensor]:
    async def sample() -> tuple[list[int], torch.Tensor]:
        made = await engine.generate([5, 6, 7], Sampling(max_tokens=24, seed=seed), "s", ())
        await engine.close()
        return made.ids, torch.tensor(made.logprobs)

    return asyncio.run(sample())


def learnt(model: Any, ids: list[int], dtype: Any) -> torch.Tensor:
    """The learner's logprobs of what was sampled after the prompt."""
    buffer = TokenBuffer()
    buffer.append_text([5, 6, 7], 0)
    buffer.append_sampled(ids, [0.0] * len(ids), 0)
    part = TokenBatch.of([buffer])
    with torch.no_grad():
        scores = Scores(*Network(model, ComputeSettings(dtype=dtype))(part, temperature=1.0))
    return scores.logp_BL[part.sampled_BL]


@pytest.mark.parametrize("weights_of", ["copied", "shared"])
@pytest.mark.parametrize("batching", ["eager", "lockstep"])
def test_an_engine_in_bfloat16_samples_what_a_learner_in_bfloat16_expects(
    tiny: Tiny, weights_of: Any, batching: Any
) -> None:
    model = copy.deepcopy(tiny[0])
    ids, logp = sampled(HFEngine(model, weights=weights_of, batching=batching, dtype="bfloat16"))
    exact = learnt(model, ids, "float32")
    assert not torch.equal(logp, exact)  # or nothing was computed in bfloat16
    assert (logp - exact).abs().max() < 0.05
    assert (logp - learnt(model, ids, "bfloat16")).abs().max() < 0.05
    assert {one.dtype for one in model.parameters()} == {torch.float32}


def test_a_copy_in_bfloat16_keeps_exact_positions_and_takes_new_weights(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny[0])
    made = frozen_copy(model, torch.bfloat16)
    assert {one.dtype for one in made.parameters()} == {torch.bfloat16}
    assert not any(one.requires_grad for one in made.parameters())
    assert [one.dtype for one in made.buffers()] == [one.dtype for one in model.buffers()]
    assert made.lm_head.weight is made.model.embed_tokens.weight  # tied as before

    async def renew() -> None:
        engine = HFEngine(model, weights="copied", dtype="bfloat16")
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        await engine.update_weights()
        await engine.close()
        assert torch.equal(engine._model.lm_head.weight, model.lm_head.weight.bfloat16())

    asyncio.run(renew())


@pytest.mark.parametrize("staleness", [0, 1])
def test_all_that_samples_takes_the_recipes_type_unless_its_engine_says_otherwise(lab: Any, staleness: int) -> None:
    def parts(**options: Any) -> Any:
        trainer = {
            "model": TINY.model_dump(),
            "compute": {"dtype": "bfloat16"},
            "schedule": {"max_staleness": staleness},
            "engine": {"name": "hf", "options": options},
        }
        prepared = lab.recipe(trainer=trainer, tasks={"train": 4, "test": 2}).prepare()
        return asyncio.run(build(prepared, prepared.recipe.trainer_settings(), None, None, lambda *_: None))

    made = parts()
    assert made.model.dtype == torch.float32
    assert made._evaluation_engine()._model.dtype == torch.bfloat16
    ids, logp = sampled(made.engine)
    assert not torch.equal(logp, learnt(made.model, ids, "float32"))
    assert (made._evaluation_engine() is made.engine) == (staleness > 0)
    copied = parts(weights="copied")
    assert copied.engine.owns_weights
    assert (copied._evaluation_engine() is copied.engine) == (staleness > 0)
    assert not copied._evaluation_engine().lockstep
    chosen = parts(dtype="float32")
    assert chosen._evaluation_engine()._model.dtype == torch.float32
    ids, logp = sampled(chosen.engine)
    assert torch.allclose(logp, learnt(chosen.model, ids, "float32"), atol=1e-5)
    with pytest.raises(RecipeError, match=r"options\.dtype: Input should be 'float32' or 'bfloat16', found 'int3'"):
        parts(dtype="int3")
    with pytest.raises(ValueError, match="wanted dtype float32 or bfloat16 for the engine 'hf', found 'int3'"):
        registry.create("engines", "hf", model=made.model, dtype="int3")


def praise(credit: Credit) -> Tensor:
    """Whatever was sampled was good: a policy of random weights has something to learn, too."""
    return credit.sampled_BL.float()


def test_a_run_in_turns_may_sample_from_a_copy_in_bfloat16_and_repeats_bit_for_bit(lab: Any) -> None:
    registry.add("advantages", "praise", praise)
    trainer = {
        "model": TINY.model_dump(),
        "engine": {"options": {"weights": "copied", "dtype": "bfloat16"}},
        "policy": {"steps": 3, "tasks_per_step": 4, "attempts": 4, "advantage": "praise", "optim": {"lr": 1e-2}},
    }
    runs = [lab.train(trainer=trainer, tasks={"train": 12, "test": 4}) for _ in range(2)]
    drift, other = (lab.column(run, "train/drift") for run in runs)
    assert drift == other
    assert len(drift) == 3
    # In float32 they would agree; weights of one step before would be told apart.
    assert all(1e-5 < one < 0.02 for one in drift)
    first, second = (load_file(lab.newest_model(run) / "model.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def config(hidden: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=1000, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip


def test_the_memory_estimate_counts_every_weight_and_what_trains_it(tiny: Tiny) -> None:
    whole = sum(one.numel() for one in tiny[0].parameters())
    needs = least_memory(TrainerSettings(), tiny[0].config)
    assert needs["weights"] == 4 * whole
    assert needs["gradients and moments"] == 12 * whole
    kl = TrainerSettings(policy=PolicySettings(loss_options={"kl_weight": 0.1}))
    assert least_memory(kl, tiny[0].config)["weights"] == 8 * whole
    lora = least_memory(TrainerSettings(lora=LoraSettings(rank=2)), tiny[0].config)
    assert 0 < lora["gradients and moments"] < 12 * whole / 4
    halves = least_memory(TrainerSettings(), tiny[0].config, ranks=2)
    assert halves["gradients and moments"] == 6 * whole


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["whole", "adapters"])
def test_a_critics_own_model_is_counted_and_trained_whole_whatever_the_policy_trains(
    tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    for name, hidden in (("policy", 32), ("critic", 64)):
        config(hidden).save_pretrained(tmp_path / name)
    own = load_config(tmp_path / "critic")

    def needs(shape: Any, **sections: Any) -> dict[str, int]:
        return least_memory(TrainerSettings.model_validate({"policy": {"advantage": "gae"}, **sections}), shape)

    path = {"path": str(tmp_path / "critic")}
    policy = load_config(tmp_path / "policy")
    alone = needs(policy, lora=lora, critic={"trunk": "policy"})
    both = needs(policy, lora=lora, critic=path)
    whole = sum(one.numel() for one in AutoModel.from_config(own).parameters())
    more = {name: both[name] - alone[name] for name in both}
    assert more == {
        "weights": 4 * whole,
        "gradients and moments": 12 * whole,
        "activations": needs(own, critic={"trunk": "policy"})["activations"],
        "logits": 0,
    }


def test_a_critic_that_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    settings = TrainerSettings.model_validate({"policy": {"advantage": "gae"}, "critic": {"path": str(tmp_path)}})
    with pytest.raises(
        RecipeError, match=rf"^wanted a causal language model, found a t5 at '{tmp_path}'; name another$"
    ):
        least_memory(settings, config(32))


def test_a_critic_that_copies_the_policy_is_counted_without_a_head() -> None:
    shape = config(32)
    shape.tie_word_embeddings = False
    trunk = sum(one.numel() for one in AutoModel.from_config(shape).parameters())
    policy = PolicySettings(advantage="gae")
    alone, both = (
        least_memory(TrainerSettings(policy=policy, critic=CriticSettings(trunk=kind)), shape)
        for kind in ("policy", "own")
    )
    assert both["weights"] - alone["weights"] == 4 * trunk
    assert both["activations"] == 2 * alone["activations"]
    adapters, two = (
        least_memory(TrainerSettings(policy=policy, critic=critic, lora=LoraSettings(rank=2)), shape)
        for critic in (CriticSettings(trunk="policy"), CriticSettings())
    )
    assert two["gradients and moments"] == 2 * adapters["gradients and moments"]


def test_a_recipe_that_asks_for_more_memory_than_there_is_is_refused_in_one_sentence() -> None:
    sentence = r"needs at least \d+\.\d GiB on cpu \(.* for weights, .*\), found 0\.5 GiB free; choose a smaller model"
    with pytest.raises(RecipeError, match=sentence):
        refuse_too_large(TrainerSettings(), config(8192), available=2**29)
    refuse_too_large(TrainerSettings(), config(32), available=2**29)
    assert available_memory("cpu") > 2**20


GIB = 1 << 30
LIMITED = "memory.max", "memory.current"
LIMITED_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"


def machine(root: Path, membership: str, groups: dict[str, tuple[tuple[str, str], Any, int, dict[str, int]]]) -> Path:
    """A folder that looks like a machine with 16 GiB available and these control groups: limit, use and statistics."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemFree: 5 kB\nMemAvailable: {16 * GIB // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(membership)
    for place, (names, limit, used, stat) in groups.items():
        group = root / "sys/fs/cgroup" / place
        group.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (group / name).write_text(f"{value}\n")
        (group / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))
    return root


CACHED = {"file": 6 * GIB, "shmem": GIB, "inactive_file": 4 * GIB, "active_file": GIB, "slab_reclaimable": GIB // 2}


@pytest.mark.parametrize(
    ("membership", "groups", "left"),
    [
        pytest.param("0::/\n", {}, 16, id="no-group"),
        pytest.param("0::/\n", {"": (LIMITED, "max", 7 * GIB, CACHED)}, 16, id="no-limit"),
        pytest.param("0::/a\n", {"a": (LIMITED, 8 * GIB, 7 * GIB, CACHED)}, 6.5, id="cache-is-available"),
        pytest.param("0::/../../x\n", {"": (LIMITED, 8 * GIB, 7 * GIB, {})}, 1, id="a-container-sees-its-group-alone"),
        pytest.param(
            "0::/a/b\n",
            {"a/b": (LIMITED, "max", 0, {}), "a": (LIMITED, 4 * GIB, 2 * GIB, {})},
            2,
            id="a-group-around-bounds-too",
        ),
        pytest.param("0::/a\n", {"a": (LIMITED, GIB, 2 * GIB, {})}, 0, id="beyond-the-limit"),
        pytest.param(
            "5:cpu,cpuacct:/\n4:memory:/job\n0::/\n",
            {"memory/job": (LIMITED_V1, 4 * GIB, 3 * GIB, {"total_inactive_file": 2 * GIB, "inactive_file": 9 * GIB})},
            3,
            id="version-1",
        ),
    ],
)
def test_what_the_kernel_only_caches_is_available(tmp_path: Path, membership: str, groups: Any, left: float) -> None:
    assert available_memory("cpu", machine(tmp_path, membership, groups)) == left * GIB


@pytest.mark.parametrize("family", ["qwen", "opt"])
def test_no_more_activations_are_counted_than_a_forward_pass_keeps(tiny: Tiny, family: str) -> None:
    model = tiny[0] if family == "qwen" else opt(dropout=0.0)
    kept = Kept(model)
    with lean(model), torch.autograd.graph.saved_tensors_hooks(kept, lambda one: one):
        model.base_model(input_ids=torch.zeros(2, 32, dtype=torch.long), use_cache=False)
    real = kept.size
    counted = {
        recompute: least_memory(
            TrainerSettings(compute=ComputeSettings(token_budget=64, recompute=recompute)), model.config
        )["activations"]
        for recompute in (False, True)
    }
    assert 0.7 * real < counted[False] <= real
    assert 0.5 * real / 2 < counted[True] < counted[False]  # one of two layers, and the layers' inputs


def test_an_engines_copy_is_counted_in_its_type(tiny: Tiny) -> None:
    whole = sum(one.numel() for one in tiny[0].parameters())
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        compute, schedule = ComputeSettings.model_validate({"dtype": dtype}), ScheduleSettings(max_staleness=1)
        needs = least_memory(TrainerSettings(compute=compute, schedule=schedule), tiny[0].config)
        assert needs["the sampler's weights"] == size * whole


@pytest.mark.parametrize(
    ("engine", "options", "staleness", "device", "size"),
    [
        ("hf", {}, 0, "cpu", 0),
        ("hf", {}, 1, "cpu", 4),
        ("hf", {"dtype": "bfloat16"}, 1, "cpu", 2),
        ("hf", {"weights": "copied"}, 0, "cpu", 8),
        ("hf", {"weights": "copied", "dtype": "bfloat16"}, 0, "cuda", 4),
        ("vllm", {}, 0, "cpu", 4),
        ("vllm", {"dtype": "bfloat16"}, 0, "cpu", 2),
        ("vllm", {"options": {"tensor_parallel_size": 2}}, 0, "cpu", 0),
        ("vllm", {}, 0, "cuda:1", 0),
        ("vllm-server", {"url": "http://127.0.0.1:8000"}, 1, "cpu", 0),
    ],
)
def test_a_copy_of_the_weights_is_counted_where_there_is_one(
    tiny: Tiny, engine: str, options: Any, staleness: int, device: str, size: int
) -> None:
    settings = TrainerSettings.model_validate(
        {
            "engine": {"name": engine, "options": options},
            "schedule": {"max_staleness": staleness},
            "compute": {"device": device},
        }
    )
    whole = sum(one.numel() for one in tiny[0].parameters())
    assert least_memory(settings, tiny[0].config).get("the sampler's weights", 0) == size * whole
    several = least_memory(settings, tiny[0].config, ranks=2)
    assert several["a whole copy for the sampler"] == 4 * whole
    assert several.get("the sampler's weights", 0) == (size * whole if engine == "hf" else 0)


@pytest.mark.parametrize(
    ("options", "device", "share"),
    [
        ({}, "cuda", 0.45),
        ({"memory_share": 0.3}, "cuda:0", 0.3),
        ({"options": {"gpu_memory_utilization": 0.2}}, "cuda", 0.2),
        ({"options": {"tensor_parallel_size": 2}}, "cuda", 0.45),
        ({}, "cuda:1", 0),
        ({}, "cpu", 0),
    ],
)
def test_vllm_is_counted_by_its_share_of_the_learners_gpu(options: dict[str, Any], device: str, share: float) -> None:
    engine = {"name": "vllm", "options": options}
    settings = TrainerSettings.model_validate({"engine": engine, "compute": {"device": device}})
    needs = least_memory(settings, config(32), total=GIB)
    assert needs.get("vLLM's share of the GPU", 0) == int(share * GIB)
    assert ("the sampler's weights" in needs) == (device == "cpu")


def test_no_more_rows_are_counted_than_an_optimizer_step_trains_on() -> None:
    def activations(ranks: int = 1, **sections: Any) -> int:
        given = {"model": {"context_length": 100}, "compute": {"token_budget": 10**6}, **sections}
        return least_memory(TrainerSettings.model_validate(given), config(32), ranks=ranks)["activations"]

    policy, none = {"tasks_per_step": 2, "attempts": 4}, {"steps": 0}
    row = activations(policy={"tasks_per_step": 1, "attempts": 1}, sft=none)
    assert activations(policy=policy, sft=none) == 8 * row
    assert activations(policy=policy, sft={"steps": 5, "batch_size": 64}) == 64 * row
    assert activations(policy={**policy, **none}, sft={"steps": 5, "batch_size": 3}) == 3 * row
    assert activations(policy={**policy, "minibatches": 3}, sft=none) == 3 * row
    assert activations(ranks=3, policy=policy, sft=none) == 3 * row


@pytest.mark.parametrize(
    "targets", ["all-linear", ["q_proj", "v_proj"], ["layers.0.mlp.up_proj"], r".*\.1\.mlp\.(up|down)_proj"]
)
def test_as_many_adapters_are_counted_as_peft_makes(tiny: Tiny, targets: Any) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    model, lora = copy.deepcopy(tiny[0]), LoraSettings(rank=2, targets=targets)
    add_lora(model, lora, seed=0)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    needs = least_memory(TrainerSettings(lora=lora), tiny[0].config)
    assert needs["gradients and moments"] == 12 * trained > 0


def test_products_with_adapters_are_made_once(tiny: Tiny) -> None:
    model = copy.deepcopy(tiny[0])
    add_lora(model, LoraSettings(rank=2), seed=0)
    calls: list[int] = []
    model.base_model.layers[0].mlp.down_proj.base_layer.register_forward_hook(lambda *_: calls.append(1))
    with lean(model):
        states = model.base_model(input_ids=torch.arange(8)[None], use_cache=False)[0]
    states.float().square().mean().backward()
    assert calls == [1]


@pytest.mark.parametrize(
    ("device", "ranks", "rank", "reason"),
    [
        (
            "cuda",
            1,
            0,
            r"wanted GPU 0 \(cuda\), found no GPU that torch can use; set it to cpu, or take the .* profile",
        ),
        ("cuda", 4, 2, r"wanted GPU 2 \(cuda\), found no GPU"),
        ("cuda:1", 2, 0, "2 processes take a GPU each, found trainer.compute.device 'cuda:1'; set it to cuda"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(device: str, ranks: int, rank: int, reason: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RecipeError, match=reason):
        check_device(device, ranks, rank)
    check_device("cpu", ranks, rank)


def test_training_refuses_a_gpu_that_is_not_there_and_recipes_a_device_that_is_none(lab: Any) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="wanted GPU 0"):
            lab.train(trainer={"compute": {"device": "cuda"}, "policy": {"steps": 1}})
    with pytest.raises(RecipeError, match=r"compute\.device: .*, found 'gpu'"):
        lab.recipe(trainer={"compute": {"device": "gpu"}})


def test_training_refuses_before_it_loads(lab: Any) -> None:
    huge = {"hidden": 65536, "layers": 80, "heads": 512, "kv_heads": 8, "intermediate": 262144}
    with pytest.raises(RecipeError, match="needs at least"):
        lab.train(trainer={"model": huge, "policy": {"steps": 1}})


def test_training_refuses_a_critic_that_is_too_large_before_it_loads_its_weights(lab: Any, tmp_path: Path) -> None:
    config(65536).save_pretrained(tmp_path)
    critic = {"path": str(tmp_path)}
    with pytest.raises(RecipeError, match="needs at least"):
        lab.train(trainer={"policy": {"steps": 1, "advantage": "gae"}, "critic": critic})


LORA: dict[str, Any] = {
    "model": {
        "vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64,
        "context_length": 128,
    },
    "lora": {"rank": 4},
    "sft": {"steps": 4, "batch_size": 8, "demonstrations": 40, "optim": {"lr": 1e-2}},
    "policy": {"steps": 2, "tasks_per_step": 3, "attempts": 4, "loss_options": {"kl_weight": 0.1}},
    "checkpoint": {"every": 1, "sft_every": 2, "keep": 9},
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(lab: Any) -> Any:
    pytest.importorskip("peft", reason="peft is not installed")
    return lab.train(trainer=LORA, tasks={"train": 60, "test": 4})


def test_adapters_alone_are_trained_and_exports_are_whole(adapted: Any, tiny: Tiny, tmp_path: Any) -> None:
    from agentgym_trainers.lora import add_lora

    last = max(adapted.checkpoints.glob("step-*"))
    state = torch.load(last / "state.pt", weights_only=True)["learner"]["model"]
    early = torch.load(min(adapted.checkpoints.glob("step-*")) / "state.pt", weights_only=True)["learner"]["model"]
    moved = {name for name, one in state.items() if not torch.equal(one, early[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    names = load_file(last / "model" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in names)

    model = copy.deepcopy(tiny[0])
    add_lora(model, LoraSettings(rank=4), seed=0)
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    export(model, tiny[1].tokenizer, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    found = [
        token_logprobs(one, BATCH.ids_BL, BATCH.sampled_BL, temperature=1.0, logit_budget=1 << 24)[0].detach()
        for one in (tiny[0], model, merged)
    ]
    assert torch.allclose(found[1], found[2], atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_an_engine_with_weights_of_its_own_samples_with_new_adapters(tiny: Tiny) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from agentgym_trainers.lora import add_lora

    model = copy.deepcopy(tiny[0])
    add_lora(model, LoraSettings(rank=4), seed=0)

    async def sample() -> list[list[float]]:
        engine = HFEngine(model, weights="copied")
        found = []
        for scale in (0.0, 0.3):
            for layer in model.modules():
                if hasattr(layer, "lora_A"):
                    torch.nn.init.constant_(layer.lora_B["default"].weight, scale)
            await engine.update_weights()
            made = await engine.generate([5, 6, 7], Sampling(max_tokens=6, seed=1), "s", ())
            row = torch.tensor([[5, 6, 7, *made.ids]])
            mask = torch.tensor([[False] * 3 + [True] * 6])
            logp = token_logprobs(model, row, mask, temperature=1.0, logit_budget=1 << 24)[0]
            assert torch.allclose(logp[mask], torch.tensor(made.logprobs), atol=1e-5)
            found.append(made.logprobs)
        await engine.close()
        return found

    first, second = asyncio.run(sample())
    assert first != second


def test_a_resumed_run_with_adapters_ends_with_the_same_bits(lab: Any, adapted: Any) -> None:
    last = max(adapted.checkpoints.glob("step-*"))
    whole = torch.load(last / "state.pt", weights_only=True)["learner"]["model"]
    shutil.rmtree(last)
    NativeTrainer().train(lab.recipe(trainer=LORA, tasks={"train": 60, "test": 4}).prepare(), adapted, resume=True)
    again = torch.load(last / "state.pt", weights_only=True)["learner"]["model"]
    assert all(torch.equal(one, again[name]) for name, one in whole.items())


def test_layers_that_are_not_there_get_no_adapters(tiny: Tiny) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from agentgym_trainers.lora import add_lora

    with pytest.raises(RecipeError, match=r"has no layers \['query'\] for LoRA; it has: .*q_proj"):
        add_lora(copy.deepcopy(tiny[0]), LoraSettings(targets=["query"]), seed=0)
