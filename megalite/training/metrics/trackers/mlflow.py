"""MLflow."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError
from megalite.training.metrics.trackers.kept import flat, keep_id, kept_id, package

EXPERIMENT = "megalite"
SEND_EVERY_S = 5.0
MOST_AT_ONCE = 1000  # metrics; params 100: MLflow's limits of a batch
MOST_PARAMS_AT_ONCE, LONGEST_PARAM = 100, 500


class MLflow:
    """A run there, where MLFLOW_TRACKING_URI says, or by MLflow's default."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Begin a run, or go on with the folder's.

        Raises:
            ConfigError: mlflow is not installed, or doesn't let it begin.
        """
        mlflow = package("mlflow")
        self._metric, param = mlflow.entities.Metric, mlflow.entities.Param
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        number = kept_id(folder, "mlflow")
        try:
            self._client = mlflow.MlflowClient()
            if number:
                self._client.update_run(number, status="RUNNING")
            else:
                number = self._begin(
                    folder.name,
                    [param(key, str(value)[:LONGEST_PARAM]) for key, value in flat(about).items()],
                )
        except mlflow.exceptions.MlflowException as error:
            raise ConfigError(
                "--run.trackers mlflow: set MLFLOW_TRACKING_URI to a server's address or a file:// "
                f"folder (and install mlflow whole for a database): {str(error).strip()}"
            ) from None
        self._number = number
        keep_id(folder, "mlflow", number)

    def _begin(self, name: str, params: list[Any]) -> str:
        run: str = self._client.create_run(self._experiment(), run_name=name).info.run_id
        for start in range(0, len(params), MOST_PARAMS_AT_ONCE):
            self._client.log_batch(run, params=params[start : start + MOST_PARAMS_AT_ONCE])
        return run

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        return found.experiment_id if found else self._client.create_experiment(EXPERIMENT)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the metrics of a step, and send all that wait every few seconds."""
        now = int(time.time() * 1000)
        self._waiting += [self._metric(key, value, now, step) for key, value in values.items()]
        if time.monotonic() - self._sent > SEND_EVERY_S:
            self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), MOST_AT_ONCE):
            self._client.log_batch(self._number, metrics=waiting[start : start + MOST_AT_ONCE])

    def close(self) -> None:
        """Send what waits, and end the run."""
        self._send()
        self._client.set_terminated(self._number)
