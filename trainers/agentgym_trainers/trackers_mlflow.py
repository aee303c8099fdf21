"""Metrics for MLflow, in a database of the run's folder or at a tracking server."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentgym.errors import MissingExtraError

_TAG = "agentgym.folder"


class MlflowTracker:
    """Logs to one MLflow run per folder; a run that is killed and resumed goes on with it."""

    def __init__(
        self, folder: str | Path, *, first_step: int = 0, experiment: str = "agentgym", tracking_uri: str | None = None
    ) -> None:
        """Find or make the MLflow run.

        Args:
            folder: the run's.
            first_step: points of this step and later ones are written again, beside the void ones, which stay earlier
                in time.
            experiment: where MLflow files the run.
            tracking_uri: a server's address; None keeps everything in `mlflow.db` in the run's folder.

        Raises:
            MissingExtraError: the package mlflow is not installed.
        """
        self.check()
        from mlflow.tracking import MlflowClient

        place = Path(folder).resolve()
        self._client: Any = MlflowClient(tracking_uri or f"sqlite:///{place / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment, str(place / "mlflow"))
        earlier = self._client.search_runs([number], f"tags.`{_TAG}` = '{place}'", max_results=1)
        tags = {_TAG: str(place), "mlflow.runName": place.name}
        self._id = (earlier[0] if earlier else self._client.create_run(number, tags=tags)).info.run_id
        self._client.set_tag(self._id, "agentgym.first_step", str(first_step))

    @staticmethod
    def check() -> None:
        """Refuse where the package is missing."""
        if find_spec("mlflow") is None:
            raise MissingExtraError("mlflow", "mlflow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the numbers that are finite."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [
            Metric(name.replace("@", "_at_"), float(value), now, step)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._id, metrics=points)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)
