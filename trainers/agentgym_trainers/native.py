"""The native PyTorch trainer's front door: its settings are known without importing torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from agentgym_trainers.settings import TrainerSettings

if TYPE_CHECKING:
    from pathlib import Path

    from agentgym.recipe import Prepared
    from agentgym.run import RunDirectory

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called with the phase (`sft`, `policy`, `eval`), the step done, the steps in all, and this step's metrics."""


class NativeTrainer:
    """Multi-turn policy gradients in plain PyTorch, in one process or in those of torchrun."""

    Settings: ClassVar[type[TrainerSettings]] = TrainerSettings

    def train(self, prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Progress | None = None) -> None:
        """Train to the recipe's last step, from the run's latest checkpoint if `resume`.

        Raises:
            CheckpointError: the run, or its checkpoint, is of another recipe.
        """
        from agentgym_trainers.checkpoint import Checkpoints, refuse_other_recipe
        from agentgym_trainers.loop import train

        if resume and Checkpoints(run.checkpoints, keep=1).latest() is None:
            refuse_other_recipe(run, prepared.recipe)
        train(prepared, run, resume=resume, progress=progress)

    def export(self, source: Path, folder: Path, *, which: str = "latest", dtype: str | None = None) -> str:
        """Write a checkpoint's model as a Hugging Face folder, and return which checkpoint it was.

        Args:
            source: a run's folder, or a checkpoint's.
            folder: where to; new, or empty.
            which: `latest`, `best`, or a step.
            dtype: such as bfloat16; by default as it was trained.

        Raises:
            CheckpointError: there is no such checkpoint.
            RecipeError: the folder is in use, or the dtype is none.
        """
        from agentgym_trainers.export import export

        return export(source, folder, which=which, dtype=dtype)
