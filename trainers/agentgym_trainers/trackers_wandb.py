"""Metrics for Weights & Biases, kept in the run's folder until `wandb sync` sends them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from agentgym.errors import MissingExtraError


class WandbTracker:
    """Logs to a W&B run of its own; a run that is killed and resumed goes on under the same id."""

    def __init__(
        self,
        folder: str | Path,
        *,
        first_step: int = 0,
        project: str = "agentgym",
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        """Start or go on with a run.

        Args:
            folder: the run's; files go to `wandb/` in it.
            first_step: earlier points of this step and later ones are written again.
            project: where W&B files the run.
            mode: `offline` sends nothing anywhere.

        Raises:
            MissingExtraError: the package wandb is not installed.
        """
        self.check()
        import wandb

        place = Path(folder).resolve()
        self._run: Any = wandb.init(
            project=project,
            name=place.name,
            id=hashlib.blake2b(bytes(place), digest_size=8).hexdigest(),
            resume="allow",
            mode=mode,
            dir=str(place),
            config={"first_step": first_step},
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        # W&B's own counter never goes back, as a resumed run does.
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def check() -> None:
        """Refuse where the package is missing."""
        if find_spec("wandb") is None:
            raise MissingExtraError("wandb", "wandb")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers that are finite."""
        self._run.log({"step": step, **{name: value for name, value in metrics.items() if math.isfinite(value)}})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
