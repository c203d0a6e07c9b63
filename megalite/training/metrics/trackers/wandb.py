"""Weights & Biases."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError
from megalite.training.metrics.trackers.kept import keep_id, kept_id, package


class WandB:
    """A run there. Its own variables choose the rest, such as WANDB_MODE and WANDB_PROJECT."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Begin a run, or go on with the folder's.

        Raises:
            ConfigError: wandb is not installed, or doesn't let it begin.
        """
        wandb = package("wandb")
        self._number = kept_id(folder, "wandb") or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                dir=str(folder),
                name=folder.name,
                id=self._number,
                resume="allow",
                config=dict(about),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"--run.trackers wandb: {str(error).rstrip('.')}; or set WANDB_MODE=offline"
            ) from None
        self._run.define_metric("*", step_metric="step")
        keep_id(folder, "wandb", self._number)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the metrics of a step; the package sends them from a process of its own."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Wait until everything is handed over."""
        self._run.finish()
