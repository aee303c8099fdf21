"""Metrics for TensorBoard, in the run's folder: `tensorboard --logdir RUN`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from agentgym.errors import MissingExtraError


class TensorboardTracker:
    """Writes event files to `tensorboard/` in the run's folder."""

    def __init__(self, folder: str | Path, *, first_step: int = 0) -> None:
        """Open a new event file.

        Args:
            folder: the run's.
            first_step: TensorBoard forgets what older files say of this step and later ones.

        Raises:
            MissingExtraError: the package tensorboard is not installed.
        """
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=first_step)

    @staticmethod
    def check() -> None:
        """Refuse where the package is missing."""
        if find_spec("tensorboard") is None:
            raise MissingExtraError("tensorboard", "tensorboard")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each metric's curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
