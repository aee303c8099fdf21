"""The native PyTorch trainer's front door: its settings are known without importing torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from agentgym_trainers.settings import TrainerSettings

if TYPE_CHECKING:
    from agentgym.recipe import Prepared
    from agentgym.run import RunDirectory

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called with the phase (`sft`, `policy`, `eval`), the step done, the steps in all, and this step's metrics."""


class NativeTrainer:
    """Multi-turn GRPO in plain PyTorch, on one device."""

    Settings: ClassVar[type[TrainerSettings]] = TrainerSettings

    def train(self, prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Progress | None = None) -> None:
        """Train to the recipe's last step, from the run's latest checkpoint if `resume`."""
        from agentgym_trainers.loop import train

        train(prepared, run, resume=resume, progress=progress)
