"""The training tasks of a recipe, as TRL's rows name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentgym.errors import HeldOutError, TaskError
from agentgym.recipe import Prepared
from agentgym.task import Task


class Tasks:
    """A recipe's training tasks by id; any other task is refused."""

    def __init__(self, prepared: Prepared) -> None:
        if not prepared.train:
            raise TaskError("the recipe has no task to train on; check its environment's train split")
        self._prepared = prepared
        self._train = {task.id: task for task in prepared.train}

    def __getitem__(self, task_id: str) -> Task:
        if task_id in self._train:
            return self._train[task_id]
        found = self._prepared.make_env().tasks[task_id]
        if found.split != "train":
            raise HeldOutError(
                f"task {task_id!r} belongs to the {found.split!r} split and cannot be trained on; "
                "evaluate on it with `agentgym eval`"
            )
        raise TaskError(f"task {task_id!r} is not among the recipe's {len(self._train)} training tasks")

    @property
    def first(self) -> Task:
        """The first of them."""
        return next(iter(self._train.values()))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per task.

        The prompt's message is empty, since an environment opens its own episodes, and carries the task's id: TRL
        hands `rollout_func` nothing but prompts.
        """
        return [{"prompt": [{"role": "user", "content": "", "task": name}], "task": name} for name in self._train]

    def runs(self, prompts: Sequence[Any], size: int) -> list[tuple[Task, int]]:
        """Return whose prompts these are: tasks, with how many attempts each.

        Args:
            prompts: each row's as often as a group has attempts, next to one another.
            size: of a group.

        Raises:
            TaskError: a prompt names no task, or a group is not whole.
        """
        names = [_name(one) for one in prompts]
        groups = [names[start : start + size] for start in range(0, len(names), size)]
        for one in groups:
            if len(one) != size or len(set(one)) > 1:
                raise TaskError(
                    f"wanted {size} prompts of one task after another, found {len(one)} of {len(set(one))}; let "
                    "per_device_train_batch_size times steps_per_generation be a multiple of num_generations"
                )
        return [(self[one[0]], size) for one in groups]


def _name(prompt: Any) -> str:
    message = prompt[-1] if isinstance(prompt, list) and prompt else None
    name = message.get("task") if isinstance(message, Mapping) else None
    if not isinstance(name, str):
        raise TaskError(
            f"wanted a prompt that names its task, found {str(prompt)[:80]!r}; train on TrlBridge.dataset()"
        )
    return name
