"""Every field of a recipe's trainer section, and what becomes of it where OpenRLHF trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

Kind = Literal["option", "start", "agent", "run", "refused", "idle"]
_WORDS: Mapping[Kind, str] = {
    "option": "becomes",
    "start": "used before OpenRLHF starts:",
    "agent": "used where episodes are rolled out:",
    "run": "done by the launcher:",
    "refused": "refused unless left as it is:",
    "idle": "means nothing here:",
}


@dataclass(frozen=True, slots=True)
class Treatment:
    """What becomes of a field."""

    kind: Kind
    text: str


def _option(text: str) -> Treatment:
    return Treatment("option", text)


def _optim(prefix: str, where: str) -> dict[str, Treatment]:
    return {
        f"{where}.lr": _option(f"`--{prefix}.adam.lr`"),
        f"{where}.schedule": _option(f"`--{prefix}.lr_scheduler` constant_with_warmup or cosine"),
        f"{where}.warmup_steps": _option(f"`--{prefix}.lr_warmup_ratio`; its first step has the rate 0"),
        f"{where}.weight_decay": _option(f"`--{prefix}.adam.weight_decay`"),
        f"{where}.beta1": _option(f"`--{prefix}.adam.betas`"),
        f"{where}.beta2": _option(f"`--{prefix}.adam.betas`"),
        f"{where}.grad_clip": _option(f"`--{prefix}.max_norm`"),
    }


_SHAPE = Treatment("start", "the model that is made from nothing")
_WARM = Treatment("start", "the warm start, which the native trainer does")
_OWN_ENGINES = "it samples with vLLM engines of its own"

FIELDS: Mapping[str, Treatment] = {
    "model.path": Treatment("start", "`--actor.model_name_or_path`, or what the warm start made of it"),
    **{f"model.{name}": _SHAPE for name in ("vocab_size", "hidden", "layers", "heads", "kv_heads", "intermediate")},
    "model.context_length": _option("`--data.max_len`, or the model's own limit, whichever is less"),
    "chat.thinking": Treatment("agent", "a template that would fork an attempt into rows is refused at the launch"),
    "chat.calls": Treatment("agent", "how calls are read"),
    "engine.name": Treatment("idle", _OWN_ENGINES),
    "engine.options": Treatment("refused", _OWN_ENGINES),
    **{f"sft.{name}": _WARM for name in ("steps", "batch_size", "demonstrations", "hinted_share")},
    **{
        f"sft.optim.{name}": _WARM
        for name in ("lr", "schedule", "warmup_steps", "weight_decay", "beta1", "beta2", "grad_clip")
    },
    "policy.steps": _option("the dataset's length, steps x tasks_per_step, gone through once"),
    "policy.tasks_per_step": _option("`--rollout.batch_size`"),
    "policy.attempts": _option("`--rollout.n_samples_per_prompt`"),
    "policy.temperature": _option("`--rollout.temperature`"),
    "policy.advantage": _option("`--algo.advantage.estimator`: grpo, rloo, or gae with lam and gamma 1"),
    "policy.advantage_options": _option("grpo's std: group is `group_norm`, none is `dr_grpo`; others are refused"),
    "policy.loss": _option("clip, or truncated with one update: `--algo.advantage.is_correction_mode clip`"),
    "policy.loss_options": _option(
        "`--actor.eps_clip_low_high`, `--algo.kl.init_coef` with k3 as a loss, `--actor.policy_loss_type gspo` for "
        "level: sequence, the correction's upper bound for cap"
    ),
    "policy.epochs": _option("`--train.max_epochs`"),
    "policy.minibatches": _option("`--train.batch_size`, the attempts of a step over this"),
    **_optim("actor", "policy.optim"),
    "critic": _option("`--critic.*`"),
    "critic.trunk": Treatment("refused", "its critic is a model of its own"),
    "critic.path": _option("`--critic.model_name_or_path`"),
    "critic.trunk_weight": Treatment("refused", "its critic is a model of its own"),
    "critic.clip": _option("`--critic.value_clip`"),
    "critic.lam": Treatment("refused", "it discounts over what the environment printed"),
    "critic.warmup_steps": Treatment("refused", "it keeps those steps' attempts and trains the policy on them later"),
    **_optim("critic", "critic.optim"),
    "lora": Treatment("refused", "adapters are not handed to vLLM"),
    "lora.rank": Treatment("refused", "adapters are not handed to vLLM"),
    "lora.alpha": Treatment("refused", "adapters are not handed to vLLM"),
    "lora.targets": Treatment("refused", "adapters are not handed to vLLM"),
    "compute.device": _WARM,
    "compute.threads": _WARM,
    "compute.token_budget": _option("micro-batches: `--train.max_tokens_per_gpu` if dynamic, else their size"),
    "compute.packing": _option("`--ds.packing_samples` for both ways of packing"),
    "compute.logit_budget": _WARM,
    "compute.dtype": Treatment("idle", "it computes in bfloat16; float32 moments and weights stay"),
    "compute.recompute": _option("`--actor.gradient_checkpointing_enable`"),
    "compute.max_batch": Treatment("idle", "vLLM batches by itself; `limits.concurrency` bounds episodes per engine"),
    "compute.peak_tflops": _WARM,
    "schedule.max_staleness": _option("`--train.async_enable`, `--train.async_queue_size`"),
    "schedule.in_flight": Treatment("refused", "whole steps are held ready, no groups"),
    "schedule.redo": Treatment("idle", "no step waits longer than max_staleness, so none is begun anew"),
    "schedule.spare_attempts": Treatment("refused", "every attempt is waited for"),
    "checkpoint.every": _option("`--ckpt.save_steps`"),
    "checkpoint.sft_every": _WARM,
    "checkpoint.keep": _option("`--ckpt.max_num`"),
    "checkpoint.best": _option(
        "`--ckpt.best_metric_key`; where sampling overlaps learning, it is chosen among checkpoints of evaluated steps"
    ),
    "watch.window": Treatment("run", "trends of outcome and step reward"),
    "watch.stop": Treatment("run", "rules on metrics that OpenRLHF reports; it is ended when one is broken"),
}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every field that holds no section, and of sections that may be left out."""
    for name, field in model.model_fields.items():
        section, optional = _section(field.annotation)
        if section is None or optional:
            yield f"{prefix}{name}"
        if section is not None:
            yield from leaves(section, f"{prefix}{name}.")


def table() -> str:
    """Return what becomes of each field as a Markdown table."""
    rows = [f"| `{name}` | {_WORDS[one.kind]} {one.text} |" for name, one in FIELDS.items()]
    return "\n".join(["| field of `trainer` | where OpenRLHF trains |", "|---|---|", *rows]) + "\n"


def _section(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the record that a field holds, if it holds one, and whether it may be None."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    found = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
    return (found[0], type(None) in options) if len(found) == 1 else (None, False)
