"""What OpenRLHF tells TensorBoard, read while it is written, under our metrics' names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from agentgym.errors import MissingExtraError

Metrics = dict[str, float]

_NAMES: Mapping[str, str] = {
    "train/policy_loss": "train/loss",
    "train/entropy_loss": "train/entropy",
    "train/actor_grad_norm": "train/grad_norm",
    "train/actor_lr": "train/lr",
    "train/ppo_clip_ratio": "train/clip_fraction",
    "train/critic_loss": "train/value_loss",
    "train/critic_grad_norm": "train/value_grad_norm",
    "train/critic_lr": "train/value_lr",
    "train/rollout/reward_mean": "rollout/reward",
    "train/outcome": "rollout/outcome",
    "train/step_reward": "rollout/step_reward",
    "train/turns": "rollout/turns",
    "train/infrastructure": "rollout/infrastructure",
    "train/timing/generation": "seconds/rollout",
    "train/timing/ppo_train": "seconds/learn",
    "train/timing/broadcast": "seconds/sync",
    "train/timing/step_total": "seconds/step",
}
REPORTED = (
    *_NAMES.values(), "rollout/pass_rate", "rollout/unscored", "rollout/sampled_tokens", "watch/*", "eval/pass@*"
)  # fmt: skip
"""Our metrics that there are where OpenRLHF trains; `*` stands for anything."""


def reported(metric: str) -> bool:
    """Return whether a metric of ours can be told of."""
    return any(fnmatchcase(metric, one) for one in REPORTED)


def translate(found: Mapping[str, float]) -> Metrics:
    """Return a step's figures under our names; what has none keeps its own behind `openrlhf/`.

    >>> translate({"train/actor_lr": 0.5, "train/passed": 0.25, "train/scored": 0.5, "eval/eval_test_pass1": 1.0})
    {'train/lr': 0.5, 'rollout/pass_rate': 0.5, 'rollout/unscored': 0.5, 'eval/pass@1': 1.0}
    """
    metrics: Metrics = {}
    for name, value in found.items():
        if name == "train/passed" and found.get("train/scored"):
            metrics["rollout/pass_rate"] = value / found["train/scored"]
        elif name == "train/scored":
            metrics["rollout/unscored"] = 1 - value
        elif name == "train/sampled_tokens":
            metrics["rollout/sampled_tokens"] = value * found.get("train/rollout/num_samples", math.nan)
        elif name.startswith("eval/eval_") and "_pass" in name:
            metrics[f"eval/pass@{name.rpartition('_pass')[2]}"] = value
        else:
            metrics[_NAMES.get(name, f"openrlhf/{name.removeprefix('train/')}")] = value
    return metrics


@dataclass(frozen=True, slots=True)
class Told:
    """The figures of one step, or of the evaluation after it."""

    step: int
    """OpenRLHF's count, from 1."""
    metrics: Metrics


@dataclass(slots=True)
class Events:
    """Follows the event files in a folder."""

    folder: Path
    _done: dict[str, int] = field(default_factory=dict)
    """The last step told of, for training and for evaluations."""
    _size: int = 0
    """Bytes, when they were last read."""
    _found: dict[tuple[int, str], Metrics] = field(default_factory=dict)

    @staticmethod
    def check() -> None:
        """Refuse where the package is missing.

        Raises:
            MissingExtraError: the package tensorboard is not installed.
        """
        if find_spec("tensorboard") is None:
            raise MissingExtraError("tensorboard", "tensorboard")

    def read(self, *, all_written: bool = False) -> Iterator[Told]:
        """Yield what is new, in order.

        Args:
            all_written: also what a later step does not show to be whole.
        """
        by_step = self._scalars()
        newest = max((step for step, _ in by_step), default=0)
        for (step, kind), found in sorted(by_step.items(), key=lambda one: (one[0][0], one[0][1] != "train")):
            if step > self._done.get(kind, 0) and (all_written or step < newest):
                self._done[kind] = step
                yield Told(step, translate(found))

    def _scalars(self) -> dict[tuple[int, str], Metrics]:
        size = sum(one.stat().st_size for one in self.folder.glob("*tfevents*"))
        if size == self._size:  # it writes every two minutes, and is looked at every two seconds
            return self._found
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        kept = EventAccumulator(str(self.folder), size_guidance={SCALARS: 0})
        kept.Reload()
        found: dict[tuple[int, str], Metrics] = {}
        for tag in kept.Tags()[SCALARS]:
            kind = tag.partition("/")[0]
            for event in kept.Scalars(tag):
                found.setdefault((event.step, kind), {})[tag] = event.value
        self._size, self._found = size, found
        return found
