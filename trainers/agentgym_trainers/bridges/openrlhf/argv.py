"""A recipe as the options of OpenRLHF's `train_ppo_ray`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from agentgym.recipe import Recipe
from agentgym_trainers.bridges.openrlhf.options import Settings
from agentgym_trainers.bridges.openrlhf.placement import Placement
from agentgym_trainers.bridges.openrlhf.rows import INPUT_KEY, LABEL_KEY
from agentgym_trainers.settings import OptimSettings

MODULE = "openrlhf.cli.train_ppo_ray"
_UNBOUNDED = 1_000_000

Value = str | int | float | bool | tuple[float, float] | None
Flags = dict[str, Value]
"""By name without dashes; True is a flag without a value, False and None are left out."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a training reads and writes, below the run's folder but for the model."""

    folder: Path
    """Absolute."""
    model: str
    """A Hugging Face folder or name."""
    critic: str | None = None
    """The same of the critic; None starts it from the policy's."""

    @property
    def agent(self) -> Path:
        """The module that OpenRLHF loads in every process that rolls out."""
        return self.folder / "agent.py"

    @property
    def dataset(self) -> Path:
        """Train tasks."""
        return self.folder / "train.jsonl"

    @property
    def held_out(self) -> Path:
        """Held-out tasks."""
        return self.folder / "held-out.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where OpenRLHF saves; ours are made from these."""
        return self.folder / "checkpoints"

    @property
    def final(self) -> Path:
        """The model of the last step."""
        return self.folder / "final"

    @property
    def metrics(self) -> Path:
        """Event files."""
        return self.folder / "events"


def arguments(recipe: Recipe, settings: Settings, files: Files, context: int, *, resume: bool = False) -> list[str]:
    """Return what follows `python -m openrlhf.cli.train_ppo_ray`.

    Args:
        recipe: what to train, already known to be possible.
        settings: its trainer's.
        files: where things are.
        context: tokens of an attempt at most.
        resume: go on from OpenRLHF's newest checkpoint.

    Raises:
        RecipeError: the batch or the GPUs cannot be divided as asked.
    """
    placement = Placement.of(settings, context)
    flags = {
        **_machines(settings, placement),
        **_data(recipe, files, context),
        **_sampling(settings, placement),
        **_algorithm(settings),
        **_optimizer("actor", settings.policy.optim, _updates(settings)),
        **_critic(settings, files, placement),
        **_evaluation(recipe, settings, files),
        **_checkpoints(settings, files, resume=resume),
    }
    return spell(flags)


def spell(flags: Mapping[str, Value]) -> list[str]:
    """Return words of a command line.

    >>> spell({"train.async_enable": True, "rollout.top_p": 1.0, "algo.kl.use_loss": False})
    ['--train.async_enable', '--rollout.top_p', '1.0']
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, tuple):
            words += [_text(one) for one in value]
        elif value is not True:
            words.append(_text(value))
    return words


def _text(value: str | float) -> str:
    # Not 1e-06: argparse takes a negative number in that notation for an option.
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def _updates(settings: Settings) -> int:
    """Return the optimizer steps of the whole training."""
    policy = settings.policy
    return policy.steps * policy.epochs * policy.minibatches


def _machines(settings: Settings, placement: Placement) -> Flags:
    options, overlap = settings.openrlhf, settings.schedule.max_staleness
    shared: Flags = {"num_nodes": options.nodes, "num_gpus_per_node": placement.learner}
    kl = bool(settings.policy.loss_options.get("kl_weight"))
    return {
        **{f"actor.{name}": value for name, value in shared.items()},
        **({f"ref.{name}": value for name, value in shared.items()} if kl else {}),
        "train.colocate_all": placement.colocate,
        "train.colocate_actor_ref": kl and not placement.colocate,
        "vllm.num_engines": placement.engines,
        "vllm.tensor_parallel_size": options.tensor_parallel,
        "vllm.gpu_memory_utilization": options.memory_share or (0.6 if placement.colocate else 0.9),
        "vllm.enable_prefix_caching": options.prefix_cache,
        "vllm.enforce_eager": not options.cuda_graphs,
        "vllm.enable_sleep": placement.colocate,
        "ds.enable_sleep": placement.colocate,
        "ds.zero_stage": options.zero_stage,
        "ds.adam_offload": options.offload,
        "ds.attn_implementation": options.attention,
        "ds.packing_samples": settings.compute.packing != "none",
        "ds.ring_attn_size": options.ring,
        "actor.gradient_checkpointing_enable": settings.compute.recompute,
        "train.async_enable": bool(overlap),
        "train.async_queue_size": overlap or None,
        "train.partial_rollout_enable": options.partial,
        "train.full_determinism_enable": options.deterministic,
    }


def _data(recipe: Recipe, files: Files, context: int) -> Flags:
    return {
        "actor.model_name_or_path": files.model,
        "train.agent_func_path": str(files.agent),
        "data.prompt_dataset": str(files.dataset),
        "data.input_key": INPUT_KEY,
        "data.label_key": LABEL_KEY,
        "data.max_len": context,
        "train.num_episodes": 1,
        "train.seed": recipe.seed % (1 << 31),
    }


def _sampling(settings: Settings, placement: Placement) -> Flags:
    policy = settings.policy
    dynamic = settings.openrlhf.dynamic_batch
    dynamic = settings.compute.packing != "none" if dynamic is None else dynamic
    budget = settings.compute.token_budget
    return {
        "rollout.batch_size": policy.tasks_per_step,
        "rollout.n_samples_per_prompt": policy.attempts,
        "rollout.temperature": policy.temperature,
        "rollout.micro_batch_size": placement.rollout_portion,
        "train.batch_size": placement.batch,
        "train.micro_batch_size": placement.train_portion,
        "train.max_epochs": policy.epochs,
        "train.dynamic_batch_enable": dynamic,
        "train.max_tokens_per_gpu": budget if dynamic else None,
        "rollout.max_tokens_per_gpu": budget if dynamic else None,
    }


def _algorithm(settings: Settings) -> Flags:
    policy, options = settings.policy, settings.openrlhf
    weight = policy.loss_options.get("kl_weight")
    bounds = options.correction_bounds if policy.loss == "clip" else (0.0, float(policy.loss_options.get("cap", 2.0)))
    corrected = options.correction != "none"
    return {
        "algo.advantage.estimator": _estimator(settings),
        "algo.advantage.gamma": 1.0,
        "algo.advantage.lambd": 1.0,
        "algo.advantage.is_correction_level": {"none": "off", "sequence": "seq"}.get(options.correction, "token"),
        "algo.advantage.is_correction_mode": ("clip" if options.correction == "clip" else "mask")
        if corrected
        else None,
        "algo.advantage.is_correction_threshold": bounds if corrected else None,
        "algo.kl.init_coef": float(weight or 0.0),
        "algo.kl.use_loss": bool(weight),
        "algo.kl.estimator": "k3" if weight else None,
        "actor.eps_clip_low_high": _clips(settings),
        "actor.policy_loss_type": "gspo" if policy.loss_options.get("level") == "sequence" else "ppo",
        "actor.loss_agg_mode": "token-mean",
        "actor.entropy_coef": 0.0 if _watches(settings, "train/entropy") else None,
        "reward.clip_range": (-_UNBOUNDED, _UNBOUNDED),
    }


def _estimator(settings: Settings) -> str:
    policy = settings.policy
    if policy.advantage != "grpo":
        return policy.advantage
    return "group_norm" if policy.advantage_options.get("std", "group") == "group" else "dr_grpo"


def _clips(settings: Settings) -> tuple[float, float]:
    options = settings.policy.loss_options if settings.policy.loss == "clip" else {}
    return float(options.get("clip_low", 0.2)), float(options.get("clip_high", 0.28))


def _watches(settings: Settings, metric: str) -> bool:
    return any(rule.metric == metric for rule in settings.watch.stop)


def _optimizer(name: str, optim: OptimSettings, updates: int) -> Flags:
    # It rounds the product of ratio and updates up; half a step less is safe from the product's own rounding.
    ratio = max(0.0, (optim.warmup_steps - 0.5) / updates) if updates else 0.0
    return {
        f"{name}.adam.lr": optim.lr,
        f"{name}.adam.betas": (optim.beta1, optim.beta2),
        f"{name}.adam.weight_decay": optim.weight_decay,
        f"{name}.lr_scheduler": "cosine" if optim.schedule == "cosine" else "constant_with_warmup",
        f"{name}.lr_warmup_ratio": min(1.0, ratio),
        f"{name}.max_norm": optim.grad_clip,
    }


def _critic(settings: Settings, files: Files, placement: Placement) -> Flags:
    critic = settings.critic
    if critic is None:
        return {}
    return {
        "critic.model_name_or_path": files.critic,
        "critic.num_nodes": settings.openrlhf.nodes,
        "critic.num_gpus_per_node": placement.critic,
        "critic.value_clip": float(_UNBOUNDED) if critic.clip is None else critic.clip,
        **_optimizer("critic", critic.optim, _updates(settings)),
    }


def _evaluation(recipe: Recipe, settings: Settings, files: Files) -> Flags:
    section = recipe.evaluation
    return {
        "eval.dataset": str(files.held_out),
        "eval.steps": section.every or settings.policy.steps,
        "eval.temperature": section.sampling.temperature,
        "eval.n_samples_per_prompt": section.attempts,
        "ckpt.best_metric_key": _best(recipe, settings),
    }


def _best(recipe: Recipe, settings: Settings) -> str:
    best = settings.checkpoint.best
    # Where sampling overlaps learning, what it saves as the best are weights of a later step than it evaluated.
    if best is None or settings.schedule.max_staleness:
        return "none"
    return f"eval_{recipe.evaluation.split}_pass{best.rpartition('@')[2]}"


def _checkpoints(settings: Settings, files: Files, *, resume: bool) -> Flags:
    return {
        "ckpt.path": str(files.checkpoints),
        "ckpt.output_dir": str(files.final),
        "ckpt.save_steps": settings.checkpoint.every,
        "ckpt.save_hf": True,
        "ckpt.max_num": settings.checkpoint.keep,
        "ckpt.load_enable": resume,
        "logger.tensorboard_dir": str(files.metrics),
        "logger.wandb.run_name": "run",
    }
