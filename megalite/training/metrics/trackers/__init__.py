"""Where a run's metrics go besides its folder: each tracker takes one dictionary a step."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from megalite.training.metrics.trackers.mlflow import MLflow
from megalite.training.metrics.trackers.tensorboard import TensorBoard
from megalite.training.metrics.trackers.wandb import WandB

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class Tracker(Protocol):
    """A writer of metrics, under the names that metrics.jsonl has."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step; a step may come again when a run goes back."""

    def close(self) -> None:
        """Write what is left."""


KINDS: dict[TrackerName, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_trackers(
    names: Sequence[TrackerName], folder: Path, about: Mapping[str, Any]
) -> dict[str, Tracker]:
    """The trackers of a run, by name.

    Args:
        names: which.
        folder: of the run; it keeps which of a tracker's runs it is.
        about: the run's config, for those that show it.

    Raises:
        ConfigError: a package is missing, or a service doesn't let the run begin.
    """
    return {name: KINDS[name](folder, about) for name in names}
