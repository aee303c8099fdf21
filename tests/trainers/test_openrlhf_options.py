"""A recipe becomes OpenRLHF's options field by field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openrlhf_recipes import FILES, VALUED, options, recipe, words

from agentgym.errors import RecipeError
from agentgym_trainers.bridges.openrlhf import fields
from agentgym_trainers.bridges.openrlhf.argv import Files, arguments, spell
from agentgym_trainers.bridges.openrlhf.dataset import training_rows
from agentgym_trainers.bridges.openrlhf.options import Settings
from agentgym_trainers.bridges.openrlhf.placement import Placement
from agentgym_trainers.settings import TrainerSettings


def test_every_field_of_the_trainers_settings_has_a_treatment() -> None:
    assert set(fields.FIELDS) == set(fields.leaves(TrainerSettings))


def test_the_documentation_tells_of_every_field() -> None:
    page = Path(__file__).parents[2] / "docs" / "openrlhf.md"
    assert fields.table() in page.read_text(encoding="utf-8")


CHANGES: Mapping[str, Any] = {
    "model.context_length": 512,
    "policy.steps": 7,
    "policy.tasks_per_step": 8,
    "policy.attempts": 4,
    "policy.temperature": 0.7,
    "policy.advantage": "rloo",
    "policy.advantage_options": {"std": "none"},
    "policy.loss": "truncated",  # with a cap of its own, for 2 is what the correction of clip allows as well
    "policy.loss_options": {"clip_high": 0.3},
    "policy.epochs": 2,
    "policy.minibatches": 2,
    **{
        f"{place}.{name}": value
        for place in ("policy.optim", "critic.optim")
        for name, value in {
            "lr": 3e-6, "schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99,
            "grad_clip": 0.5,
        }.items()
    },
    "critic.path": "/models/critic",
    "critic.clip": None,
    "compute.token_budget": 1024,
    "compute.packing": "rows",
    "compute.recompute": True,
    "schedule.max_staleness": 2,
    "checkpoint.every": 5,
    "checkpoint.keep": 4,
    "checkpoint.best": "eval/pass@1",
    "engine.options": {"draft_tokens": 3},
    "critic.trunk": "policy",
    "critic.lam": 0.9,
    "critic.warmup_steps": 2,
    "lora": {},
    "schedule.in_flight": 64,
    "schedule.spare_attempts": 1,
    "engine.name": "vllm",
    "compute.dtype": "bfloat16",
    "compute.max_batch": 8,
    "schedule.redo": 3,
    "chat.thinking": "keep",
    "chat.calls": "hermes",
    "watch.window": 8,
    "watch.stop": [{"metric": "rollout/reward", "below": 0.1}],
}  # fmt: skip


IMPLIED = {"critic", "critic.trunk_weight", "lora.rank", "lora.alpha", "lora.targets"}
"""Only together with another field of this list."""


def nested(path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {head: nested(rest, value) if rest else value}


@pytest.mark.parametrize(
    "path", [name for name, one in fields.FIELDS.items() if one.kind != "start" and name not in IMPLIED]
)
def test_a_field_does_what_its_treatment_says(path: str) -> None:
    base: Mapping[str, Any] = VALUED if path.startswith("critic") else {}
    if path in ("schedule.in_flight", "schedule.redo", "schedule.spare_attempts"):
        base = {"schedule": {"max_staleness": 1}}
    kind = fields.FIELDS[path].kind
    before = recipe(base)
    trainer: dict[str, Any] = _merged(base, nested(path, CHANGES[path]))
    if path == "policy.loss":
        trainer["policy"]["loss_options"] = {"cap": 3.0}
    if kind == "refused":
        with pytest.raises(RecipeError, match=r"OpenRLHF cannot train this recipe"):
            words(recipe(trainer))
        return
    if path == "policy.steps":  # the number of rows says it
        rows = list(training_rows(recipe(trainer).prepare(), recipe(trainer).trainer_settings()))
        assert len(rows) == CHANGES[path] * before.trainer_settings().policy.tasks_per_step
        return
    if path == "critic.path":  # what is not there cannot be located
        changed = Files(FILES.folder, FILES.model, "/models/critic")
        settings = before.trainer_settings()
        assert "/models/critic" in arguments(before, settings, changed, 64)
        return
    assert (words(recipe(trainer)) != words(before)) == (kind == "option")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    shared = below.keys() & above.keys()
    return {**below, **above, **{name: _merged(below[name], above[name]) for name in shared if below[name]}}


def test_grpo_with_a_kl_term_becomes_these_options() -> None:
    policy = {
        "steps": 10, "tasks_per_step": 4, "attempts": 8, "minibatches": 2,
        "loss_options": {"kl_weight": 0.001, "clip_high": 0.25}, "optim": {"lr": 1e-6, "warmup_steps": 5},
    }  # fmt: skip
    found = options(recipe({"policy": policy, "openrlhf": {"gpus_per_node": 4}}, seed=3))
    assert found["algo.advantage.estimator"] == ["group_norm"]
    assert (found["algo.kl.init_coef"], found["algo.kl.estimator"], found["algo.kl.use_loss"]) == (
        ["0.001"],
        ["k3"],
        [],
    )
    assert found["actor.eps_clip_low_high"] == ["0.2", "0.25"]
    assert (found["rollout.batch_size"], found["rollout.n_samples_per_prompt"]) == (["4"], ["8"])
    assert (found["train.batch_size"], found["train.micro_batch_size"]) == (["16"], ["4"])
    assert (found["actor.adam.lr"], found["train.seed"]) == (["0.000001"], ["3"])
    assert (found["actor.num_gpus_per_node"], found["ref.num_gpus_per_node"]) == (["4"], ["4"])
    assert (found["vllm.num_engines"], found["train.colocate_all"]) == (["4"], [])
    # OpenRLHF takes ceil(20 updates x ratio) steps to warm up.
    assert found["actor.lr_warmup_ratio"] == ["0.225"]
    assert found["reward.clip_range"] == ["-1000000", "1000000"]


def test_numbers_are_spelled_in_full() -> None:
    assert spell({"actor.adam.lr": 1e-14, "a": 2.0, "b": 0.1, "c": 1e-6}) == [
        "--actor.adam.lr", "0.00000000000001", "--a", "2.0", "--b", "0.1", "--c", "0.000001",
    ]  # fmt: skip


def test_without_a_kl_term_no_reference_is_kept() -> None:
    found = options(recipe())
    assert found["algo.kl.init_coef"] == ["0.0"]  # its own default is another
    assert not {name for name in found if name.startswith("ref.")}


def test_overlap_takes_gpus_apart_and_a_critic_takes_some_too() -> None:
    apart = options(recipe({"schedule": {"max_staleness": 2}}))
    assert (apart["actor.num_gpus_per_node"], apart["vllm.num_engines"]) == (["4"], ["4"])
    assert (apart["train.async_queue_size"], "train.colocate_all" in apart) == (["2"], False)
    valued = options(recipe({**VALUED, "schedule": {"max_staleness": 1}, "openrlhf": {"tensor_parallel": 2}}))
    assert (valued["actor.num_gpus_per_node"], valued["critic.num_gpus_per_node"]) == (["2"], ["2"])
    assert valued["vllm.num_engines"] == ["2"]


def test_settings_are_the_native_ones_and_one_section_more() -> None:
    assert set(Settings.model_fields) - set(TrainerSettings.model_fields) == {"openrlhf"}


def test_portions_fill_the_token_budget_and_divide_the_batch() -> None:
    trainer = {"compute": {"token_budget": 4096}, "policy": {"tasks_per_step": 6, "attempts": 2}}
    found = Placement.of(recipe({**trainer, "openrlhf": {"gpus_per_node": 2}}).trainer_settings(), 1000)
    assert (found.samples, found.batch, found.rollout_portion, found.train_portion) == (12, 12, 3, 3)
