"""Every metric that the native trainer logs: its name, what it is, and when to worry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import get_args

from agentgym.types import EndReason

METRICS: Mapping[str, tuple[str, str]] = {
    "sft/loss": ("negative log-likelihood per demonstrated token", "it does not fall in the warm start"),
    "sft/entropy": ("of the model at demonstrated tokens, in nats", ""),
    "sft/tokens": ("demonstrated tokens in the batch", ""),
    "sft/grad_norm": ("gradient norm before it is clipped", "far above `optim.grad_clip` for long"),
    "sft/lr": ("learning rate", ""),
    "rollout/reward": (
        "mean of outcome plus step rewards, of all attempts that are trained, hinted or not",
        "it rises and `rollout/pass_rate` does not",
    ),
    "rollout/outcome": (
        "mean outcome reward, of the same attempts as the pass rate",
        "it falls while `rollout/step_reward` rises",
    ),
    "rollout/step_reward": (
        "mean sum of an attempt's step rewards, of the same attempts as the pass rate",
        "it rises while `rollout/outcome` falls",
    ),
    "rollout/pass_rate": (
        "share of scored attempts that are entirely right; only of attempts without a hint, if there are any, replaced "
        "ones (see `rollout/unscored`) included",
        "it falls, or stays 0",
    ),
    "rollout/difficulty_*": (
        "pass rate of the step's tasks of one difficulty; where a task set has more than twelve, of one of at most "
        "twelve bands of about as many tasks each, named by the lowest and the highest difficulty in it",
        "an easy one falls",
    ),
    "rollout/turns": ("mean turns per attempt", "it runs to the limit"),
    "rollout/sampled_tokens": ("tokens sampled by the attempts of the step", ""),
    "rollout/truncated": ("share of turns that were cut by a token limit", "above 0.1: raise the limit"),
    "rollout/groups_without_signal": (
        "share of the groups of two or more attempts whose attempts all have the same return: they teach nothing",
        "near 1: tasks are too easy or too hard",
    ),
    "rollout/groups_guided": ("share of groups in which hinted attempts are trained", "it does not fall"),
    "rollout/unscored": (
        "share of attempts without a verdict, left out of everything else; replaced ones included: those that ended, "
        "and in whose place a spare or a hinted one is trained",
        "above 0.05",
    ),
    "rollout/infrastructure": (
        "share of attempts that sandboxes or engines lost, replaced ones included",
        "above 0.02",
    ),
    "end/*": (
        "share of attempts, replaced ones included, that ended so: submitted, turns, tokens, time, context, …",
        "`error` above 0",
    ),
    "noise/flipped": ("share of verdicts that injected noise flipped", ""),
    "noise/clean_pass_rate": ("pass rate without the injected noise", ""),
    "noise/appealed": ("share of verdicts that a trusted grader judged again", ""),
    "noise/rho0/*": ("estimated rate at which wrong answers are accepted", ""),
    "noise/rho1/*": ("estimated rate at which right answers are rejected", ""),
    "schedule/staleness": ("mean weight updates between an attempt's oldest token and its training", ""),
    "schedule/staleness_max": ("the same, of the stalest attempt of the step", ""),
    "schedule/carried": (
        "share of attempts that went on over a weight update, as far as turns tell: one within the last does not show",
        "",
    ),
    "schedule/groups_stale": (
        "groups cancelled since the last step because they would be too stale",
        "more than a few: raise `max_staleness`",
    ),
    "schedule/groups_given_up": (
        "tasks let go because they were too stale again and again",
        "above 0: slow tasks go untrained",
    ),
    "schedule/attempts_cut": (
        "share of started attempts that were cancelled for having been slower than their siblings",
        "high: what is slow goes untrained",
    ),
    "schedule/in_flight": ("groups under way when the step's were taken", ""),
    "train/loss": ("policy loss", ""),
    "train/entropy": ("of the policy at trained tokens, in nats", "it falls towards 0: exploration ends"),
    "train/drift": (
        "mean absolute difference between the trainer's and the sampler's logprobs in the first optimizer step of the "
        "update, before it moves the policy; not of rows that lost a hint",
        "on-policy above 0.01, or 0.05 where the engine samples in bfloat16: engine and trainer disagree",
    ),
    "train/kl": ("estimated KL (k3) of the policy from what sampled the batch", "above 0.1"),
    "train/kl_ref": ("estimated KL (k3) of the policy from the phase's beginning; only where `kl_weight` asks", ""),
    "train/ratio": ("mean importance ratio of policy and sampler", "far from 1"),
    "train/clip_fraction": ("share of tokens whose ratio was clipped or truncated", "above 0.3"),
    "train/grad_norm": ("gradient norm before it is clipped", "far above `optim.grad_clip` for long"),
    "train/lr": ("learning rate", ""),
    "train/tokens": ("sampled tokens in the rows that were trained, once per epoch", "0: the step taught nothing"),
    "train/value_loss": ("the critic's half squared error", "it does not fall"),
    "train/value_clip_fraction": ("share of values whose change was clipped", "above 0.5"),
    "train/value_grad_norm": ("gradient norm of the critic", ""),
    "train/value_lr": ("learning rate of the critic", ""),
    "train/explained_variance": (
        "share of the returns' variance that the critic foresees",
        "below 0 after its warm-up",
    ),
    "watch/outcome_trend": (
        "outcome's second half of `watch.window` steps against its first, in standard errors",
        "below -2",
    ),
    "watch/step_trend": ("the same of step rewards", "above 2 while the outcome's is below -2"),
    "watch/divergence": ("1 where step rewards rise and outcomes fall by two standard errors each", "1: gaming"),
    "seconds/step": ("a whole step", ""),
    "seconds/rollout": ("waiting for the step's groups", "asynchronous: more than `seconds/learn`"),
    "seconds/learn": ("the update", ""),
    "seconds/sync": ("handing the weights to the engine", ""),
    "seconds/save": ("writing the last checkpoint, told one step later", ""),
    "seconds/evaluate": ("the evaluation", ""),
    "speed/sampled_tokens": ("sampled tokens per second of the whole step", ""),
    "speed/trained_tokens": ("trained tokens per second of the update; in the warm start, demonstrated ones", ""),
    "speed/mfu": (
        "model FLOPs utilisation: the share of the devices' peak (`compute.peak_tflops`, where it is known) that the "
        "update makes use of",
        "below 0.1 on a GPU: raise `token_budget`, pack rows, compute in bfloat16",
    ),
    "memory/resident_mb": ("largest resident memory of the process so far", "it grows without end"),
    "memory/device_mb": ("largest memory allocated on the GPU so far; on a GPU only", ""),
    "eval/pass@*": ("held-out pass@k, and the bounds `_low` and `_high` of its 95% interval", "it falls"),
    "eval/difficulty_*": ("held-out pass@1 of the tasks of one difficulty, or of one band", ""),
    "eval/unscored": ("held-out attempts without a verdict", "above 0"),
    "eval/turns": ("mean turns per held-out attempt", ""),
}

ENDS = tuple(f"end/{one}" for one in get_args(EndReason))
"""What stands for `end/*`."""


def is_metric(name: str) -> bool:
    """Return whether the trainer logs a metric of this name; `*` in the catalogue stands for anything but an end."""
    if name.startswith("end/"):
        return name in ENDS
    return any(fnmatchcase(name, one) for one in METRICS)


def evaluated(attempts: int, difficulties: Iterable[str] = ()) -> list[str]:
    """Return the metrics of an evaluation, from its attempts per task and what the difficulties of tasks are called.

    >>> evaluated(3)[::3]
    ['eval/pass@1', 'eval/pass@2', 'eval/unscored']
    """
    passes = [f"eval/pass@{2**power}{end}" for power in range(attempts.bit_length()) for end in ("", "_low", "_high")]
    return [*passes, "eval/unscored", "eval/turns", *dict.fromkeys(f"eval/difficulty_{one}" for one in difficulties)]


def why_not_best(metric: str | None, known: Collection[str]) -> str | None:
    """Return why no checkpoint can be the best by a metric, where evaluations do not report it; None if one can."""
    if metric is None or metric in known:
        return None
    return f"trainer.checkpoint.best is {metric!r}: evaluations report {', '.join(known)}"


def table() -> str:
    """Return the catalogue as a Markdown table."""
    rows = [f"| `{name}` | {meaning} | {worry or '-'} |" for name, (meaning, worry) in METRICS.items()]
    return "\n".join(["| metric | what it is | worry when |", "|---|---|---|", *rows]) + "\n"
